"""Two recipe gaps side by side: does a difference keep its sign under every neighbouring setting?

Another resolution or another pooling moves two checkpoints alike, more or less: their own ranges may
overlap by points while one is ahead throughout. So the difference is taken under the *same* setting of
both, and only a change of its sign counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MAIN = "the recipe itself"


@dataclass(frozen=True, kw_only=True)
class PairedGap:
    """The difference a - b under the recipe and under each setting that both were measured with."""

    differences: Mapping[str, float]

    @property
    def low(self) -> float:
        """Return the smallest difference."""
        return min(self.differences.values())

    @property
    def high(self) -> float:
        """Return the largest difference."""
        return max(self.differences.values())

    @property
    def decided(self) -> bool:
        """Return whether the same side is ahead under all of them."""
        return self.low > 0 or self.high < 0

    @property
    def against(self) -> list[str]:
        """Return the settings under which the difference has not the recipe's sign."""
        main = self.differences[MAIN]
        return [name for name, value in self.differences.items() if value * main <= 0]

    def words(self) -> str:
        """Return the finding in a few words."""
        count = len(self.differences) - 1
        ends = f"{self.low:+.2f} to {self.high:+.2f}"
        if self.decided:
            return f"recipe gap: the same sign under {count} neighbouring settings, {ends}"
        named = (
            ", ".join(n for n in self.against if n != MAIN) or "the recipe itself: no difference"
        )
        return f"inside the recipe gap: {ends} over {count} neighbouring settings, against: {named}"


def paired_gap(
    value_a: float, a: Mapping[str, float], value_b: float, b: Mapping[str, float]
) -> PairedGap | None:
    """Return the paired gap; None where no neighbouring setting was measured with both.

    Args:
        value_a: Under the recipe.
        a: Setting -> value of the first.
        value_b: Under the recipe.
        b: Setting -> value of the second.
    """
    shared = [name for name in a if name in b]
    if not shared:
        return None
    found = {MAIN: value_a - value_b} | {name: a[name] - b[name] for name in shared}
    return PairedGap(differences=found)
