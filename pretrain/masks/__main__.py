"""`python -m pretrain.masks`: look at what masking strategies hide, and count it.

  show IMAGE... --checkpoint C -o out.png   every strategy side by side on the same images
  stats --data DIR --checkpoint C           ratio, spatial entropy, objects, hard patches

C is a pretraining run's folder, its model.safetensors, a checkpoint of HPM, MAE or AutoMAE, or any
encoder; what it cannot say (a loss predictor, a mask generator) leaves out the strategies that ask
for it, by name.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option
from mimbench.system.progress import track

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from pretrain.viewing.annotations import Annotations, Cover
    from pretrain.viewing.laboratory import Observation, Observer, Variant
    from pretrain.viewing.mask_statistics import StrategyStatistics

logger = logging.getLogger("pretrain.masks")

DRAWS, BATCH = 8, 32


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m pretrain.masks", description=__doc__)
    verbs = out.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="draw all strategies side by side")
    show.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    add_option(show, "--out", "default: masks.png", default=Path("masks.png"), metavar="FILE")
    stats = verbs.add_parser("stats", help="count what strategies hide")
    add_option(stats, "--data", "a folder of images", required=True)
    stats.add_argument(
        "--annotations",
        type=Path,
        metavar="WHERE",
        help="COCO file, or folder of maps of segments; found beside the images by default",
    )
    stats.add_argument("--limit", type=int, default=256, help="images to look at (256)")
    add_option(stats, "--out", "a figure; default: none", metavar="FILE")
    for verb in (show, stats):
        verb.add_argument(
            "--checkpoint", type=Path, required=True, metavar="C", help="what looks at the images"
        )
        add_option(verb, "--num-heads")
        add_option(verb, "--image-size", "default: the checkpoint's")
        verb.add_argument(
            "--ratio", type=float, default=0.75, help="share that all hide (0.75); 0: each its own"
        )
        add_option(verb, "--seed")
        verb.rename(output="--out", ckpt="--checkpoint", heads="--num-heads", size="--image-size")
    return out


def usable(observer: Observer, ratio: float, *, labels: bool = False) -> list[Variant]:
    """Return the strategies that the checkpoint can serve; the log names the others."""
    from pretrain.viewing.laboratory import variants  # noqa: PLC0415

    missing, found = observer.offers(), []
    if not labels:
        missing["labels"] = "needs annotations"
    for variant in variants(ratio or None, observer.grid):
        faults = [missing[need] for need in variant.strategy.needs if need in missing]
        if faults:
            logger.info("%s is left out: it %s", variant.label, faults[0])
        else:
            found.append(variant)
    return found


def called(checkpoint: Path) -> str:
    """Return how a figure names a checkpoint: a run's files are all called alike, its folder is not."""
    path = checkpoint.resolve()
    return f"{path.parent.name}/{path.name}"


def show(args: argparse.Namespace) -> None:
    """Draw the figure of masks."""
    from pretrain.viewing.annotations import find_annotations  # noqa: PLC0415
    from pretrain.viewing.laboratory import Observer, draw  # noqa: PLC0415
    from pretrain.viewing.mask_figures import show_masks  # noqa: PLC0415

    observer = Observer(args.checkpoint, num_heads=args.num_heads, size=args.image_size)
    observation = observer.look(observer.load(args.images))
    found = find_annotations(args.images[0].parent, args.images, None)
    observation = replace(observation, labels=found.numbers(args.images, observer.size))
    chosen = usable(observer, args.ratio, labels=bool(observation.labels))
    masks = {v.label: draw(v, observation, args.seed) for v in chosen}
    title = f"What each strategy hides, as seen by {called(args.checkpoint)}"
    names = [path.stem if len(path.stem) <= 18 else f"…{path.stem[-16:]}" for path in args.images]
    show_masks(args.out, observation, masks, title=title, names=names)
    logger.info("%s: %d images, %d strategies", args.out, len(args.images), len(masks))


def stats(args: argparse.Namespace) -> str:
    """Return the statistics of every strategy as a table; draw them if asked to."""
    from pretrain.viewing.annotations import find_annotations  # noqa: PLC0415
    from pretrain.viewing.laboratory import Observer  # noqa: PLC0415
    from pretrain.viewing.mask_figures import show_statistics  # noqa: PLC0415
    from pretrain.viewing.mask_statistics import find_images  # noqa: PLC0415

    observer = Observer(args.checkpoint, num_heads=args.num_heads, size=args.image_size)
    paths = find_images(args.data, args.limit)
    annotations = find_annotations(args.data, paths, args.annotations)
    cover = annotations.cover(paths, observer.size, observer.spec.patch_size)
    rows = measure(
        observer, paths, cover, annotations=annotations, ratio=args.ratio, seed=args.seed
    )
    kind = "objects" if cover is None else cover.kind
    if args.out is not None:
        title = f"{len(paths)} images of {args.data.name}, as seen by {called(args.checkpoint)}"
        show_statistics(args.out, rows, kind=kind, title=title)
    return f"{table(rows, kind)}\n\n{shapes(rows)}"


def measure(
    observer: Observer,
    paths: Sequence[Path],
    cover: Cover | None,
    *,
    annotations: Annotations | None = None,
    ratio: float,
    seed: int,
) -> list[StrategyStatistics]:
    """Return the statistics of every strategy over a set of images."""
    import torch  # noqa: PLC0415

    from pretrain.viewing.laboratory import draw  # noqa: PLC0415
    from pretrain.viewing.mask_statistics import describe  # noqa: PLC0415

    chosen = usable(observer, ratio, labels=cover is not None)
    drawn: dict[str, list[torch.Tensor]] = {v.label: [] for v in chosen}
    costs: dict[str, list[torch.Tensor]] = {v.label: [] for v in chosen}
    observations: list[Observation] = []
    batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
    for number, part in enumerate(track(batches, "looking")):
        observation = observer.look(observer.load(part))
        if annotations is not None and cover is not None:
            observation = replace(observation, labels=annotations.numbers(part, observer.size))
        observations.append(observation)
        for variant in chosen:
            seeds = [seed + DRAWS * number + k for k in range(DRAWS)]
            drawn[variant.label].append(torch.stack([draw(variant, observation, s) for s in seeds]))
            if observation.trial is not None:
                costs[variant.label].append(observation.trial(drawn[variant.label][-1][0]))
    losses = [s.loss for s in observations if s.loss is not None]
    loss = torch.cat(losses) if losses else None
    weights = None if cover is None else cover.weights
    means = {label: torch.cat(c).mean().item() for label, c in costs.items() if c}
    return [
        describe(
            label,
            torch.cat(found, dim=1),
            observer.grid,
            objects=weights,
            loss=loss,
            lift=means[label] / means["random"] if label in means else None,
        )
        for label, found in drawn.items()
    ]


def shapes(rows: Sequence[StrategyStatistics]) -> str:
    """Return counts, places, grain and gaps as a second Markdown table."""
    titles = {
        "count entropy": "count_entropy",
        "border": "border",
        "dead places": "dead",
        "grain": "grain",
        "evenness": "evenness",
        "distance to sight": "distance",
        "visible parts": "parts",
        "repetition": "repetition",
        "information": "information",
        "of places": "place",
        "hardness lift": "lift",
    }
    lines = [f"| strategy | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for row in rows:
        values = [getattr(row.shape, name) for name in titles.values()]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(rows: Sequence[StrategyStatistics], kind: str) -> str:
    """Return the statistics as a Markdown table; `kind` is what annotations show."""
    lines = [
        f"| strategy | ratio | spatial entropy | clumping | {kind} hidden | "
        "rank correlation with true loss |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        objects, rank = (
            "-" if value is None else f"{value:.3f}"
            for value in (row.objects, row.rank_correlation)
        )
        lines.append(
            f"| {row.label} | {row.ratio:.3f} | {row.spatial_entropy:.3f} | {row.clumping:.3f} | "
            f"{objects} | {rank} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(arguments)
    configure_logging()
    return run_command(_run, args)


def _run(args: argparse.Namespace) -> int:
    if args.verb == "show":
        show(args)
    else:
        sys.stdout.write(stats(args) + "\n")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
