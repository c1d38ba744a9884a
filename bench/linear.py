"""Cached probes: the grid against scikit-learn, an epoch against its products, disk to features.

Command: OMP_NUM_THREADS=2 python -m bench.linear [--rows 5000] [--width 192] [--classes 50]
Measured side by side in one process. `epoch` is one evaluation of loss and gradient for every value
of C; its limit is the forward and the backward product alone.
"""

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mimbench.data.lists import read_folder
from mimbench.data.preprocess import Preprocess
from mimbench.features.bank import BankSpec
from mimbench.features.extract import extract
from mimbench.features.logistic.objective import Objective, principal_axes
from mimbench.features.logistic.solver import Until, fit_grid
from mimbench.scores.metrics import rank_classes, top_percent
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import configure_logging
from mimbench.task import Machine
from mimbench.vit.weights import VitSpec, random_weights

logger = logging.getLogger(__name__)

TOLERANCES = (1e-4, 1e-6, 1e-12)
"""scikit-learn's default, which stops early at large C; one of equal accuracy; the protocol's own."""


def make(rows: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return correlated features with a falling spectrum, as a backbone's are, and labels."""
    fixed = np.random.default_rng(0)
    spectrum = np.arange(1, width + 1) ** -0.8
    turn = np.linalg.qr(fixed.standard_normal((width, width)))[0]
    centres = fixed.standard_normal((classes, width)) * spectrum * 0.5
    rng = np.random.default_rng([1, seed])
    labels = rng.integers(0, classes, rows)
    x = (centres[labels] + 1.5 * rng.standard_normal((rows, width)) * spectrum) @ turn * 5
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels)


def clock() -> float:
    """Return processor time with one thread, which leaves out neighbours; else the wall's."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def grid(rows: int, width: int, classes: int, steps: int, repeat: int) -> None:
    """Log the whole grid's time and accuracy beside scikit-learn's, value by value."""
    x, y = make(rows, width, classes, 0)
    test_x, test_y = make(10_000, width, classes, 1)
    cs = np.geomspace(1e-4, 1e3, steps).tolist()
    fit_grid(x[:200], y[:200], classes, cs, until=Until(max_iterations=2))
    logger.info("grid of %d values, %d x %d, %d classes", steps, rows, width, classes)
    ratios: dict[float, list[float]] = {tolerance: [] for tolerance in TOLERANCES}
    tops: dict[str, list[float]] = {}
    spent: list[int] = []
    for _ in range(repeat):
        began = clock()
        ours = fit_grid(x, y, classes, cs)
        took = clock() - began
        spent = list(ours.iterations)
        tops["ours"] = [
            top_percent(rank_classes(ours.logits(i, test_x)), test_y, 1) for i in range(steps)
        ]
        for tolerance, found in ratios.items():
            total, tops[f"{tolerance:g}"] = by_sklearn(x, y, test_x, test_y, cs, tolerance)
            found.append(total / took)
            logger.info("  ours %.2f s, scikit-learn to %g %.2f s", took, tolerance, total)
    for i, c in enumerate(cs):
        shown = ", ".join(f"{name} {found[i]:.2f}" for name, found in tops.items())
        logger.info("  C %.3g: top-1 %s; %d iterations of ours", c, shown, spent[i])
    for tolerance, found in ratios.items():
        theirs = tops[f"{tolerance:g}"]
        apart = [a - b for a, b in zip(tops["ours"], theirs, strict=True)]
        logger.info("  scikit-learn to %g: ours %.1f times faster (%.1f to %.1f), top-1 %+.2f at its "
                    "best C, largest difference %.2f", tolerance, statistics.median(found),
                    min(found), max(found), apart[int(np.argmax(theirs))],
                    max(map(abs, apart)))  # fmt: skip


def by_sklearn(
    x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, cs: Sequence[float], tolerance: float
) -> tuple[float, list[float]]:
    """Return the seconds that scikit-learn takes for all values of C, and its top-1 at each."""
    total, tops = 0.0, []
    for c in cs:
        began = clock()
        model = LogisticRegression(C=c, max_iter=1000, tol=tolerance).fit(x.numpy(), y.numpy())
        total += clock() - began
        tops.append(100 * float(model.score(test_x.numpy(), test_y.numpy())))
    return total, tops


def epoch(rows: int, width: int, classes: int, repeat: int) -> None:
    """Log the time of one pass over the data beside that of its products."""
    x, y = make(rows, width, classes, 0)
    objective = Objective(principal_axes(x), y, classes, torch.tensor([1e-4]))
    points, at = torch.zeros(1, width + 1, classes), torch.arange(1)
    weight, logits, slope = (
        torch.zeros(s) for s in ((width, classes), (rows, classes), (width, classes))
    )
    ratios = []
    # the first turn starts threads and touches memory
    objective(points, at)
    for _ in range(repeat):
        began = clock()
        torch.mm(x, weight, out=logits)
        torch.mm(x.T, logits, out=slope)
        limit = clock() - began
        began = clock()
        objective(points, at)
        ratios.append((clock() - began) / limit)
    logger.info("epoch of %d x %d, %d classes, over its products: %.2f (%.2f to %.2f)",
                rows, width, classes, statistics.median(ratios), min(ratios), max(ratios))  # fmt: skip


def throughput(count: int) -> None:
    """Log how many images a second become features, from files, on one core."""
    torch.set_num_threads(1)
    spec = VitSpec(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536, patch_size=16, grid=(14, 14))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rng = np.random.default_rng(0)
        (root / "val/a").mkdir(parents=True)
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 255, (25, 34, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(
                root / f"val/a/{i}.jpg", quality=90
            )
        images = read_folder(root, "val")
        bank = BankSpec(preprocess=Preprocess())
        began = time.perf_counter()
        for i in range(count):
            bank.preprocess(images.open(i), i)
        decode = count / (time.perf_counter() - began)
        machine = Machine(device="cpu", workers=0, max_batch=16)
        began = time.perf_counter()
        extract(random_weights(spec, 0), images, bank, machine, root=root / "bank")
        whole = count / (time.perf_counter() - began)
    logger.info("500 x 375 JPEG to 224 x 224: %.0f images a second on one core", decode)
    logger.info("disk to features, ViT-S/16: %.1f images a second on one core", whole)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = Parser(prog="python -m bench.linear", description=__doc__)
    parser.add_argument("--rows", type=int, default=5000, help="feature rows of the grid (5000)")
    parser.add_argument("--width", type=int, default=192, help="feature width of the grid (192)")
    parser.add_argument("--classes", type=int, default=50, help="classes of the grid (50)")
    add_option(parser, "--steps", "default: 8", default=8)
    add_option(parser, "--repeat", "default: 5", default=5)
    parser.add_argument("--grid-repeat", type=int, default=2, help="the same for the grid (2)")
    add_option(parser, "--images", "default: 64", default=64)
    args = parser.parse_args(argv)
    configure_logging()
    logger.info("%d threads", torch.get_num_threads())
    epoch(20_000, 768, 1000, args.repeat)
    grid(args.rows, args.width, args.classes, args.steps, args.grid_repeat)
    throughput(args.images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
