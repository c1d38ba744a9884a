"""Dense k-NN from a bank on disk: one search for all k, against the published evaluations written plainly.

Command: OMP_NUM_THREADS=1 python -m bench.dense_knn [--repeat 3] [--form capi|hummingbird] [--scale 1.0]
Ours and the plain form run in turn in one process, on the same tokens, and must give the same labels.
`capi` is the whole choice of k and distance: eight settings. The plain form takes them one by one:
similarities of a picture's patches with the whole bank, the k largest, the most frequent label at each
pixel place. `hummingbird` is one setting: 30 neighbours, their features fetched and compared anew, soft
labels weighted, upsampled. Memory is what the process grows by, less the bank's mapped file.
"""

import argparse
import ctypes
import gc
import logging
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.patch_bank import seconds
from bench.stopwatch import Spread
from bench.token_bank import GRID, PATCH, write_bank
from mimbench.data.label_maps import UNLABELLED, class_indices
from mimbench.features.search import search_pieces
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import configure_logging
from transfer.dense.banks import Patches, as_rows, every
from transfer.dense.neighbours import KeptLabels, LabelledPatches, Truth, vote
from transfer.dense.patch_knn import METRICS, Distance
from transfer.dense.patches import Floats, Labels, frequencies
from transfer.dense.soft_labels import SoftLabels
from transfer.dense.votes import upsample

logger = logging.getLogger(__name__)

WIDTH, CLASSES = 768, 150
BANK, QUERIES = 100, 8
"""Pictures."""
SCENES, HELD = 20, 10
"""Kinds of pictures, and classes that each holds: ADE20K's pictures hold about as many."""
KS = (1, 3, 10, 30)
DISTANCES: tuple[Distance, ...] = ("cosine", "L2")
NEIGHBOURS, TEMPERATURE = 30, 0.02
Setting = tuple[int, Distance]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Both splits on disk, as the tasks read them."""

    train: Patches
    queries: Patches
    train_truth: Truth
    query_truth: Truth


def make(folder: Path, scale: float) -> Case:
    """Write noisy class centres as patch tokens, and blocky labels that they follow."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES + 1, WIDTH), dtype=np.float32)
    parts = []
    for name, pictures in (("train", int(BANK * scale)), ("queries", max(1, int(QUERIES * scale)))):
        pixels = _labels(rng, pictures)
        tokens = centres[pixels[..., 0]] + 3 * rng.standard_normal(
            (*pixels.shape[:2], WIDTH), dtype=np.float32
        )
        bank = write_bank(folder / name, torch.from_numpy(tokens))
        truth = Truth(
            pixels=pixels, first=1, classes=CLASSES, ignored=(0, 255), names=bank.images.names
        )
        parts.append((Patches(bank, None, device="cpu"), truth))
    (train, train_truth), (queries, query_truth) = parts
    train.scaler = queries.scaler = train.fit(every(len(train_truth.names)))
    return Case(train=train, queries=queries, train_truth=train_truth, query_truth=query_truth)


def _labels(rng: np.random.Generator, pictures: int) -> Labels:
    """Return pixels of patches (pictures, m, p x p): one class, and in a corner another of its scene."""
    scenes = rng.integers(0, SCENES, size=(pictures, 1, 1))
    here, there = (
        scenes * HELD + rng.integers(0, HELD, size=(pictures, GRID[0] * GRID[1], 1)) for _ in "ab"
    )
    pixels = (1 + here % CLASSES).astype(np.uint8).repeat(PATCH**2, axis=2)
    pixels[..., -64:] = 1 + there % CLASSES
    pixels[:, ::50] = 0
    return pixels


def ours(case: Case) -> dict[Setting, Labels]:
    """Return predicted label values (pictures, m, p x p) for every setting, as the task makes them."""
    pictures = len(case.query_truth.names)
    bank = LabelledPatches.of(case.train, case.train_truth, every(len(case.train_truth.names)))
    found: dict[Setting, Labels] = {}
    for distance in DISTANCES:
        tallies = vote(
            bank.exact(METRICS[distance], "cpu"),
            case.queries,
            case.query_truth,
            pictures=every(pictures),
            ks=KS,
            keep=range(pictures),
        )
        for k, tally in tallies.items():
            kept = [tally.kept[i].predicted for i in range(pictures)]
            found[k, distance] = np.stack(kept)
    return found


def published(case: Case) -> dict[Setting, Labels]:
    """Return the same by the published rule, setting by setting, picture by picture."""
    bank, labels = _kept(case)
    unit = F.normalize(bank, dim=1)
    found: dict[Setting, Labels] = {}
    for distance in DISTANCES:
        for k in KS:
            maps = []
            for _, tokens in case.queries.of(every(len(case.query_truth.names))):
                for picture in tokens:
                    if distance == "cosine":
                        scores = F.normalize(picture, dim=1) @ unit.T
                    else:
                        scores = -torch.cdist(picture, bank)
                    near = scores.topk(k, dim=1).indices
                    maps.append(labels[near].mode(dim=1).values.numpy())
            found[k, distance] = class_indices(np.stack(maps), 1)
            miou_plainly(found[k, distance], case.query_truth)
    return found


def _kept(case: Case) -> tuple[Tensor, Tensor]:
    """Return the patches that answer as one float32 matrix, and their pixels."""
    tokens = torch.cat([t for _, t in case.train.of(every(len(case.train_truth.names)))])
    pixels = torch.from_numpy(np.asarray(case.train_truth.pixels)).flatten(0, 1)
    own = pixels.mode(dim=1).values
    kept = (own != 0) & (own != UNLABELLED)
    return tokens.flatten(0, 1)[kept], pixels[kept]


def miou_plainly(predicted: Labels, truth: Truth) -> float:
    """Return the mean IoU in percent over the classes that occur, class by class."""
    true = class_indices(truth.pixels, truth.first)
    known = true != UNLABELLED
    shares = []
    for label in range(truth.classes):
        own, guess = true == label, (predicted == label) & known
        if either := np.count_nonzero(own | guess):
            shares.append(np.count_nonzero(own & guess) / either)
    return 100 * float(np.mean(shares))


def ours_soft(case: Case) -> dict[Setting, Labels]:
    """Return Hummingbird's labels (pictures, H, W), as the task makes them."""
    pixels = case.train_truth.pixels
    rows = np.arange(case.train.bank.patches)
    shares = SoftLabels([KeptLabels(pixels, rows)], CLASSES + 1)

    def pieces() -> Iterator[Floats]:
        for _, tokens in case.train.of(
            every(len(case.train_truth.names)), at_once=case.train.piece
        ):
            yield as_rows(tokens, unit=True)

    maps = []
    for at, tokens in case.queries.of(every(len(case.query_truth.names))):
        similarity, ids = search_pieces(pieces(), as_rows(tokens, unit=True), NEIGHBOURS)
        soft = shares.vote(similarity, ids, TEMPERATURE)
        side = (GRID[0] * PATCH, GRID[1] * PATCH)
        maps += [upsample(one[None], GRID, side)[0] for one in soft.view(len(at), -1, CLASSES + 1)]
    return {(NEIGHBOURS, "cosine"): np.stack(maps)}


def published_soft(case: Case) -> dict[Setting, Labels]:
    """Return the same by the published rule, picture by picture, on a bank in memory."""
    pixels = case.train_truth.pixels.reshape(-1, PATCH**2)
    shares = torch.from_numpy(frequencies(pixels, CLASSES + 1))
    tokens = torch.cat([t for _, t in case.train.of(every(len(case.train_truth.names)))])
    bank = F.normalize(tokens.flatten(0, 1), dim=1)
    maps = []
    for _, queries in case.queries.of(every(len(case.query_truth.names))):
        for picture in queries:
            near = (picture @ bank.T).topk(NEIGHBOURS, dim=1).indices
            keys = F.normalize(bank[near], dim=2)
            cosine = torch.einsum("nd,nkd->nk", F.normalize(picture, dim=1), keys)
            weights = (cosine / TEMPERATURE).softmax(dim=1)
            soft = torch.einsum("nk,nkc->nc", weights, shares[near])
            grid = soft.T.unflatten(1, GRID)[None]
            full = F.interpolate(grid, scale_factor=PATCH, mode="bilinear", align_corners=False)
            maps.append(full.argmax(dim=1)[0].byte().numpy())
    return {(NEIGHBOURS, "cosine"): np.stack(maps)}


FORMS = {"capi": (ours, published), "hummingbird": (ours_soft, published_soft)}


def measure(form: str, folder: Path, repeat: int, scale: float) -> None:
    """Log the ratios of one form, whether labels agree, and the memory of ours."""
    case = make(folder, scale)
    mine, plain = FORMS[form]
    ratios, agree = [], []
    found: dict[str, dict[Setting, Labels]] = {}
    for _ in range(repeat):
        slow = seconds(lambda: found.update(theirs=plain(case)))
        fast = seconds(lambda: found.update(ours=mine(case)))
        ratios.append(slow / fast)
        agree += [float((found["ours"][s] == found["theirs"][s]).mean()) for s in found["ours"]]
        logger.info("published %.2f s, ours %.2f s", slow, fast)
    logger.info(
        "%s: %d x %d patches, %d queries, settings %d",
        form,
        case.train.bank.patches,
        WIDTH,
        case.queries.bank.patches,
        len(found["ours"]),
    )
    logger.info("  faster than published: %s", Spread(tuple(ratios)))
    logger.info("  equal labels: %.5f of the pixels of every setting", min(agree))
    child = [sys.executable, "-m", "bench.dense_knn", "--memory", form, "--scale", str(scale)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    logger.info("  memory beyond the bank: %s MiB", done.stdout.strip())


def memory(form: str, folder: Path, scale: float) -> None:
    """Write in MiB how far ours grows the process's own memory; mapped files are not its own."""
    case = make(folder, scale)
    with grown() as most:
        FORMS[form][0](case)
    sys.stdout.write(f"{most[0] / 2**20:.0f}\n")


@contextmanager
def grown() -> Iterator[list[int]]:
    """Look every few milliseconds at the anonymous memory of this process; yield its largest growth."""
    libc_trim()
    before, most, over = _anonymous(), [0], threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], _anonymous() - before)

    watch = threading.Thread(target=look)
    watch.start()
    try:
        yield most
    finally:
        over.set()
        watch.join()


def libc_trim() -> None:
    """Give what was freed back, so that it does not hide what is taken next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = Parser(prog="python -m bench.dense_knn", description=__doc__)
    add_option(parser, "--repeat", "default: 3", default=3)
    parser.add_argument("--form", choices=sorted(FORMS), action="append", help="only this")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink both sizes")
    parser.add_argument("--memory", choices=sorted(FORMS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    configure_logging()
    logger.info("%d threads", torch.get_num_threads())
    for form in args.form or sorted(FORMS):
        with tempfile.TemporaryDirectory() as folder:
            if args.memory:
                memory(args.memory, Path(folder), args.scale)
                return 0
            measure(form, Path(folder), args.repeat, args.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
