"""mimbench: how well does a self-supervised vision backbone transfer?"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimbench.suite.python import compare, evaluate, load, table

__all__ = ["compare", "evaluate", "load", "table"]

# Before torch starts its threads: waiting threads spin by default, and beside another busy process
# that costs a small model nearly all its speed (a factor of ten to a hundred on two cores).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Return a function of `mimbench.suite.python`, imported when it is first asked for: it needs torch."""
    if name in __all__:
        return getattr(importlib.import_module("mimbench.suite.python"), name)
    raise AttributeError(f"module 'mimbench' has no attribute '{name}'")
