"""The frozen set: everything that a frozen backbone is asked, one bank for all that see the same pixels."""

from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import load_manifest
from mimbench.commands import run as command
from mimbench.sample import generate
from mimbench.system.errors import UserError
from mimbench.system.options import Parser
from mimbench.task import load_task, traits_of

MANIFEST = load_manifest()
SET = MANIFEST.sets["frozen"]


def request(*arguments: str) -> Any:
    parser = Parser(prog="run")
    command.add_arguments(parser)
    return command.request_of(parser.parse_args(["ckpt.pth", *arguments]), MANIFEST)


def test_the_set_has_every_frozen_task_under_its_published_recipe() -> None:
    found = request("--profile", "frozen", "--data", "somewhere")
    assert found.profile == "paper"
    assert tuple(found.benchmarks) == SET
    groups = {MANIFEST.benchmarks[name].group for name in SET}
    assert groups >= {"attentive", "dense", "layer-sweep", "label-free", "knn", "linear"}
    assert {"coco-vitdet-frozen", "ade-ft-linear", "voc-dense-knn", "in-attn-capi"} <= set(SET)


def test_on_the_sample_data_the_set_takes_its_recipes_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = request("--profile", "frozen", "--data", "sample")
    assert (found.profile, found.data) == ("demo", None)
    assert set(found.benchmarks) == {n for n in SET if "demo" in MANIFEST.benchmarks[n].profiles}
    assert len(found.benchmarks) == 9
    root = tmp_path / "made"
    generate(root, train_per_class=1, val_per_class=1, train_scenes=2, val_scenes=1)
    assert request("--profile", "frozen", "--data", str(root)).profile == "demo"
    with pytest.raises(UserError, match="none of voc-dense-knn has a recipe for the sample data"):
        request("--profile", "frozen", "--data", "sample", "--only", "voc-dense-knn")
    # a folder of that name is a folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    assert request("--profile", "frozen", "--data", "sample").profile == "paper"


def test_the_demo_shows_every_frozen_task_that_the_sample_data_has() -> None:
    on_sample = {name for name in SET if "demo" in MANIFEST.benchmarks[name].profiles}
    # measures without a better and a worse have no lead to show
    assert on_sample - {"in-label-free"} <= set(MANIFEST.defaults["demo"])


@pytest.mark.parametrize(
    ("dataset", "profile"), [("ade", "paper"), ("ade", "demo"), ("voc", "paper")]
)
def test_tasks_that_see_the_same_pixels_share_a_bank(dataset: str, profile: Any) -> None:
    names = [f"{dataset}-patch-knn", f"{dataset}-patch-logreg"]
    fields = ("image_size", "interpolation", "storage", "precision", "train_pictures", "labels")
    one, other = (
        {field: MANIFEST.recipe(name, profile)[1].get(field) for field in fields} for name in names
    )
    assert one == other
    assert names[0] in MANIFEST.benchmarks[names[1]].after


@pytest.mark.parametrize(
    ("benchmark", "title", "metric", "words"),
    [
        ("in-layers", "k-NN, chosen block", "top1_last", "last block"),
        ("ade-layers", "ADE20K patch k-NN, chosen block", "miou_last", "last block"),
        (
            "in-attn-ep",
            "attentive probe",
            "top1_best_on_val",
            "best epoch on val, the published style",
        ),
        ("ade-dense-knn", "ADE20K dense k-NN mIoU", "miou_identity", "without matching"),
    ],
)
def test_the_table_names_what_stands_beside(
    benchmark: str, title: str, metric: str, words: str
) -> None:
    entry = MANIFEST.benchmarks[benchmark]
    assert entry.title == title
    assert traits_of(load_task(entry.task)).beside[metric] == words
