"""Checkpoint files from strangers, of every kind."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import hostile_archives as archives
from tests.support import hostile_headers as headers
from tests.support import hostile_pickles as raw
from tests.support.hostile_case import Case


def cases(seed: int, *, soups: int, flips: int) -> Iterator[Case]:
    """Yield the files of every kind.

    Args:
        seed: Of everything drawn.
        soups: Random programs of pickle opcodes.
        flips: Files with a changed byte, for each carrier that has checksums.
    """
    rng = random.Random(seed)
    for name, program in raw.bombs().items():
        yield Case(f"bomb {name}", _with_data(program))
        yield Case(f"legacy {name}", lambda d, p=program: raw.legacy_file(d / "f.pth", p))
    for number in range(soups):
        program = b"\x80\x02" + b"".join(rng.choices(raw.SOUP, k=rng.randint(1, 60))) + b"."
        whole = raw.state(raw.text("w") + b"".join(rng.choices(raw.SOUP, k=rng.randint(1, 12))))
        yield Case("opcodes", _with_data(rng.choice([program, whole])))
        if number % 4 == 0:
            yield Case("opcodes, old", lambda d, p=program: raw.legacy_file(d / "f.pth", p))
    yield from archives.odd_tensors()
    yield from archives.flipped(rng, flips)
    yield from archives.zips()
    yield from headers.headers()
    yield from headers.own_headers()
    yield from headers.folders()
    yield from archives.names()
    yield from archives.files()


def _with_data(program: bytes) -> Callable[[Path], Path]:
    return lambda d: raw.torch_file(d / "f.pth", program, raw.FOUR)
