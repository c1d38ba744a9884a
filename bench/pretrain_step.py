"""A pretraining step, part by part: ours beside a plain one, the machine's limit, and MAE.

    python -m bench.pretrain_step [--vit tiny small base] [--batch 8] [--repeat 5] [--out FILE]

For each ViT at 224 x 224 our step and a plain one of the released structure are first shown to be
equal (losses, every gradient, the teacher's answers), then timed in turns. Ratios are taken within
each pair; the median is given with the smallest and largest. With one thread on a CPU the clock is
the process's own processor time, so that a busy machine disturbs little.
"""

import gc
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.peak import peak_bytes
from bench.pretrain_flops import executed, necessary
from bench.pretrain_subjects import (
    HPM,
    MAE,
    OurStep,
    StepSetting,
    difference,
    normalised,
    plain,
    plain_twin,
)
from bench.pretrain_table import plain_data, table
from bench.stopwatch import Mark, Stopwatch, gemm_rate, ratios
from mimbench.system.files import write_json
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import pick_device

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

OPTIONS = {
    "no teacher": "teacher.every=2",
    "teacher.tokens: 0.5": "teacher.tokens=0.5",
    "teacher.tokens: 0.25": "teacher.tokens=0.25",
}
"""Cheaper teachers; the step that is measured is odd, so that every second one has none."""

Times = dict[str, float]


def in_turns(
    steps: Sequence[Callable[[Mark], None]], device: torch.device, repeat: int
) -> list[list[Times]]:
    """Return, for each step, the times by part of `repeat` runs; the first round is thrown away."""
    watch = Stopwatch(device)
    found: list[list[Times]] = [[] for _ in steps]
    for turn in range(repeat + 1):
        for step, kept in zip(steps, found, strict=True):
            watch.start()
            step(watch.mark)
            if turn:
                kept.append(watch.read())
        logger.info("round %d of %d", turn, repeat)
    return found


def totals(found: Sequence[Times]) -> list[float]:
    """Return whole steps."""
    return [sum(times.values()) for times in found]


def against_plain(setting: StepSetting, repeat: int) -> dict[str, Any]:
    """Compare our step with the plain one, after showing that they compute the same."""
    ours = OurStep(setting)
    theirs = plain_twin(ours)
    images = setting.images()
    floats = normalised(ours, images)
    apart = difference(ours, theirs, images[:2])
    if setting.precision == "fp32" and not apart.equal:
        raise RuntimeError(f"the two steps do not compute the same: {apart}")
    spec, hidden = ours.learner.spec, theirs.hidden
    parts = necessary(spec, ours.config.decoder, hidden, predictor=True, teacher=True)
    needed = sum(parts.values())
    counted = {
        "ours": executed(lambda: ours(images[:1])),
        "plain": executed(lambda: theirs(floats[:1])),
    }
    rates: list[float] = []

    def limit(_: Mark) -> None:
        rates.append(gemm_rate(setting.device, DTYPES[setting.precision]))

    steps = [limit, lambda mark: ours(images, mark), lambda mark: theirs(floats, mark)]
    _, own, other = in_turns(steps, setting.device, repeat)
    limits = [needed * setting.batch / rate for rate in rates[1:]]
    tail = ("optimizer", "average")
    return {
        "difference": apart._asdict(),
        "gigaflops_necessary": needed / 1e9,
        "gigaflops_by_part": {name: value / 1e9 for name, value in parts.items()},
        "executed_over_necessary": {name: value / needed for name, value in counted.items()},
        "gemm_gigaflops_per_second": [rate / 1e9 for rate in rates[1:]],
        "ours": own,
        "plain": other,
        "ours_over_plain": ratios(totals(own), totals(other)),
        "without_optimizer_and_average": ratios(
            [sum(t[k] for k in t if k not in tail) for t in own],
            [sum(t[k] for k in t if k not in tail) for t in other],
        ),
        "ours_over_limit": ratios(totals(own), limits),
        "plain_over_limit": ratios(totals(other), limits),
        "optimizer_and_average_over_plain": ratios(
            [sum(t[name] for name in tail) for t in own],
            [sum(t[name] for name in tail) for t in other],
        ),
    }


def against_ourselves(setting: StepSetting, repeat: int) -> dict[str, Any]:
    """Compare our HPM step with our MAE step, and with cheaper teachers."""
    images = setting.images()
    hpm, mae = OurStep(setting), OurStep(setting, MAE)
    usual = hpm.learner.config

    def cheaper(option: str) -> Callable[[Mark], None]:
        config = setting.recipe([*HPM, option])

        def step(mark: Mark) -> None:
            # the same networks: only what the learner reads of its config differs
            hpm.learner.config = config
            hpm(images, mark)
            hpm.learner.config = usual

        return step

    steps = [lambda mark: hpm(images, mark), lambda mark: mae(images, mark)]
    steps += [cheaper(option) for option in OPTIONS.values()]
    found = in_turns(steps, setting.device, repeat)
    out: dict[str, Any] = {"hpm_over_mae": ratios(totals(found[0]), totals(found[1]))}
    for name, times in zip(OPTIONS, found[2:], strict=True):
        out[f"{name}, over usual"] = ratios(totals(times), totals(found[0]))
    return out


def two_steps(kind: str, setting: StepSetting) -> None:
    """Take two steps of one kind: what the memory's peak is measured over."""
    images = setting.images()
    if kind == "ours":
        ours = OurStep(setting)
        for _ in range(2):
            ours(images)
    else:
        step, floats = plain(setting), images.float() / 255
        for _ in range(2):
            step(floats)


def memory(setting: StepSetting) -> dict[str, Any]:
    """Return both steps' peak memory."""
    found = {kind: peak_bytes(two_steps, kind, setting) for kind in ("ours", "plain")}
    return {
        **{f"{k}_mib": v / 2**20 for k, v in found.items()},
        "ours_over_plain": found["ours"] / found["plain"],
    }


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m bench.pretrain_step", description=__doc__)
    add_option(
        out, "--vit", "default: tiny small base", nargs="+", default=["tiny", "small", "base"]
    )
    add_option(out, "--batch", "default: 8", default=8)
    add_option(out, "--repeat", "default: 5", default=5)
    add_option(out, "--parts", "default: all", choices=WHAT, default=list(WHAT))
    add_option(out, "--device")
    add_option(out, "--precision", "default: fp32", choices=sorted(DTYPES), default="fp32")
    add_option(out, "--threads", default=1)
    add_option(out, "--out", "all measurements as JSON", metavar="FILE")
    out.rename(sizes="--vit")
    return out


WHAT = ("plain", "ourselves", "memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = parser().parse_args(argv)
    configure_logging()
    torch.set_num_threads(args.threads)
    # the plain step embeds patches by a convolution, which cuDNN would else take in TF32
    torch.backends.cudnn.allow_tf32 = False
    device, everything = pick_device(args.device), {}
    for size in args.vit:
        setting = StepSetting(size=size, device=device, precision=args.precision, batch=args.batch)
        found: dict[str, Any] = {}
        if "plain" in args.parts:
            found |= against_plain(setting, args.repeat)
            gc.collect()
        if "ourselves" in args.parts:
            found |= against_ourselves(setting, args.repeat)
            gc.collect()
        if "memory" in args.parts:
            found["peak_memory"] = memory(setting)
        everything[size] = found
        sys.stdout.write(table(size, found) + "\n")
        sys.stdout.flush()
        if args.out is not None:
            write_json(args.out, plain_data(everything))
    return 0


if __name__ == "__main__":
    sys.exit(main())
