"""One straight line through few rows, and the interval that the next row falls into.

Shares are taken as log odds: a point of AP at 5 is more than one at 50, and no prediction leaves 0 to 100.
The interval is the textbook's for a new observation (Student's t with as many degrees of freedom as rows
are left over); it grows with the distance of the row's rungs from those that the line was fitted to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimbench.system.errors import UserError

LEVEL = 0.9
EDGE = 0.05
"""Percent: nothing is certain, not even 0 or 100 of a few thousand images."""
Floats = NDArray[np.float64]


def log_odds(percent: Sequence[float] | Floats) -> Floats:
    """Return shares in percent as log odds."""
    values = np.asarray(percent, dtype=np.float64)
    if values.size and not (values.min() >= 0 and values.max() <= 100):
        raise UserError(
            f"the ladder reads shares in percent, not {values.min():g} to {values.max():g}"
        )
    values = np.clip(values, EDGE, 100 - EDGE)
    return np.log(values / (100 - values))


def percent(odds: float) -> float:
    """Return log odds as a share in percent."""
    return float(100 / (1 + np.exp(-odds)))


@dataclass(frozen=True)
class Predicted:
    """What the next row's number is, in percent."""

    value: float
    low: float
    high: float
    """Ends of the 90 % interval."""

    def covers(self, value: float) -> bool:
        """Return whether the interval holds a number."""
        return self.low <= value <= self.high


def predict(
    rungs: Sequence[Sequence[float]], targets: Sequence[float], at: Sequence[float]
) -> Predicted:
    """Return what is expected of a row.

    Args:
        rungs: Of each known row, (n, rungs); no rungs predict the mean.
        targets: Of each known row, (n,).
        at: The rungs of the row in question.
    """
    # only a prediction waits for scipy
    from scipy.special import stdtrit  # noqa: PLC0415

    n, width = len(targets), len(at)
    x = np.hstack([np.ones((n, 1)), log_odds(np.reshape(rungs, (n, width)))])
    free = n - x.shape[1]
    if free < 1:
        raise UserError(f"{n} rows are too few for a line over {width} rungs")
    y = log_odds(targets)
    inverse = np.linalg.pinv(x.T @ x)
    slope = inverse @ x.T @ y
    variance = float(np.sum((y - x @ slope) ** 2)) / free
    here = np.concatenate([[1.0], log_odds(at)])
    middle = float(here @ slope)
    half = float(stdtrit(free, (1 + LEVEL) / 2)) * float(
        np.sqrt(variance * (1 + here @ inverse @ here))
    )
    return Predicted(percent(middle), percent(middle - half), percent(middle + half))
