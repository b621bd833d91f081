"""Schedules as data, from the side of those who order and read them: `client.schedules` and what it is made of.

What a definition may be is `jetcron.fields`; what orders come to is cron-sync's.
"""

from jetcron.schedules.client import Schedules

__all__ = ["Schedules"]
