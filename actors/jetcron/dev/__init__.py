"""`jetcron dev`: an embedded nats-server, every actor in one child process, reload on save.

Three processes: this one watches files and starts the child anew; the child (`child`) runs the actors and the
user's code; the guard ends the server when this one is gone. Killed at any moment, nothing is lost: the store
stays in its folder, and what was running is taken up at the next start.
"""

from jetcron.dev.supervisor import Options, run_dev

__all__ = ["Options", "run_dev"]
