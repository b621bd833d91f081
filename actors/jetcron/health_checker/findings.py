"""What one sweep of the health-checker saw and mended: figures, and how far back it can vouch."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Findings:
    """What one sweep saw and mended, by cause. `whole`: nothing was left that it could not read or mend.

    `seen_at` is when it began to look, `message` the sequence of the sweep message it came by, 0 for none.
    `newest` is the greatest revision of a tick. `absent` and `rotation_at` are what it leaves the next one, as in
    `Sweep`.
    """

    seen_at: int = 0
    message: int = 0
    healthy_at: int = 0
    whole: bool = True
    schedules: int = 0
    newest: int = 0
    absent: str = ""
    rotation_at: int = 0
    repaired: dict[str, int] = field(default_factory=dict)

    def count(self, cause: str, times: int = 1) -> None:
        if times:
            self.repaired[cause] = self.repaired.get(cause, 0) + times

    def unsettled(self, at: int) -> None:
        """A tick of this time stands: what is due from then on is not vouched for."""
        self.healthy_at = min(self.healthy_at, at - 1)
        self.rotation_at = max(min(self.rotation_at, at - 1), 0)
