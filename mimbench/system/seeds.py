"""Seeds: mixed from parts, and set where others draw from global state."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info


def derive_seed(*parts: int) -> int:
    """Return a seed (63 bits) that depends on all parts, without visible relation between any two."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch on the CPU; outside loader workers, put them back afterwards."""
    keep = get_worker_info() is None
    saved = (random.getstate(), np.random.get_state(), torch.get_rng_state()) if keep else None  # noqa: NPY002
    random.seed(seed)
    # augmentations of third parties draw from NumPy's global state
    np.random.seed(seed % 2**32)  # noqa: NPY002
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
    random.seed(seed)
    # third-party augmentations draw from NumPy's global state
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
