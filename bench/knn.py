"""k-NN: one search and one vote for every k, against DINO's published algorithm and the bare product.

Command: OMP_NUM_THREADS=2 python -m bench.knn [--repeat 3] [--case all|one] [--scale 1.0]
Measured side by side, in turn, in one process; ratios above 1 mean that ours is faster. `product` is
the matrix product of queries and bank alone, in pieces that fit the cache of its result. Memory is
the growth of the process's peak over the features, in a child process of its own.
"""

import argparse
import logging
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knn.vote import VoteConfig, predict
from mimbench.features.search import search
from mimbench.scores.neighbours import vote_scores
from mimbench.system.memory import peak_memory
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import configure_logging

logger = logging.getLogger(__name__)

CLASSES, WIDTH, TEMPERATURE, ALL = 1000, 768, 0.07, (10, 20, 100, 200)
PAIRS = 3
"""Of ours and the bare product, which are short, for each run of the published algorithm."""
CASES = {"all": (20_000, 10_000, ALL), "one": (50_000, 5_000, (20,))}

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


def make(rows: int, queries: int) -> tuple[Floats, Ids, Floats, Ids]:
    """Return unit features and labels of a bank and of queries: noisy class centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, WIDTH), dtype=np.float32)
    out: list[NDArray[np.float32] | NDArray[np.int64]] = []
    for count in (rows, queries):
        labels = rng.integers(0, CLASSES, count)
        x = centres[labels] + 6 * rng.standard_normal((count, WIDTH), dtype=np.float32)
        out += [x / np.linalg.norm(x, axis=1, keepdims=True), labels]
    return out[0], out[1], out[2], out[3]  # pyright: ignore[reportReturnType]


def ours(bank: Floats, labels: Ids, queries: Floats, truth: Ids, ks: Sequence[int]) -> list[float]:
    """Return top-1 at every k by one search, as the task does it."""
    ballot = VoteConfig(classes=CLASSES, ks=ks, temperatures=[TEMPERATURE])
    voted = predict(lambda q, k: search(bank, q, k), labels, queries, ballot)
    return [vote_scores(voted[k, TEMPERATURE], torch.from_numpy(truth), k)[0] for k in ks]


def published(
    bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, ks: Sequence[int]
) -> list[float]:
    """Return top-1 at every k by the published algorithm: a pass for each k, in 100 pieces."""
    turned = bank.T
    tops = []
    for k in ks:
        hits = 0
        size = len(queries) // 100
        for start in range(0, len(queries), size):
            similarity, ids = (queries[start : start + size] @ turned).topk(k)
            near = labels[ids]
            one_hot = torch.zeros(len(near) * k, CLASSES).scatter_(1, near.view(-1, 1), 1)
            weight = (similarity / TEMPERATURE).exp().unsqueeze(-1)
            votes = (one_hot.view(len(near), k, CLASSES) * weight).sum(dim=1)
            ranked = votes.sort(dim=1, descending=True).indices
            hits += int((ranked[:, 0] == truth[start : start + size]).sum())
        tops.append(100 * hits / len(queries))
    return tops


def product(bank: Tensor, queries: Tensor) -> None:
    """Multiply queries and bank, and keep nothing."""
    out = torch.empty(1024, len(bank))
    for start in range(0, len(queries), 1024):
        part = queries[start : start + 1024]
        torch.mm(part, bank.T, out=out[: len(part)])


def seconds(work: Callable[[], object]) -> float:
    """Return how long the work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spread(name: str, values: Sequence[float]) -> str:
    """Return the median of ratios and their range."""
    return f"{name} {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def measure(case: str, repeat: int, scale: float) -> None:
    """Log the ratios of one case."""
    rows, queries, ks = CASES[case]
    rows, queries = int(rows * scale), int(queries * scale)
    b, bl, q, ql = make(rows, queries)
    tensors = [torch.from_numpy(a) for a in (b, bl, q, ql)]
    # libraries start their threads outside the measurement
    ours(b[:500], bl[:500], q[:200], ql[:200], (10,))
    product(tensors[0][:500], tensors[2])
    faster, over = [], []
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(repeat):
        times = []
        for _ in range(PAIRS):
            limit = seconds(lambda: product(tensors[0], tensors[2]))
            took = seconds(lambda: mine.__setitem__(slice(None), ours(b, bl, q, ql, ks)))
            over.append(took / limit)
            times.append(took)
            logger.info("product %.2f s, ours %.2f s", limit, took)
        plain = seconds(
            lambda: theirs.__setitem__(
                slice(None), published(tensors[0], tensors[1], tensors[2], tensors[3], ks)
            )
        )
        faster.append(plain / statistics.median(times))
        logger.info("published %.2f s", plain)
    logger.info("%s: %d x %d, %d queries, k %s", case, rows, WIDTH, queries, list(ks))
    logger.info(spread("  faster than published:", faster))
    logger.info(spread("  time over the bare product:", over))
    logger.info("  top-1 ours %s published %s equal %s", mine, theirs, mine == theirs)
    child = [sys.executable, "-m", "bench.knn", "--memory", case, "--scale", str(scale)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    logger.info("  memory beyond the features: %s MiB", done.stdout.strip())


def memory(case: str, scale: float) -> None:
    """Write the growth of the peak memory in MiB, in this process."""
    rows, queries, ks = CASES[case]
    b, bl, q, ql = make(int(rows * scale), int(queries * scale))
    ours(b[:500], bl[:500], q[:64], ql[:64], (10,))
    # what making the features left free must not hide what the search takes
    ballast = np.ones(max(0, _peak() - _now()) // 8)
    before = _peak()
    ours(b, bl, q, ql, ks)
    sys.stdout.write(f"{(_peak() - before) / 2**20:.0f}\n")
    del ballast


def _peak() -> int:
    return peak_memory(torch.device("cpu"))


def _now() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = Parser(prog="python -m bench.knn", description=__doc__)
    add_option(parser, "--repeat", "default: 3", default=3)
    parser.add_argument(
        "--case", choices=sorted(CASES), action="append", help="only this; may be repeated"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="shrink both sizes")
    parser.add_argument("--memory", choices=sorted(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    configure_logging()
    if args.memory:
        memory(args.memory, args.scale)
        return 0
    logger.info("%d threads", torch.get_num_threads())
    for case in args.case or sorted(CASES):
        measure(case, args.repeat, args.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
