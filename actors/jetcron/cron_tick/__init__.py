"""cron-tick, which turns ticks: `actor` takes and stores, `definitions` says what governs them."""

from jetcron.cron_tick.actor import CronTick

__all__ = ["CronTick"]
