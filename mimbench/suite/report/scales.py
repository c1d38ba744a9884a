"""An axis: its range, where a value lies on it, and the round numbers that are written on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
MARGIN = 0.07
"""Room at both ends, as a share of what the values span."""


@dataclass(frozen=True)
class Scale:
    """A range of values along one axis."""

    low: float
    high: float
    flipped: bool = False
    """Small values at the far end."""

    @classmethod
    def around(
        cls, values: Sequence[float], *, flipped: bool = False, margin: float = MARGIN
    ) -> "Scale":
        """Return a scale with room for the values."""
        low, high = min(values), max(values)
        room = margin * (high - low) or max(0.5, 0.05 * abs(high))
        return cls(low - room, high + room, flipped)

    def place(self, value: float) -> float:
        """Return where a value lies, 0 to 1."""
        share = (value - self.low) / (self.high - self.low)
        return 1 - share if self.flipped else share

    def ticks(self, most: int = 5) -> list[float]:
        """Return round numbers inside the range, at most so many, in rising order."""
        step = _step((self.high - self.low) / max(1, most))
        first = math.ceil(self.low / step - 1e-9)
        found = [i * step for i in range(first, first + most + 2)]
        return [x + 0.0 for x in found if x <= self.high + 1e-9 * step][:most]


def _step(least: float) -> float:
    """Return the smallest round step that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(s * power for s in STEPS if s * power >= least * (1 - 1e-9))


def tick_text(value: float) -> str:
    """Return a tick's number: as many digits as it needs."""
    return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.3g}"
