"""Small runs that tests share; python -m tests.support.segmentation_runs is a process of the two-node test."""

import hashlib
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn
from torch.distributed import barrier

from mimbench.benchmarks.records import keep_outcomes
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks, process_group
from mimbench.task import Machine, load_task
from mimbench.training.watch import Preempted
from mimbench.vit.weights import VitSpec, random_weights
from transfer.segmentation import hooks, linear, train, upernet

SPEC = VitSpec(embed_dim=24, depth=4, num_heads=3, mlp_dim=48, patch_size=16, grid=(2, 2))
WEIGHTS = random_weights(SPEC, seed=0)
CPU = Machine(device="cpu", workers=0, max_batch=2)
SHORT = {
    "crop": (64, 64), "scale": (256, 64), "stride": (43, 43), "iterations": 6, "warmup": 2,
    "batch": 4, "precision": "fp32", "lr": 1e-2, "machine": CPU,
}  # fmt: skip


def upernet_config(ade: Path, **fields: object) -> upernet.Config:
    options = {"channels": 16, "aux_channels": 8, "evaluate_every": 4} | SHORT | fields
    return upernet.Config(data=ade, **options)  # pyright: ignore[reportArgumentType]


def linear_config(ade: Path, **fields: object) -> linear.Config:
    """Without batch norm and dropout: the same whatever the micro-batches."""
    options = {"head_norm": False, "dropout": 0.0} | SHORT | fields
    return linear.Config(data=ade, **options)  # pyright: ignore[reportArgumentType]


def digest(model: nn.Module) -> str:
    """Return a digest of every parameter and running statistic."""
    content = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        content.update(name.encode() + value.numpy().tobytes())
    return content.hexdigest()


def signal_at(step: int, rank: int) -> None:
    """Send the signal of a preempted job to this process after a step, once."""
    original = hooks.StateHook.after_train_iter

    def after(self: hooks.StateHook, runner: Runner, batch_idx: int, **rest: Any) -> None:
        if batch_idx + 1 == step and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGUSR1)
        original(self, runner, batch_idx, **rest)

    hooks.StateHook.after_train_iter = after  # pyright: ignore[reportAttributeAccessIssue]


def main(ade: Path, out: Path) -> None:
    """Run both tasks, an interrupted one, and one whose processes share no folder."""
    digests: list[str] = []
    fit = train.fit

    def watched(*args: Any) -> nn.Module:
        model = fit(*args)
        digests.append(digest(model))
        return model

    train.fit = watched
    with process_group("cpu") as ranks:
        results = {
            "linear": linear.run(WEIGHTS, linear_config(ade), out / "linear"),
            "upernet": upernet.run(WEIGHTS, upernet_config(ade), out / "upernet"),
        }
        if ranks.main:
            keep_outcomes(out, results["upernet"].outcomes, load_task(upernet.__name__))
        found = {
            **{task: dict(result.metrics) for task, result in results.items()},
            "notes": {task: dict(result.notes) for task, result in results.items()},
            "refusal": refusal(ade, out, ranks),
            "left_at": leave_and_return(ade, out),
        }
    (out / f"found-{ranks.rank}.json").write_text(json.dumps(found | {"digests": digests}))


def refusal(ade: Path, out: Path, ranks: Ranks) -> str:
    """Return what is said when only one of two nodes finds the finished model."""
    own = out / f"node-{ranks.rank}"
    own.mkdir()
    if ranks.main:
        for name in ("run.json", train.MODEL_FILE):
            shutil.copy(out / "linear" / name, own / name)
    try:
        linear.run(WEIGHTS, linear_config(ade), own)
    except UserError as error:
        return str(error)
    return ""


def leave_and_return(ade: Path, out: Path) -> int:
    """Interrupt UperNet by a signal that only the second process gets, then finish it."""
    original = hooks.StateHook.after_train_iter
    signal_at(3, rank=1)
    config = replace(upernet_config(ade), evaluate_every=6)
    left = 0
    try:
        upernet.run(WEIGHTS, config, out / "interrupted")
    except Preempted:
        barrier()  # the file is the first process's
        left = torch.load(out / "interrupted" / hooks.STATE_FILE, weights_only=True)["step"]
    hooks.StateHook.after_train_iter = original
    upernet.run(WEIGHTS, config, out / "interrupted")
    return left


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
