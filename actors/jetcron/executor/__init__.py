"""The executor: claim -> hold -> execute -> record -> acknowledge."""

from jetcron.executor.actor import Executor

__all__ = ["Executor"]
