"""Seeds mixed from parts, by one of two rules; who needs torch's or NumPy's global state is elsewhere.

`derive_seed` is the rule. The other functions mix by NumPy's SeedSequence: the sample data, random
subsets, detection and segmentation have always drawn by it, and their numbers must not move.
"""

import hashlib

import numpy as np


def derive_seed(*parts: int) -> int:
    """Return a seed (63 bits) that depends on all parts, without visible relation between any two."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def sequence_generator(*parts: int) -> np.random.Generator:
    """Return NumPy's generator of the parts: a draw, an epoch's order, a picture of the sample data."""
    return np.random.default_rng(list(parts))


def sequence_seed(*parts: int) -> int:
    """Return a seed (63 bits) of the parts: what a position of detection's stream draws."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1)


def sequence_words(*parts: int) -> tuple[int, int]:
    """Return two seeds (32 bits) of the parts: what a position of segmentation's stream draws."""
    first, second = np.random.SeedSequence(list(parts)).generate_state(2)
    return int(first), int(second)
