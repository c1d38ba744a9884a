"""One run: check the data, build the model, train it, score it; what both tasks have in common."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mmengine.dist import broadcast
from safetensors.torch import load_file, save_file
from torch import nn

from mimbench.model import Weights
from mimbench.scores.figures import Figure
from mimbench.scores.label_pictures import SMALL
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, write_text
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult
from mimbench.training.identity import claim, run_identity
from mimbench.training.snapshots import gather
from mimbench.training.watch import StopSignals
from transfer.segmentation.backbone import load
from transfer.segmentation.console import advice, quiet
from transfer.segmentation.convert import BackboneTensors
from transfer.segmentation.data import open_source
from transfer.segmentation.hooks import STATE_FILE, CurveHook, StateHook, StepSeedHook, read_state
from transfer.segmentation.inference import Tested, evaluate
from transfer.segmentation.labels import LabelReport, check_labels
from transfer.segmentation.loop import PlainRunner, runner_options
from transfer.segmentation.prepare import Setup, build_model, set_up
from transfer.segmentation.protocol import SegmentationConfig
from transfer.segmentation.recipe import ModelRecipe, check_batch
from transfer.segmentation.score import Score, sample_parts
from transfer.segmentation.show import show

logger = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
LEFT_BEHIND = 4
"""Pictures that each run leaves for the report, small ones; `--show` makes more and larger ones."""


def run_task(
    task: str,
    version: int,
    weights: Weights,
    config: SegmentationConfig,
    model_recipe: ModelRecipe,
    out: Path,
) -> TaskResult:
    """Train and score; call again to continue an interrupted run.

    Args:
        task: The task's dotted name.
        version: The task's version.
        weights: The checkpoint.
        config: The task's configuration.
        model_recipe: The task's model and optimiser.
        out: Folder for everything that is written.
    """
    out.mkdir(parents=True, exist_ok=True)
    identity = run_identity(task, version, weights, config)
    with process_group(config.machine.device) as ranks, quiet(out, ranks), advice(config):
        setup = set_up(weights.spec, config, model_recipe, ranks, open_source(config))
        check_batch(setup.plan, synchronised=setup.synchronised)
        labels = [check_labels(setup.source, part, show=ranks.main) for part in ("train", "val")]
        claim(out, identity, main=ranks.main)
        if ranks.main:
            write_text(out / "mmengine_config.py", setup.cfg.pretty_text)
        model = build_model(setup)
        kind, crop = model_recipe.kind, config.crop
        used = load(
            cast(nn.Module, model.backbone), weights, kind, crop, tap_norm=model_recipe.tap_norm
        )
        logger.info("backbone %s: %s tensors used", model_recipe.backbone["type"], used.summary)
        _obtain(model, setup, out, identity["digest"])
        tested = evaluate(model, setup.cfg, setup.source, setup.device, out, ranks)
        found = task_result(tested, setup.source.names)
        if not ranks.main:
            return found
        return replace(
            found,
            pictures=show(model, setup.cfg, setup.source, LEFT_BEHIND, largest=SMALL),
            notes=notes(setup, used, labels, tested[""].score),
            ran={**ran(setup), **model_recipe.ran},
        )


def task_result(tested: dict[str, Tested], names: tuple[str, ...]) -> TaskResult:
    """Return what single-scale and, where asked for, multi-scale tests found."""
    metrics: dict[str, float] = {}
    figures = []
    for suffix, test in tested.items():
        metrics |= test.score.metrics(suffix)
        scale = "several scales" if suffix else "one scale"
        for title, values in (("IoU", test.score.iou), ("accuracy", test.score.acc)):
            figures.append(Figure(title=f"{title}, {scale}", values=values))
    return TaskResult(
        metrics=metrics | sample_parts(tested[""].score, names),
        outcomes=[test.confusion for test in tested.values()],
        figures=figures,
    )


def _obtain(model: nn.Module, setup: Setup, out: Path, digest: str) -> None:
    """Train the model, or read it where training is already done."""
    file = out / MODEL_FILE
    check_shared(out, file.is_file())
    if file.is_file():
        model.load_state_dict(load_file(file))
        logger.info("training is already done: %s", file)
        return
    trained = fit(model, setup, out, digest)
    if setup.ranks.main:
        tensors = {k: v.detach().cpu().contiguous() for k, v in trained.state_dict().items()}
        with atomic_path(file) as part:
            save_file(tensors, part)
        (out / STATE_FILE).unlink(missing_ok=True)


def check_shared(out: Path, seen: object) -> None:
    """Refuse to go on where processes find different files: one would wait for the others for ever."""
    found = gather(seen)
    if any(other != found[0] for other in found):
        raise UserError(
            f"the processes see different files in {out} ({found}); on several nodes --out must be a "
            "folder that all of them share"
        )


def fit(model: nn.Module, setup: Setup, out: Path, digest: str) -> nn.Module:
    """Train through mmengine's Runner, from the saved state if there is one; return the model.

    Args:
        model: The segmentor, filled.
        setup: The run's setup.
        out: Folder of the state and the curve.
        digest: The run's identity.
    """
    state = read_state(out / STATE_FILE, digest)
    start = state["step"] if state else 0
    check_shared(out, start)
    if start:
        logger.info("continuing after step %d", start)
    cfg, config = setup.cfg, setup.config
    inner = config.evaluate_every < config.iterations
    validation: dict[str, Any] = {}
    if inner:
        validation = {
            "val_dataloader": cfg.val_dataloader,
            "val_cfg": {"type": "ValLoop"},
            "val_evaluator": cfg.val_evaluator,
        }
    with StopSignals(setup.ranks) as signals:
        runner = PlainRunner(
            chosen=setup.device,
            state=state,
            cfg=cfg,
            model=model,
            train_dataloader=cfg.train_dataloader,
            optim_wrapper=cfg.optim_wrapper,
            param_scheduler=cfg.param_scheduler,
            train_cfg=cfg.train_cfg,
            **validation,
            custom_hooks=[
                StepSeedHook(config.seed),
                CurveHook(out, config.iterations, start),
                StateHook(out / STATE_FILE, digest, signals),
            ],
            **runner_options(cfg, setup.ranks, out, "train"),
        )
        runner.train()
    for buffer in model.buffers():
        broadcast(buffer)
    return model


def ran(setup: Setup) -> dict[str, Any]:
    """Return over how many images batch norm went, where that is not the whole effective batch."""
    whole = setup.normalised == setup.config.batch
    return {} if whole else {"batch_norm_over": setup.normalised}


def notes(
    setup: Setup, used: BackboneTensors, labels: list[LabelReport], single: Score
) -> dict[str, Any]:
    """Return what a reader of the numbers should know beside them."""
    return {
        "backbone": setup.model_recipe.backbone["type"],
        "tensors_used": used.summary,
        "tensors_unused": dict(used.unused),
        "notes": list(setup.model_recipe.notes),
        "unpublished": setup.model_recipe.unpublished,
        "position_rule": getattr(setup.spec, "position_rule", "none"),
        "micro_batch": setup.plan.per_process,
        "micro_steps": setup.plan.micro_steps,
        "processes": setup.ranks.world,
        "batch_norm": setup.batch_norm,
        "mixed_precision": setup.config.precision,
        "selection": "last iteration",
        "classes_averaged": single.averaged,
        "labels": [to_mapping(report) for report in labels],
    }
