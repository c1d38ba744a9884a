"""Images a second of a pretraining step, and the share of the machine's FLOPs that the method uses.

    python -m bench.pretrain_throughput --device cuda --precision bf16 --batch 256 --peak-teraflops 989
    python -m bench.pretrain_throughput --vit tiny --batch 4 --steps 2        # on a CPU

With and without `torch.compile`. The FLOPs are those that the method needs (`bench.pretrain_flops`),
so recomputation does not count; the peak is the vendor's dense one for the precision, and where none
is given the rate of one large matrix product on this machine.
"""

import gc
import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch

from bench.pretrain_flops import necessary
from bench.pretrain_subjects import HPM, MAE, OurStep, StepSetting
from bench.stopwatch import Spread, Stopwatch, gemm_rate
from mimbench.system.files import write_json
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import pick_device

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
METHODS = {"hpm": HPM, "mae": MAE}


def speed(step: OurStep, steps: int) -> Spread:
    """Return images a second of `steps` steps after three that are thrown away."""
    images, watch = step.setting.images(), Stopwatch(step.setting.device)
    found: list[float] = []
    for turn in range(steps + 3):
        watch.start()
        step(images)
        watch.mark("step")
        seconds = watch.read()["step"]
        if turn >= 3:
            found.append(len(images) / max(seconds, 1e-9))
    return Spread(tuple(found))


def measure(setting: StepSetting, method: str, steps: int, *, compiled: bool) -> dict[str, Any]:
    """Return one configuration's images a second and necessary FLOPs a second."""
    step = OurStep(setting, METHODS[method])
    learner = step.learner
    if compiled:
        learner.student.compile()
        if learner.teacher is not None:
            learner.teacher.compile()
    rate = speed(step, steps)
    n = learner.spec.grid[0] * learner.spec.grid[1]
    needed = sum(
        necessary(
            learner.spec,
            step.config.decoder,
            learner.strategy.count(n),
            predictor=method == "hpm",
            teacher=method == "hpm",
        ).values()
    )
    return {"images_per_second": list(rate.values), "flops_per_second": needed * rate.median}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = Parser(prog="python -m bench.pretrain_throughput", description=__doc__)
    add_option(parser, "--vit", "default: base", default="base")
    add_option(parser, "--batch", "default: 64", default=64)
    add_option(parser, "--steps", "default: 20", default=20)
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS),
        help="what to pretrain; default: all",
    )  # fmt: skip
    add_option(parser, "--device")
    add_option(parser, "--precision", "default: fp32", choices=list(DTYPES), default="fp32")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--peak-teraflops", type=float, help="the vendor's, dense")
    add_option(parser, "--out", "all measurements as JSON", metavar="FILE")
    parser.rename(size="--vit")
    args = parser.parse_args(argv)
    configure_logging()
    device = pick_device(args.device)
    setting = StepSetting(size=args.vit, device=device, precision=args.precision, batch=args.batch)
    peak = (args.peak_teraflops or 0) * 1e12 or gemm_rate(device, DTYPES[args.precision])
    everything: dict[str, Any] = {"peak_flops_per_second": peak}
    sys.stdout.write(f"{'step':<16}{'images/s':>10}{'of the peak':>13}\n")
    for method in args.methods:
        for compiled in (False,) if args.no_compile else (False, True):
            name = f"{method}, compiled" if compiled else method
            found = measure(setting, method, args.steps, compiled=compiled)
            everything[name] = found
            rate = Spread(tuple(found["images_per_second"])).median
            sys.stdout.write(f"{name:<16}{rate:>10.1f}{found['flops_per_second'] / peak:>13.1%}\n")
            sys.stdout.flush()
            gc.collect()
    if args.out is not None:
        write_json(args.out, everything)
    return 0


if __name__ == "__main__":
    sys.exit(main())
