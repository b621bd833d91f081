"""Steps within steps: in which step's function the code is, and whether that still runs.

Owns what a task inherits from the step that started it: the name its own steps stand under, and the end that is theirs
too. Never looks into the journal. If the process dies, this is gone with the code, and made anew as that runs again.
"""

from contextvars import ContextVar, Token
from typing import Any

from jetcron.errors import NonRetriableError

WITHIN = "#/"
"""Between a step and one of its own steps; no id of a user's has a '#'."""


class Inside:
    """While open, the code is in the function of `step`; afterwards, what that left running does nothing more.

    A second try of the step is another one.
    """

    __slots__ = ("_ended", "_outer", "_token", "step")

    def __init__(self, step: str) -> None:
        self.step = step
        self._outer = _inside.get()
        self._ended = False

    def __enter__(self) -> None:
        self._token: Token[Inside | None] = _inside.set(self)

    def __exit__(self, *_: Any) -> None:
        self._ended = True
        _inside.reset(self._token)

    def check(self, step: str) -> None:
        """Raise if this has ended, or one that it is part of."""
        inside: Inside | None = self
        while inside is not None:
            if inside._ended:
                raise NonRetriableError(
                    f"step {step!r}: the step it is part of, {inside.step!r}, has ended; await every step before "
                    "its function returns"
                )
            inside = inside._outer


_inside: ContextVar[Inside | None] = ContextVar("jetcron_step", default=None)
"""The step whose function runs, or ran when it started what is left of it."""


def outer() -> str | None:
    """The step whose function calls, if one does."""
    inside = _inside.get()
    return None if inside is None else inside.step


def check(step: str) -> None:
    """Raise if a step that `step` is part of has ended."""
    inside = _inside.get()
    if inside is not None:
        inside.check(step)
