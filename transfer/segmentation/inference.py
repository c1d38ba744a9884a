"""Tests a segmentor through mmengine: sliding windows, then several scales and flips."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list
from torch import nn

from mimbench.scores.confusion import Confusion
from mimbench.system.runtime import Ranks
from transfer.segmentation.data import DataSource
from transfer.segmentation.hooks import TestProgressHook
from transfer.segmentation.loop import PlainRunner, runner_options
from transfer.segmentation.multiscale import StreamingTTA
from transfer.segmentation.score import ConfusionMetric, Score, score


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One way of testing a segmentor: its figures, and the counts that they are made of."""

    score: Score
    confusion: Confusion


def evaluate(
    model: nn.Module,
    cfg: Config,
    source: DataSource,
    device: torch.device,
    out: Path,
    ranks: Ranks,
) -> dict[str, Tested]:
    """Return what was found by suffix: '' for one scale, '_ms' for several scales and flips.

    Args:
        model: The trained segmentor.
        cfg: The run's mmengine configuration.
        source: The data.
        device: Where to test.
        out: Folder of mmengine's own files.
        ranks: This process among its peers.
    """
    found = {}
    for suffix, several in (("", False), ("_ms", True)):
        if several and not _scales(cfg):
            continue
        confusion = confusion_of(model, cfg, source, device, out, ranks, several=several)
        confusion = replace(confusion, suffix=suffix)
        found[suffix] = Tested(score=score(confusion, source.names), confusion=confusion)
    return found


def _scales(cfg: Config) -> list[Any]:
    return cfg.tta_pipeline[-1]["transforms"][0]


def confusion_of(
    model: nn.Module,
    cfg: Config,
    source: DataSource,
    device: torch.device,
    out: Path,
    ranks: Ranks,
    *,
    several: bool,
) -> Confusion:
    """Return each validation image's counts, on every process."""
    loader = dict(cfg.val_dataloader)
    label = "test"
    if several:
        loader["dataset"] = {**source.dataset("val", list(cfg.tta_pipeline))}
        model, label = StreamingTTA(cast(Any, model)), "multi-scale test"
    metric = ConfusionMetric()
    runner = PlainRunner(
        chosen=device,
        cfg=Config({"default_scope": cfg.default_scope}),
        model=model,
        test_dataloader=loader,
        test_cfg={"type": "TestLoop"},
        test_evaluator=[metric],
        custom_hooks=[TestProgressHook(label)],
        **runner_options(cfg, ranks, out, label.replace(" ", "-")),
    )
    runner.test()
    found: list[Any] = [metric.confusion]
    broadcast_object_list(found)
    confusion = cast(Confusion, found[0])
    names = [str(Path(name).relative_to(source.root)) for name in confusion.images]
    return replace(confusion, images=tuple(names))
