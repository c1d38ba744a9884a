"""Two runs of one recipe share a digest, and other data is another run: content counts, not places."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import load_manifest
from mimbench.benchmarks.run_config import task_protocol
from mimbench.data.digest import data_digest
from mimbench.system.config import from_mapping, merge
from mimbench.task import load_task, traits_of
from mimbench.vit.named import published_spec as spec_of
from mimbench.vit.weights import VitSpec

LIGHT = ["in-knn", "in-logreg", "in-lin-mae", "in-ft-hpm", "in-shot-5", "in-1pct"]
HEAVY = ["coco-vitdet-12", "ade-upernet-160", "ade-linear-40"]


def digest(name: str, spec: VitSpec | None = None, **changes: Any) -> str:
    """Return the protocol digest of a paper recipe under changes that the user said."""
    manifest = load_manifest()
    dataset, recipe = manifest.recipe(name, "paper")
    task = load_task(manifest.benchmarks[name].task)
    config = from_mapping(task.Config, {**merge(recipe, changes), "data": "x"}, name)
    said = {name: changes}
    return task_protocol("t", task.VERSION, dataset, config, traits_of(task), spec, said)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("in-knn", {"choices": ["cls"]}),
        ("in-knn", {"choices": ["cls", "cls4"]}),
        ("in-knn", {"k": [20]}),
        ("in-knn", {"temperature": [0.07, 0.1]}),
        ("in-knn", {"index": {"probes": 8, "lists": 16}}),
        ("in-knn", {"source": {"name": "tar"}}),
        ("in-knn", {"seed": 5}),
        ("in-logreg", {"choices": ["cls", "avg", "cls4"]}),
        ("in-lin-mae", {"eval_every": 10}),
        ("in-ft-hpm", {"eval_every": 10}),
        ("in-ft-hpm", {"source": {"name": "tar"}}),
        ("in-ft-hpm", {"machine": {"max_batch": 2}}),
        ("in-shot-5", {"methods": ["knn"]}),
        ("in-shot-5", {"grid": {"steps": 3}, "c_without_choice": 1.0}),
        ("in-shot-1", {"k": 5}),
        ("in-1pct", {"methods": ["logreg"], "k": 3, "temperature": 0.1, "order": "random"}),
    ],
)
def test_what_cannot_move_the_number_is_in_no_digest(name: str, changes: dict[str, Any]) -> None:
    assert digest(name, **changes) == digest(name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("in-knn", {"choices": ["avg", "cls"]}),
        ("in-knn", {"main_k": 10}),
        ("in-knn", {"index": {"kind": "ivf", "probes": 8}}),
        ("in-knn", {"index": {"kind": "ivf"}}),
        ("in-lin-dino", {"eval_every": 10}),
        ("in-ft-hpm", {"report": "best"}),
        ("in-shot-5", {"methods": ["logreg", "knn"]}),
        ("in-shot-5", {"k": 5}),
        ("in-1pct", {"draws": 4}),
    ],
)
def test_what_moves_the_number_is(name: str, changes: dict[str, Any]) -> None:
    assert digest(name, **changes) != digest(name)


@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("coco-vitdet-12", {"eval_every": 0}, {"images": 1_420_016}),
        ("ade-upernet-160", {"multiscale": [], "evaluate_every": 8_000}, {"family": "ibot"}),
        ("ade-linear-40", {"evaluate_every": 8_000}, {"levels": "four"}),
    ],
)
def test_scores_on_the_way_and_beside_are_in_no_digest(
    name: str, same: dict[str, Any], other: dict[str, Any]
) -> None:
    pytest.importorskip("detectron2" if name.startswith("coco") else "mmseg")
    assert digest(name, **same) == digest(name)
    assert digest(name, **other) != digest(name)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("in-ft-hpm", {"lr": 5e-4, "epochs": 100}),
        ("in-ft-hpm", {"epochs": 100, "layer_decay": 0.8, "batch": 384}),
        ("in-ft-mae", {"epochs": 100, "layer_decay": 0.65}),
        ("coco-vitdet-100", {"images": 11_800_000, "layer_decay": 0.7}),
        ("ade-upernet-160", {"lr": 1e-4, "channels": 768, "taps": [3, 5, 7, 11]}),
    ],
)
def test_a_value_of_the_models_size_is_the_same_spelled_out_or_not(
    name: str, own: dict[str, Any]
) -> None:
    """For the size whose value it is; for another size it is another recipe, as any other value is."""
    pytest.importorskip("detectron2" if name.startswith("coco") else "mmseg")
    base, large = spec_of("B/16"), spec_of("L/16")
    assert digest(name, base, **own) == digest(name, base) == digest(name)
    assert digest(name, large) == digest(name), "sizes share a column"
    assert digest(name, large, **own) != digest(name)
    [field, *_] = own
    value = own[field] * 2
    assert digest(name, base, **{field: value}) == digest(name, large, **{field: value})


def test_what_a_recipe_says_for_every_size_stays_even_where_it_is_one_sizes_own() -> None:
    task = load_task("transfer.classification.finetune")
    config = from_mapping(task.Config, {"data": "x", "recipe": "hpm", "epochs": 100})
    sizes = [spec_of(model) for model in ("B/16", "L/16")]
    one, two = (task_protocol("t", 1, "d", config, traits_of(task), spec) for spec in sizes)
    assert one == two == task_protocol("t", 1, "d", config)


def test_a_list_is_what_it_holds_wherever_it_lies(tmp_path: Path) -> None:
    """Another list at the same path was "done before", the same list elsewhere another protocol."""
    one, two, three = (tmp_path / n for n in ("one.txt", "two.txt", "three.txt"))
    one.write_text("a.jpg\n")
    two.write_text("a.jpg\n")
    three.write_text("b.jpg\n")

    def of(path: Path) -> tuple[str, str]:
        few = digest("in-1pct", fraction=None, files=[str(path)])
        return few, digest("in-ft-hpm", subset={"file": str(path)})

    assert of(one) == of(two) != of(three)
    before = of(one)
    one.write_text("c.jpg\n")
    assert of(one) != before


def folder_of(root: Path) -> str:
    return data_digest(root, {"source": {"train": "train", "val": "val"}}).digest


def test_the_same_images_elsewhere_or_in_tar_files_are_the_same_data(
    painted_images: Callable[..., Path], tmp_path: Path
) -> None:
    one, two = (painted_images(tmp_path / name) for name in ("one", "two"))
    assert folder_of(one) == folder_of(two)
    packed = tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "val"):
        with tarfile.open(packed / f"{split}.tar", "w") as archive:
            archive.add(one / split, arcname=split)
    assert folder_of(packed) == folder_of(one)
    (one / "notes").mkdir()
    (one / "notes" / "x.txt").write_text("beside the data")
    assert folder_of(packed) == folder_of(one)
    found = data_digest(one, {"source": {"train": "train", "val": "val"}})
    assert (found.read, found.files) == ("whole", 72)


@pytest.mark.parametrize("change", ["image", "label", "name", "gone"])
def test_a_changed_image_or_label_is_other_data(
    painted_images: Callable[..., Path], tmp_path: Path, change: str
) -> None:
    """The old number was shown as "done before" after images under --own-data had changed."""
    root = painted_images(tmp_path / "data")
    before = folder_of(root)
    image = root / "val" / "class_0" / "val_0_000.png"
    if change == "image":
        content = bytearray(image.read_bytes())
        content[-20] ^= 1
        image.write_bytes(content)
    elif change == "label":
        image.rename(root / "val" / "class_1" / image.name)
    elif change == "name":
        image.rename(image.with_name("other.png"))
    else:
        image.unlink()
    assert folder_of(root) != before


def test_lists_are_read_whole_and_images_of_large_sets_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimbench.data.digest.WHOLE", 100)
    monkeypatch.setattr("mimbench.data.digest.SAMPLED", 10)
    (tmp_path / "pictures").mkdir()
    for i in range(40):
        (tmp_path / "pictures" / f"{i:02d}.jpg").write_bytes(bytes([i]) * 50)
    (tmp_path / "truth.json").write_text('{"box": 1}')
    config = {"train_images": "pictures", "train_json": "truth.json"}
    before = data_digest(tmp_path, config)
    assert before.read == "9 of 41 files"
    (tmp_path / "truth.json").write_text('{"box": 2}')
    assert data_digest(tmp_path, config).digest != before.digest
