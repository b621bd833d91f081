"""The one error of this package.

Owns: `CronError`. Never does: anything else; it exists apart so that every module here can raise it.
"""

from __future__ import annotations


class CronError(ValueError):
    """An expression, zone or duration that cannot be used.

    The message names the expression, the offending field and its value, and what is allowed there. It is
    never worth a retry: the same text is refused the same way every time.
    """
