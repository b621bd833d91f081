"""Schedules of other schedulers, said as Jetcron's: `crontab`, `celery`, `apscheduler`.

Owns what each of them means by its entries, and says of each the schedule it becomes, what differs, or why it becomes
none. Never imports Celery or APScheduler: their objects are the user's, and are read by their attributes. Pure: no
I/O, no clock; nothing here lasts.
"""

from jetcron.migrate.entries import Entry, Naming, settled

__all__ = ["Entry", "Naming", "settled"]
