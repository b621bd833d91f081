"""cron-sync, the one writer of the registry: `actor` takes commands, the others say what they come to."""

from jetcron.cron_sync.actor import CronSync

__all__ = ["CronSync"]
