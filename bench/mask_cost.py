"""What a masking strategy adds to a training step: AttMask to iBOT's, every strategy to MAE's.

    python -m bench.mask_cost [--vit small] [--batch 2] [--repeat 8] [--out FILE]

Distillation: one ViT with its teacher takes the same step on the same crops with random, block-wise
and attention-guided masks. Reconstruction: MAE's step beside those of the strategies that ask a
teacher or a scorer, all at the same mask ratio. Steps are timed in turns and ratios taken within
each round; the median is given with the smallest and largest. With one thread on a CPU the clock
is the process's own processor time, so that a busy machine disturbs little.
"""

import gc
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.pretrain_flops import executed
from bench.stopwatch import Spread, Stopwatch, ratios
from mimbench.checkpoints.files import write_weights
from mimbench.system.files import write_json
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import autocast, pick_device
from mimbench.training.batches import Batch
from mimbench.training.learner import Learner, StepInfo
from mimbench.training.optim import set_lr
from mimbench.vit.weights import random_weights
from pretrain import masks
from pretrain.config import read_config
from pretrain.objectives.distill.config import DistillConfig
from pretrain.objectives.distill.learner import Distillation
from pretrain.objectives.recipes import read_recipe
from pretrain.train import build_learner

logger = logging.getLogger(__name__)

EPOCHS, PER_EPOCH = 100, 10
LOCALS = 4
"""Local crops of an image; fewer than the published ten weigh the masks' share up, not down."""
WITHIN_IBOT: Mapping[str, Mapping[str, Any]] = {
    "random": {"name": "random"},
    "block": {"name": "block"},
    "attention high": {"name": "attention", "order": "high"},
    "attention hint": {"name": "attention", "order": "hint"},
}
WITHIN_MAE: Mapping[str, Sequence[str]] = {
    "random": ("mask.name=random",),
    "grid": ("mask.name=grid", "mask.ratio=0.75"),
    "block": ("mask.name=block", "mask.ratio=0.75"),
    "attention": ("mask.name=attention",),
    "curriculum": ("mask.name=curriculum",),
    "adversarial, own average as scorer": ("mask.name=adversarial",),
    "adversarial, frozen scorer": ("mask.name=adversarial", "mask.scorer={scorer}"),
}
Step = Callable[[], None]


def take_step(
    learner: Learner, data: Any, at: StepInfo, precision: Any, clip: float | None
) -> None:
    """Take one optimizer step as the loop does."""
    count = len(data["global"]) if isinstance(data, dict) else len(data)
    batch = Batch(torch.arange(count), data, ())
    learner.optimizer.zero_grad(set_to_none=True)
    with autocast(next(learner.model.parameters()).device, precision):
        figures = learner.loss(learner.model, batch, at)
    figures["loss"].backward()
    if clip is not None:
        trained = [p for g in learner.optimizer.param_groups for p in g["params"]]
        torch.nn.utils.clip_grad_norm_(trained, clip, foreach=True)
    learner.before_update(at)
    learner.optimizer.step()
    learner.after_update(at)


def step_info(batch: int) -> StepInfo:
    """Return a moment late enough that nothing is frozen or warming up."""
    return StepInfo(step=505, steps_per_epoch=PER_EPOCH, epochs=EPOCHS, batch=batch)


def pictures(*shape: int) -> Tensor:
    """Return crops as the loader hands them over, of noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def within_ibot(size: str, batch: int, device: torch.device, precision: str) -> dict[str, Step]:
    """Return name -> a step of one and the same iBOT learner under those masks."""
    overrides = [f"encoder.size={size}", f"training.batch={batch}", f"data.locals={LOCALS}"]
    overrides += [f"training.precision={precision}", "drop_path=0"]
    config = read_recipe("attmask_vit_small_16_100", overrides)
    assert isinstance(config, DistillConfig)
    torch.manual_seed(0)
    learner = Distillation(config, device, Path("unused"))
    set_lr(learner.optimizer, 1e-6)
    data = {
        "global": pictures(batch, 2, 3, 224, 224).to(device),
        "local": pictures(batch, LOCALS, 3, 96, 96).to(device),
    }

    def under(mask: Mapping[str, Any]) -> Step:
        strategy = masks.build(mask)

        def step() -> None:
            learner.strategy = strategy
            take_step(learner, data, step_info(batch), precision, None)

        return step

    return {name: under(mask) for name, mask in WITHIN_IBOT.items()}


def within_mae(
    size: str, batch: int, device: torch.device, precision: str, folder: Path
) -> dict[str, Step]:
    """Return name -> a step of reconstruction under those masks, each with its own learner."""
    own = [f"encoder.size={size}", f"training.batch={batch}", "training.epochs=100"]
    own += [f"training.precision={precision}"]
    scorer = folder / "scorer.safetensors"
    plain = read_config("mae_vit_base_16", own)
    write_weights(scorer, random_weights(plain.encoder.spec(plain.data), 1))
    data = pictures(batch, 3, 224, 224).to(device)

    def under(changes: Sequence[str]) -> Step:
        config = read_config("mae_vit_base_16", [*own, *(c.format(scorer=scorer) for c in changes)])
        torch.manual_seed(0)
        learner = build_learner(config, device, folder)
        set_lr(learner.optimizer, 1e-6)
        return lambda: take_step(learner, data, step_info(batch), precision, 5.0)

    return {name: under(changes) for name, changes in WITHIN_MAE.items()}


def measure(steps: Mapping[str, Step], device: torch.device, repeat: int) -> dict[str, Any]:
    """Return each step's time and FLOPs over the first one's."""
    flops = {name: executed(step) for name, step in steps.items()}
    watch, seconds = Stopwatch(device), {name: list[float]() for name in steps}
    for turn in range(repeat + 1):
        for name, step in steps.items():
            watch.start()
            step()
            watch.mark("step")
            # the first round finds memory and kernels
            if turn:
                seconds[name].append(watch.read()["step"])
        logger.info("round %d of %d", turn, repeat)
    first = next(iter(steps))
    return {
        name: {
            "seconds": Spread(tuple(seconds[name])),
            "time_over_first": ratios(seconds[name], seconds[first]),
            "flops_over_first": flops[name] / flops[first],
        }
        for name in steps
    }


def table(title: str, found: Mapping[str, Any]) -> str:
    """Return one comparison for people."""
    lines = [title, f"  {'masks':<36}{'seconds':>9}  {'time':<24}FLOPs"]
    for name, row in found.items():
        lines.append(
            f"  {name:<36}{row['seconds'].median:>9.3f}  {row['time_over_first']!s:<24}"
            f"{row['flops_over_first']:.4f}"
        )
    return "\n".join(lines)


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m bench.mask_cost", description=__doc__)
    add_option(out, "--vit", "default: small", default="small")
    add_option(out, "--batch", "default: 2", default=2)
    add_option(out, "--repeat", "default: 8", default=8)
    add_option(out, "--parts", "default: both", choices=("ibot", "mae"), default=["ibot", "mae"])
    add_option(out, "--device")
    add_option(out, "--precision", "default: fp32", choices=("fp32", "bf16"), default="fp32")
    add_option(out, "--threads", default=1)
    add_option(out, "--out", "all measurements as JSON", metavar="FILE")
    out.rename(size="--vit")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = parser().parse_args(argv)
    configure_logging()
    torch.set_num_threads(args.threads)
    device, kept = pick_device(args.device), {}
    setting = (args.vit, args.batch, device, args.precision)
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            steps = within_ibot(*setting) if part == "ibot" else within_mae(*setting, Path(folder))
            found = measure(steps, device, args.repeat)
            kept[part] = {
                name: {k: v.values if isinstance(v, Spread) else v for k, v in row.items()}
                for name, row in found.items()
            }
            title = {"ibot": "iBOT's step", "mae": "MAE's step"}[part]
            sys.stdout.write(table(f"{title}, ViT-{args.vit}, over random masks", found) + "\n")
            sys.stdout.flush()
            del steps
            gc.collect()
    if args.out is not None:
        write_json(args.out, kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
