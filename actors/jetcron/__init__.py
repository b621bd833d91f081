"""Jetcron: durable cron, events and functions for Python teams, on NATS JetStream.

An `App` holds functions; executors run them at the times and on the events they name. What is exported
here is the whole public API, with `jetcron.cron`.
"""

from jetcron.app import App
from jetcron.client import Client
from jetcron.context import Context
from jetcron.errors import (
    ConfigurationError,
    JetcronError,
    NonRetriableError,
    PayloadInvalid,
    RetryAfterError,
    RunFailed,
    RunNotFound,
    StepError,
)
from jetcron.events import Event
from jetcron.options import CancelOn, CatchUp, Cron, Retry

__version__ = "0.1.0"

__all__ = [
    "App",
    "CancelOn",
    "CatchUp",
    "Client",
    "ConfigurationError",
    "Context",
    "Cron",
    "Event",
    "JetcronError",
    "NonRetriableError",
    "PayloadInvalid",
    "Retry",
    "RetryAfterError",
    "RunFailed",
    "RunNotFound",
    "StepError",
]
