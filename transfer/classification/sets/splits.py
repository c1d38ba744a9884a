"""By which rule a set is scored."""

from typing import Literal

from mimbench.data.sets import Score, published
from mimbench.system.errors import UserError, did_you_mean

FOLDER = "folder"
"""Any folder with train and test as folders of classes, as tar or as parquet files."""
Rule = Literal["published", "overall", "per class"]


def score_of(name: str, rule: Rule) -> Score:
    """Return how a set is scored: by its own rule, or by another."""
    if name not in published():
        raise UserError(f"no published set '{name}'" + did_you_mean(name, published()))
    return published()[name].score if rule == "published" else rule
