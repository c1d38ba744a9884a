"""Every recipe as it resolves, kept in a file: a default that moves is a number that moves.

MIMBENCH_RENEW_RECIPES=1 .venv/bin/python -m pytest -q tests/test_golden_recipes.py
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import PROFILES, Effect, Manifest, load_manifest
from mimbench.benchmarks.run_config import NOT_PROTOCOL
from mimbench.system.config import from_mapping, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import write_text
from mimbench.tables.differences import flatten
from mimbench.task import Machine, load_task, traits_of
from mimbench.vit.named import published_spec as spec_of
from pretrain.config import CONFIGS
from pretrain.objectives.recipes import DISTILLATION, DISTILLATION_BASE, read_recipe
from tests.support.declared import constants, task_traits

GOLDEN = Path(__file__).parent / "golden_tables" / "recipes.json"
RENEW = "MIMBENCH_RENEW_RECIPES"
SIZES = ("Ti/16", "S/16", "B/16", "L/16", "H/16")
Recipes = dict[str, dict[str, Any]]
"""Name -> dotted field -> value, as JSON carries it."""


def flat(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(flatten(to_mapping(config))))


def benchmark_recipes() -> Recipes:
    """Every benchmark under each of its profiles, and what the model's size decides of it."""
    manifest, found = load_manifest(), {}
    for name, benchmark in manifest.benchmarks.items():
        task = load_task(benchmark.task)
        traits = traits_of(task)
        for profile in PROFILES:
            if profile not in benchmark.profiles:
                continue
            dataset, recipe = manifest.recipe(name, profile)
            # the mean over several sets looks for them wherever a folder is named
            data = "." if "sets" in recipe or benchmark.task.endswith(".twelve") else "DATA"
            config = from_mapping(task.Config, {**recipe, "data": data}, name)
            about = {"task": benchmark.task, "version": task.VERSION, "dataset": dataset}
            found[f"{name} {profile}"] = {**flat(config), **about, **manifest.limits(name, profile)}
            for size in SIZES:
                # a recipe for networks with levels refuses plain ViTs; its sizes have a table below
                with suppress(UserError):
                    if traits.resolved and (spec := spec_of(size)):
                        decided = flat(traits.resolved(spec, config))
                        found |= {f"{name} {profile} {size}": decided} if decided else {}
    return found


def pretraining_recipes() -> Recipes:
    """Every pretraining recipe over its base."""
    return {
        f"pretrain {path.stem}": flat(read_recipe(str(path), []))
        for folder in (CONFIGS, DISTILLATION)
        for path in sorted(folder.glob("*.yaml"))
        if path != DISTILLATION_BASE
    }


def size_tables() -> Recipes:
    """The tables of what differs by size and family, also where no benchmark names them."""
    from transfer.classification.recipes import RECIPES
    from transfer.classification.staged_recipes import STAGED
    from transfer.detection import fpn_recipes
    from transfer.detection.protocol import TABLE
    from transfer.segmentation import levels, protocol

    tables: dict[str, Mapping[Any, Any]] = {
        "sizes of fine-tuning": RECIPES,
        "sizes of fine-tuning with levels": STAGED,
        "sizes of detection": TABLE,
        "sizes of detection with levels": fpn_recipes.OPTIMA,
        "sizes of segmentation": protocol.OPTIMA,
        "sizes of segmentation with levels": levels.OPTIMA,
    }
    return {name: json.loads(json.dumps(flatten(plain(table)))) for name, table in tables.items()}


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    return {k: str(v) if k == "share" else v for k, v in vars(value).items()}


@cache
def recipes() -> Recipes:
    pytest.importorskip("detectron2")
    pytest.importorskip("mmseg")
    return {
        **benchmark_recipes(),
        **pretraining_recipes(),
        **size_tables(),
        **constants(),
        **task_traits(),
    }


def changes(before: Recipes, after: Recipes) -> list[str]:
    """One line for each field that is not what it was."""
    lines = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, {}), after.get(name, {})
        if not old or not new:
            lines.append(f"{name}: {'a new recipe' if new else 'no longer there'}")
            continue
        lines += [
            f"{name}: {field}: {old.get(field, 'absent')!r} -> {new.get(field, 'absent')!r}"
            for field in sorted({*old, *new})
            if old.get(field, "absent") != new.get(field, "absent")
        ]
    return lines


def advice(found: list[str]) -> str:
    return (
        f"{len(found)} fields of the recipes changed:\n  " + "\n  ".join(found[:40]) + "\n"
        "If that was meant: put it under Numbers in CHANGELOG.md, raise VERSION where a number moves, "
        f"and renew the file: {RENEW}=1 .venv/bin/python -m pytest -q tests/test_golden_recipes.py"
    )


def test_every_recipe_is_what_it_was() -> None:
    now = recipes()
    if os.environ.get(RENEW) == "1":
        write_text(GOLDEN, json.dumps(now, indent=0, sort_keys=True) + "\n")
    found = changes(json.loads(GOLDEN.read_text(encoding="utf-8")), now)
    assert not found, advice(found)


def test_nothing_is_missing() -> None:
    """Every benchmark, profile, pretraining recipe and published size stands in the file."""
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))
    manifest = load_manifest()
    wanted = {f"{n} {p}" for n, b in manifest.benchmarks.items() for p in b.profiles}
    wanted |= {f"pretrain {p.stem}" for p in CONFIGS.glob("*.yaml")}
    wanted |= {f"pretrain {p.stem}" for p in DISTILLATION.glob("*.yaml") if p != DISTILLATION_BASE}
    assert wanted <= kept.keys()
    assert {"in-ft-hpm paper L/16", "coco-vitdet-100 paper H/16"} <= kept.keys()
    assert kept["in-ft-mae paper L/16"]["epochs"] == 50
    assert kept["constants pretrain.objectives.distill.views"]["BLUR_SIGMA"] == [0.1, 2.0]
    assert Machine().max_batch == kept["in-knn paper"]["machine.max_batch"]


def test_a_changed_field_is_named_with_what_to_do() -> None:
    before = recipes()
    after = {k: dict(v) for k, v in before.items()}
    after["in-ft-mae paper"]["min_lr"] = 0.0
    del after["pretrain hpm_vit_base_16"]["mask.ratio"]
    after["in-new paper"] = {"k": 1}
    found = changes(before, after)
    assert found == [
        "in-ft-mae paper: min_lr: 1e-06 -> 0.0",
        "in-new paper: a new recipe",
        "pretrain hpm_vit_base_16: mask.ratio: 0.75 -> 'absent'",
    ]
    assert "Numbers in CHANGELOG" in advice(found)
    assert RENEW in advice(found)


def unmatched(effects: Sequence[Effect], manifest: Manifest, kept: Recipes) -> list[str]:
    """Names of effects that no field of any benchmark of their groups has, and groups that match none."""
    words: dict[str, set[str]] = {}
    for name, benchmark in manifest.benchmarks.items():
        for recipe in (kept[key] for key in kept if key.split(" ")[0] == name):
            for field in {f for f in recipe if f.split(".")[0] not in NOT_PROTOCOL}:
                words.setdefault(benchmark.group, set()).update({field, *field.split(".")})
    found = []
    for effect in effects:
        groups = effect.groups or tuple(words)
        found += [f for f in effect.fields if not any(f in words[group] for group in groups)]
        found += [group for group in groups if not words[group] & set(effect.fields)]
    return found


def test_every_known_effect_belongs_to_a_field() -> None:
    """10 of 26 named a field that nothing has (`multi_scale`), so that `compare` never showed them."""
    manifest, kept = load_manifest(), json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert unmatched(manifest.effects, manifest, kept) == []
    wrong = [
        Effect(fields=("multi_scale",), known="x", source="y", groups=("segmentation",)),
        Effect(fields=("multiscale",), known="x", source="y", groups=("segmentation", "knn")),
        Effect(fields=("seed",), known="x", source="y", groups=("finetune",)),
    ]
    assert unmatched(wrong, manifest, kept) == [
        "multi_scale",
        "segmentation",
        "knn",
        "seed",
        "finetune",
    ]
