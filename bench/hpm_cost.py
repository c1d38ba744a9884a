"""What HPM costs over MAE: as published, and behind each switch that makes it cheaper.

    python -m bench.hpm_cost [--vit small base] [--variants A2q] [--batch 4] [--repeat 5] [--out FILE]

Every variant takes the same step of the same ViT on the same crops; FLOPs are those that PyTorch
executes. Where images have several masks, figures are for one of them. Steps are timed in turns and ratios taken within each round, the median given with the
smallest and largest. With one thread on a CPU the clock is the process's own processor time, so
that a busy machine disturbs little.
"""

import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.pretrain_flops import executed
from bench.pretrain_step import DTYPES, in_turns, totals
from bench.pretrain_subjects import HPM, MAE, OurStep, StepSetting
from bench.stopwatch import Spread, ratios
from mimbench.system.files import write_json
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import pick_device

SHARED = (*HPM, "objective.predictor=shared")
A2Q = (*SHARED, "objective.exit=2", "teacher.look=quarter")
VARIANTS: Mapping[str, Sequence[str]] = {
    "HPM": HPM,
    "shared predictor (A8)": SHARED,
    "leaves after block 2 (A2)": (*SHARED, "objective.exit=2"),
    "and a quarter look (A2q)": A2Q,
    "A2q, two thirds decoded": (*A2Q, "objective.share=0.6667"),
    "A2q, one third decoded": (*A2Q, "objective.share=0.3333"),
    "A2q, asked every 4th step": (*A2Q, "teacher.every=4"),
    "bank, no teacher": (*SHARED, "objective.exit=2", "teacher.bank=true", "teacher.every=0"),
    "A2, two masks a look": (*SHARED, "objective.exit=2", "objective.masks=2"),
    "A2, four masks a look": (*SHARED, "objective.exit=2", "objective.masks=4"),
    "A2q, cross decoder": (*A2Q, "decoder.kind=cross"),
    "A2q, cross decoder, one third": (*A2Q, "decoder.kind=cross", "objective.share=0.3333"),
    "MAE, one third decoded": (*MAE, "objective.share=0.3333"),
}


def measure(setting: StepSetting, repeat: int, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Return FLOPs of an image and the time of a step over MAE's, for variants named by parts."""
    images = setting.images()
    mae = OurStep(setting, MAE)
    least = executed(lambda: mae(images[:1]))
    out: dict[str, Any] = {"MAE": {"gigaflops": least / 1e9, "flops_over_mae": 1.0}}
    for name, further in VARIANTS.items():
        if parts and not any(part in name for part in parts):
            continue
        # one beside MAE at a time: all of them with their optimizers would not fit a laptop
        step = OurStep(setting, further)
        # what is learned is learned from masks: a step of several counts for as many
        times = step.config.objective.masks
        flops = mean_flops(step, images[:1]) / times
        turns = [lambda mark: mae(images, mark), lambda mark, s=step: s(images, mark)]
        base, own = in_turns(turns, setting.device, repeat)
        out[name] = {
            "gigaflops": flops / 1e9,
            "flops_over_mae": flops / least,
            "time_over_mae": ratios([t / times for t in totals(own)], totals(base)),
        }
        del step
        gc.collect()
    return out


def mean_flops(step: OurStep, images: torch.Tensor) -> float:
    """Return the FLOPs of a step, averaged over those that ask the teacher and those that do not."""
    every = step.config.teacher.every
    if every < 2:
        return executed(lambda: step(images))
    last = step.at.step
    found = []
    for number in range(last - last % every, last - last % every + every):
        step.at = replace(step.at, step=number)
        found.append(executed(lambda: step(images)))
    step.at = replace(step.at, step=last)
    return sum(found) / every


def table(size: str, found: Mapping[str, Any]) -> str:
    """Return one network's figures as a Markdown table."""
    lines = [
        f"| ViT-{size} | GFLOPs an image | over MAE | time over MAE |",
        "|---|---|---|---|",
    ]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['gigaflops']:.1f} | {row['flops_over_mae']:.2f} | "
            f"{row.get('time_over_mae', 1)} |"
        )
    return "\n".join(lines)


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m bench.hpm_cost", description=__doc__)
    add_option(out, "--vit", "default: small base", nargs="+", default=["small", "base"])
    out.add_argument("--variants", default="", help="parts of names, by commas; all by default")
    add_option(out, "--batch", "default: 4", default=4)
    add_option(out, "--repeat", "default: 5", default=5)
    add_option(out, "--device")
    add_option(out, "--precision", "default: fp32", choices=sorted(DTYPES), default="fp32")
    add_option(out, "--threads", "default: 1", default=1)
    add_option(out, "--out", "a JSON file; default: none", metavar="FILE")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = parser().parse_args(argv)
    configure_logging()
    torch.set_num_threads(args.threads)
    device, everything = pick_device(args.device), {}
    for size in args.vit:
        setting = StepSetting(size=size, device=device, precision=args.precision, batch=args.batch)
        found = measure(setting, args.repeat, [p for p in args.variants.split(",") if p])
        everything[size] = {
            name: {k: v.values if isinstance(v, Spread) else v for k, v in row.items()}
            for name, row in found.items()
        }
        sys.stdout.write(table(size, found) + "\n")
        sys.stdout.flush()
        if args.out is not None:
            write_json(args.out, everything)
        gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
