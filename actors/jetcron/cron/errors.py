"""The one error of this package.

Owns: `CronError`. Never does: anything else; it exists apart so that every module here can raise it.
"""

from __future__ import annotations


class CronError(ValueError):
    """An expression, zone or duration that cannot be used.

    The message names the expression (`about`), each offending field with its value, and what is allowed there:
    `reasons` has them one by one. It is never worth a retry: the same text is refused the same way every time.
    """

    def __init__(self, *reasons: str, about: str = "") -> None:
        self.reasons = reasons
        super().__init__(f"{about}{self.reason}")

    @property
    def reason(self) -> str:
        """What is wrong, without what it is wrong with."""
        return "; and ".join(self.reasons)
