"""Which set is read, and by which rule it is scored."""

from pathlib import Path
from typing import Literal

from mimbench.data.contents import Splits
from mimbench.data.listed import plain_splits
from mimbench.data.sets import Score, published, read_set
from mimbench.system.errors import UserError, did_you_mean

PLAIN = "plain"
"""Any folder with train and test as folders of classes, as tar or as parquet files."""
Rule = Literal["published", "overall", "per class"]


def read_splits(name: str, folder: Path) -> Splits:
    """Return the splits of a published set, or of plain ones."""
    if name != PLAIN:
        return read_set(name, folder, Splits)
    found = plain_splits(folder)
    if found is None:
        raise UserError(
            f"{folder} has no train and test (or val): as folders of classes, as train.tar and "
            "test.tar, or as train-*.parquet and test-*.parquet"
        )
    return found


def score_of(name: str, rule: Rule) -> Score:
    """Return how a set is scored.

    Args:
        name: A published set, or plain.
        rule: The set's own (overall where it is plain), or another.
    """
    if rule != "published":
        return rule
    if name == PLAIN:
        return "overall"
    if name not in published():
        raise UserError(f"no published set '{name}'" + did_you_mean(name, [PLAIN, *published()]))
    return published()[name].score
