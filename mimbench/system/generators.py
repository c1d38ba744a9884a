"""The global generators of Python, NumPy and torch: seeded for a while, or for a whole run."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info


@contextmanager
def seeded(seed: int, *, numpy: int | None = None) -> Iterator[None]:
    """Seed Python, NumPy and torch on the CPU; outside loader workers, put them back afterwards.

    Args:
        seed: The seed of all three.
        numpy: NumPy's own, where it differs.
    """
    keep = get_worker_info() is None
    saved = (random.getstate(), np.random.get_state(), torch.get_rng_state()) if keep else None  # noqa: NPY002
    _seed_python_and_numpy(seed, seed if numpy is None else numpy)
    # torch.manual_seed would also reset the GPU's generator
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if saved is not None:
            random.setstate(saved[0])
            np.random.set_state(saved[1])  # noqa: NPY002
            torch.set_rng_state(saved[2])


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; entry points call it once, libraries never."""
    _seed_python_and_numpy(seed, seed)
    torch.manual_seed(seed)


def _seed_python_and_numpy(seed: int, numpy: int) -> None:
    random.seed(seed)
    # augmentations of third parties draw from NumPy's global state
    np.random.seed(numpy % 2**32)  # noqa: NPY002
