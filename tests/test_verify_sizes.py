"""A value that was spelled out and that the model gets anyway is proven by the model's name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import load_manifest
from mimbench.benchmarks.run_config import (
    CONFIG_FILE,
    RunConfig,
    changed,
    protocol_config,
    write_run_config,
)
from mimbench.results.record import Result, protocol_digest
from mimbench.suite.sharing.recomputing import Checked, check_run
from mimbench.system.config import from_mapping, merge, to_mapping
from mimbench.task import load_task, traits_of
from mimbench.vit.named import published_spec, spec_named
from mimbench.vit.sizes import SIZES
from mimbench.vit.weights import VitSpec
from tests.support.results_folder import SOURCE

NAME = "in-ft-hpm"
ODD = VitSpec(embed_dim=192, depth=2, num_heads=3, mlp_dim=768, patch_size=16, grid=(14, 14))


def checked(tmp_path: Path, spec: VitSpec, said: dict[str, Any], *, model: str = "") -> Checked:
    """Check a run of NAME whose user spelled values out; it failed, so that it needs no outcomes."""
    manifest = load_manifest()
    dataset, recipe = manifest.recipe(NAME, "paper")
    task = load_task(manifest.benchmarks[NAME].task)
    config = from_mapping(task.Config, {**merge(recipe, said), "data": "x"}, NAME)
    traits = traits_of(task)
    run = RunConfig(
        benchmark=NAME,
        task=manifest.benchmarks[NAME].task,
        profile="paper",
        dataset=dataset,
        checkpoint=tmp_path / "gone.pth",
        config=to_mapping(config),
        overrides={NAME: said},
        weights_digest="a" * 64,
    )
    counted = protocol_config(dataset, config, traits, spec, run.overrides)
    assert traits.resolved is not None
    result = Result(
        benchmark=NAME,
        task=run.task,
        version=task.VERSION,
        main_metric="top1",
        profile="paper",
        protocol=protocol_digest(run.task, task.VERSION, counted),
        metrics={},
        config=counted,
        weights={"name": "odd", "digest": "a" * 64, "which": "student", "model": model or spec.model},
        status="failed",
        provenance=replace(SOURCE, seed=0),
        overrides=changed(run),
        resolved=to_mapping(traits.resolved(spec, config)),
    )  # fmt: skip
    folder = tmp_path / f"{'a' * 12}-odd" / f"{NAME}.{result.protocol[:6]}"
    folder.mkdir(parents=True)
    write_run_config(folder / CONFIG_FILE, run)
    return check_run(folder, result, manifest, manifest.tasks)


def usual(spec: VitSpec) -> dict[str, Any]:
    """Return what the recipe means for a size."""
    task = load_task(load_manifest().benchmarks[NAME].task)
    _, recipe = load_manifest().recipe(NAME, "paper")
    config = from_mapping(task.Config, {**recipe, "data": "x"}, NAME)
    resolved = traits_of(task).resolved
    assert resolved is not None
    return to_mapping(resolved(spec, config))


def published(letter: str) -> VitSpec:
    spec = published_spec(f"{letter}/16")
    assert spec is not None
    return spec


@pytest.mark.parametrize("spec", [ODD, published("B"), published("L")])
def test_what_a_size_gets_anyway_is_proven_by_its_name(tmp_path: Path, spec: VitSpec) -> None:
    """192x2/16 is of no published size: its values were "not proven", so that --strict failed."""
    own = usual(spec)
    found = checked(tmp_path, spec, {"layer_decay": own["layer_decay"], "epochs": own["epochs"]})
    assert (found.faults, found.unproven) == ([], [])


def test_a_value_that_the_named_size_does_not_get_is_found(tmp_path: Path) -> None:
    """The result leaves out what L gets anyway, and the name says that it is B."""
    base, large = usual(published("B")), usual(published("L"))
    said = {name: value for name, value in large.items() if value != base[name]}
    found = checked(tmp_path, published("L"), said, model="B/16")
    assert said
    assert [name for name in said if not any(name in text for text in found.unproven)] == []


def test_a_name_says_what_it_was_made_of() -> None:
    assert spec_named(ODD.model) == replace(ODD, num_heads=1)
    for size in SIZES.values():
        spec = spec_named(f"{size.letter}/14")
        assert spec is not None
        assert spec == published_spec(f"{size.letter}/14")
        assert (spec.embed_dim, spec.depth, spec.num_heads, spec.grid) == (size.embed_dim, size.depth, size.num_heads, (16, 16))  # fmt: skip
        assert spec.model == f"{size.letter}/14"


@pytest.mark.parametrize(
    "name",
    ["", "B", "B/", "B/0", "B/-1", "B/²", "B/1_6", "X/16", "64x2/0", "64x/16", "0x2/16", f"{9:099}x2/16",
     "64x999999999/16", "64x2/16\n", "ConvNeXt-T", "64x2"],
)  # fmt: skip
def test_another_name_says_nothing_and_costs_nothing(name: str) -> None:
    """B/0 was divided by, B/² was an integer to `isdigit` and none to `int`."""
    assert spec_named(name) is None
