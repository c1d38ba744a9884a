"""The feature bank: right features, right key, safe against kills, the same from any process count."""

import itertools
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mimbench.data.lists import ImageList, read_folder
from mimbench.data.preprocess import Preprocess
from mimbench.data.sources import Source
from mimbench.features import bank as features
from mimbench.features import extract as extraction
from mimbench.features.bank import PARTS, BankSpec, check_step, open_bank
from mimbench.features.extract import extract
from mimbench.system.errors import UserError
from mimbench.system.memory import Halving
from mimbench.system.runtime import Ranks, process_group
from mimbench.system.seeds import derive_seed
from mimbench.task import Machine
from mimbench.vit.backbone import Backbone, build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.processes import as_two_ranks, kill_at

PLAIN = BankSpec(preprocess=Preprocess(size=32, resize=None))

ALONE = Machine(device="cpu", workers=0, max_batch=16)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mimbench.features.bank.SHARD", 10)


@pytest.fixture
def images(painted_images: Callable[..., Path], tmp_path: Path) -> ImageList:
    return read_folder(painted_images(tmp_path / "data"), "train")


def test_cached_features_are_those_of_a_direct_forward(images: ImageList, small_spec: VitSpec):
    weights = random_weights(small_spec, 0)
    bank = extract(weights, images, PLAIN, ALONE)
    to_tensor = transforms.ToTensor()
    pixels = torch.stack([to_tensor(images.open(i)) for i in range(len(images))])
    backbone = build_backbone(weights)
    blocks = backbone.blocks(pixels, [0, 1, 2, 3], norm=True)
    last = backbone(pixels)
    torch.testing.assert_close(bank.load("cls"), last.cls, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        bank.load("avg"), last.patches.mean(dim=(1, 2)), rtol=1e-5, atol=1e-5
    )
    four = torch.cat([b.cls for b in blocks] + [last.patches.mean(dim=(1, 2))], dim=1)
    torch.testing.assert_close(bank.load("cls4+avg"), four, rtol=1e-5, atol=1e-5)
    means = torch.cat([b.patches.mean(dim=(1, 2)) for b in blocks], dim=1)
    torch.testing.assert_close(bank.load("avg4"), means, rtol=1e-5, atol=1e-5)
    assert bank.load("cls+avg").shape == (48, 64)
    assert len(list(bank.folder.glob("*.safetensors"))) == 5


def test_fine_tuned_models_average_through_their_norm(images: ImageList, small_spec: VitSpec):
    weights = random_weights(replace(small_spec, final_norm="fc_norm", pool="avg"), 0)
    bank = extract(weights, images, PLAIN, ALONE)
    backbone = build_backbone(weights)
    pixels = torch.stack([transforms.ToTensor()(images.open(i)) for i in range(len(images))])
    torch.testing.assert_close(
        bank.load("avg"), backbone.pooled(backbone(pixels)), rtol=1e-5, atol=1e-5
    )


def test_any_difference_in_the_key_is_another_bank(
    images: ImageList, small_spec: VitSpec, tmp_path: Path
):
    weights = random_weights(small_spec, 0)
    folders = {
        "base": open_bank(weights, images, PLAIN),
        "weights": open_bank(random_weights(small_spec, 1), images, PLAIN),
        "mean": open_bank(weights.with_spec(mean=(0.5, 0.5, 0.5)), images, PLAIN),
        "heads": open_bank(weights.with_spec(num_heads=4), images, PLAIN),
        "images": open_bank(weights, images.subset(range(20)), PLAIN),
        "labels": open_bank(weights, images.relabel(images.labels[::-1].copy()), PLAIN),
        "storage": open_bank(weights, images, replace(PLAIN, storage="fp16")),
        "precision": open_bank(weights, images, replace(PLAIN, precision="bf16")),
    }
    assert isinstance(PLAIN.preprocess, Preprocess)
    for change in ({"size": 24}, {"resize": 40}, {"interpolation": "bilinear"}, {"view": 1}):
        spec = replace(PLAIN, preprocess=replace(PLAIN.preprocess, **change))
        folders[str(change)] = open_bank(weights, images, spec)
    # same names, other content
    Image.new("RGB", (32, 32), "red").save(tmp_path / "data/train" / images.names[3])
    folders["content"] = open_bank(weights, read_folder(tmp_path / "data", "train"), PLAIN)
    assert len({bank.folder for bank in folders.values()}) == len(folders)
    assert open_bank(weights, images, PLAIN).folder == folders["base"].folder


def test_a_finished_bank_is_not_computed_again(
    images: ImageList, small_spec: VitSpec, monkeypatch: pytest.MonkeyPatch
):
    weights = random_weights(small_spec, 0)
    extract(weights, images, PLAIN, ALONE)
    monkeypatch.setattr(extraction, "build_network", lambda w: pytest.fail("computed again"))
    extract(weights, images, PLAIN, ALONE)


def test_damaged_and_missing_shards_alone_are_computed_again(
    images: ImageList, small_spec: VitSpec, caplog: pytest.LogCaptureFixture
):
    weights = random_weights(small_spec, 0)
    bank = extract(weights, images, PLAIN, ALONE)
    before = bank.load("cls4+avg")
    bank.path(1).unlink()
    whole = bank.path(3).read_bytes()
    bank.path(3).write_bytes(whole[: len(whole) // 2])
    kept = bank.path(0).stat().st_mtime_ns
    assert bank.missing() == [1, 3]
    extract(weights, images, PLAIN, ALONE)
    assert "damaged" in caplog.text
    assert torch.equal(bank.load("cls4+avg"), before)
    assert bank.path(0).stat().st_mtime_ns == kept


def test_a_foreign_key_in_the_folder_is_refused(images: ImageList, small_spec: VitSpec):
    weights = random_weights(small_spec, 0)
    bank = extract(weights, images, PLAIN, ALONE)
    key = json.loads((bank.folder / "bank.json").read_text())
    (bank.folder / "bank.json").write_text(json.dumps({**key, "weights": "other"}))
    with pytest.raises(UserError, match="another key"):
        extract(weights, images, PLAIN, ALONE)


def _extract_slowly(weights: VitWeights, images: ImageList, root: Path) -> None:
    torch.set_num_threads(1)
    # another process: what the fixture sets here does not hold there
    features.SHARD = 10
    write = extraction._write

    def slowly(*args: Any):
        write(*args)
        time.sleep(0 if args[1] == 0 else 600)

    extraction._write = slowly
    extract(weights, images, PLAIN, ALONE, root=root)


def test_killed_at_any_point_it_continues(images: ImageList, small_spec: VitSpec, tmp_path: Path):
    weights, root = random_weights(small_spec, 0), tmp_path / "killed"
    bank = open_bank(weights, images, PLAIN, root=root)
    kill_at(bank.path(1), _extract_slowly, weights, images, root)
    assert bank.missing() == [2, 3, 4]
    first = bank.path(0).stat().st_mtime_ns
    again = extract(weights, images, PLAIN, ALONE, root=root)
    assert bank.path(0).stat().st_mtime_ns == first
    direct = extract(weights, images, PLAIN, ALONE, root=tmp_path / "direct")
    assert torch.equal(again.load("cls4+avg"), direct.load("cls4+avg"))


def _extract_as_rank(weights: VitWeights, images: ImageList, root: Path) -> None:
    torch.set_num_threads(1)
    features.SHARD = 10
    with process_group("cpu") as ranks:
        bank = extract(weights, images, PLAIN, ALONE, ranks=ranks, root=root)
        # no process goes on before the whole bank is there
        assert not bank.missing()


def test_two_processes_make_the_same_bank(images: ImageList, small_spec: VitSpec, tmp_path: Path):
    weights = random_weights(small_spec, 0)
    assert as_two_ranks(_extract_as_rank, weights, images, tmp_path / "two") == [0, 0]
    shared = open_bank(weights, images, PLAIN, root=tmp_path / "two")
    alone = extract(weights, images, PLAIN, ALONE, root=tmp_path / "one")
    assert shared.missing() == []
    for shard in range(5):
        assert shared.path(shard).read_bytes() == alone.path(shard).read_bytes()


@pytest.mark.parametrize("storage", ["fp16", "bf16"])
def test_half_storage_keeps_exact_features_to_compare(
    images: ImageList, small_spec: VitSpec, storage: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mimbench.features.bank.CHECKED", 20)
    weights = random_weights(small_spec, 0)
    full = extract(weights, images, PLAIN, ALONE)
    half = extract(weights, images, replace(PLAIN, storage=storage), ALONE)
    rows, exact = half.exact("cls+avg")
    assert rows.tolist() == list(range(0, 48, check_step(48))) == list(range(0, 48, 3))
    torch.testing.assert_close(exact, full.load("cls+avg")[rows], rtol=1e-6, atol=1e-6)
    stored = half.load("cls+avg")
    assert not torch.equal(stored, full.load("cls+avg"))
    torch.testing.assert_close(stored, full.load("cls+avg"), rtol=1e-2, atol=1e-2)


def test_values_too_large_for_the_storage_are_refused(images: ImageList, small_spec: VitSpec):
    weights = random_weights(small_spec, 0)
    tensors = {**weights.tensors, "norm.weight": torch.full((32,), 1e6)}
    spec = replace(PLAIN, storage="fp16")
    with pytest.raises(UserError, match="not finite in fp16"):
        extract(replace(weights, tensors=tensors), images, spec, ALONE)


def test_out_of_memory_halves_and_gives_the_same_features(
    images: ImageList, small_spec: VitSpec, monkeypatch: pytest.MonkeyPatch
):
    weights = random_weights(small_spec, 0)
    expected = extract(weights, images, PLAIN, ALONE).load("cls4+avg")
    real, sizes = Backbone.vectors, []

    def tight(backbone: Any, pixels: Any, blocks: Any):
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        sizes.append(len(pixels))
        return real(backbone, pixels, blocks)

    monkeypatch.setattr(Backbone, "vectors", tight)
    spec = replace(PLAIN, precision="fp32")
    bank = extract(weights, images, spec, ALONE, root=images_root(images) / "tight")
    torch.testing.assert_close(bank.load("cls4+avg"), expected, rtol=1e-5, atol=1e-6)
    assert set(sizes) == {2}


def images_root(images: ImageList) -> Path:
    return Path(images.where).parent.parent


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shape mismatch"):
        Halving(size=8).attempt(lambda size: (_ for _ in ()).throw(RuntimeError("shape mismatch")))

    def faulty(size: int) -> None:
        raise RuntimeError(f"device-side assert with {size}")

    with pytest.raises(RuntimeError, match="assert with 8") as caught:
        Halving(size=8).attempt(faulty)
    assert caught.traceback[-1].name == "faulty"
    with pytest.raises(UserError, match="single image"):
        Halving(size=4).attempt(lambda size: (_ for _ in ()).throw(MemoryError()))


def test_shallow_models_say_which_features_they_lack(images: ImageList):
    spec = VitSpec(embed_dim=32, depth=2, num_heads=2, mlp_dim=64, patch_size=8, grid=(4, 4))
    bank = extract(random_weights(spec, 0), images, PLAIN, ALONE)
    assert bank.load("cls+avg").shape == (48, 64)
    with pytest.raises(UserError, match=r"too shallow.*cls, avg"):
        bank.load("cls4")
    assert set(bank.vectors(PARTS["cls4"])) == {"cls.2", "cls.1"}


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_preprocessing_is_torchvisions(mode: Any):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (57, 83, 3), dtype=np.uint8))
    interpolation = transforms.InterpolationMode(mode)
    reference = transforms.Compose(
        [
            transforms.Resize(40, interpolation=interpolation),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
        ]
    )
    ours = Preprocess(size=32, resize=40, interpolation=mode)(image)
    torch.testing.assert_close(ours.float() / 255, reference(image))


def test_processes_meet_before_and_after_the_shards_are_written(
    painted_images: Callable[..., Path],
    small_spec: VitSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Nobody lists shards before the key is claimed, or writes before all have listed, or is done early."""
    images = read_folder(painted_images(tmp_path / "data", train=8, val=2), "train")
    weights = random_weights(small_spec, 0)
    bank = open_bank(weights, images, PLAIN)
    done: list[Any] = []
    monkeypatch.setattr(extraction.dist, "barrier", lambda: done.append("meet"))
    monkeypatch.setattr(extraction, "_claim", lambda *_: done.append("claim"))
    monkeypatch.setattr(type(bank), "missing", lambda _: done.append("list") or [0, 1, 2])
    monkeypatch.setattr(extraction, "_compute", lambda _, mine, *__: done.append(mine))
    for rank, first, mine in ((0, ["claim"], [0, 2]), (1, [], [1])):
        done.clear()
        extraction.fill(bank, PLAIN.key(weights, images), weights, ALONE, Ranks(rank=rank, world=2))
        assert done == [*first, "meet", "list", "meet", mine, "meet"]


def test_a_random_view_is_torchvisions():
    """The crop and flip that torchvision's transforms draw from the same state, 35 to 100 % of the area."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 255, (45, 61, 3), dtype=np.uint8))
    bicubic = transforms.InterpolationMode("bicubic")
    reference: Any = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.35, 1.0), interpolation=bicubic),
            transforms.RandomHorizontalFlip(0.5),
            transforms.PILToTensor(),
        ]
    )
    before = torch.get_rng_state()
    for view, index in itertools.product((1, 2, 7), range(12)):
        ours = Preprocess(size=32, resize=None, view=view)(image, index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(view, index))
            assert torch.equal(ours, reference(image)), (view, index)
    assert torch.equal(torch.get_rng_state(), before)


def test_views_are_fixed_and_differ():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    first, second = (Preprocess(size=32, resize=None, view=v) for v in (1, 2))
    assert torch.equal(first(image, 5), first(image, 5))
    assert not torch.equal(first(image, 5), first(image, 6))
    assert not torch.equal(first(image, 5), second(image, 5))
    with pytest.raises(UserError, match="40x40 is smaller than the crop of 64"):
        Preprocess(size=64, resize=None)(image)


def test_classes_that_differ_are_listed(painted_images: Callable[..., Path], tmp_path: Path):
    root = painted_images(tmp_path / "data", train=2, val=2)
    train, val = Source().open(root)
    assert train.classes == val.classes == ("class_0", "class_1", "class_2", "class_3")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    (root / "val/class_2").rename(root / "val/other")
    with pytest.raises(UserError, match=r"only in train: class_2; only in val: other"):
        Source().open(root)


def test_folders_say_what_is_wrong(painted_images: Callable[..., Path], tmp_path: Path):
    root = painted_images(tmp_path / "data", train=2, val=2)
    for name in ("zebra", "aardvark", "mule", "bat"):
        (root / name).mkdir()
    there = "folders there: aardvark, bat, mule, train, val, zebra"
    with pytest.raises(UserError, match=rf"no folder 'test' .*{there}"):
        read_folder(root, "test")
    (root / "val/class_9").mkdir()
    with pytest.raises(UserError, match="class_9 holds no image"):
        read_folder(root, "val")
    broken = root / "train/class_1/train_1_000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    images = read_folder(root, "train")
    with pytest.raises(UserError, match=r"cannot decode .*train_1_000.png"):
        images.open(2)


@pytest.mark.parametrize("source", ["", "tar", "torch/folder"])
def test_timm_sources_give_the_same_images(
    painted_images: Callable[..., Path], tmp_path: Path, source: Any
):
    root = painted_images(tmp_path / "data", train=3, val=2)
    expected = read_folder(root, "train")
    if source == "tar":
        for split in ("train", "val"):
            subprocess.run(
                ["tar", "-cf", root / f"{split}.tar", "-C", root / split, "."], check=True
            )
    for images in Source(name=source).open(root)[:1]:
        assert images.labels.tolist() == expected.labels.tolist()
        assert images.classes == expected.classes
        for i in (0, len(images) - 1):
            assert np.array_equal(np.asarray(images.open(i)), np.asarray(expected.open(i)))


@pytest.mark.parametrize("source", ["", "tar"])
def test_changed_content_of_a_timm_source_is_another_bank(
    painted_images: Callable[..., Path], tmp_path: Path, small_spec: VitSpec, source: Any
):
    root = painted_images(tmp_path / "data", train=3, val=2)

    def digest() -> str:
        if source == "tar":
            for split in ("train", "val"):
                subprocess.run(
                    ["tar", "-cf", root / f"{split}.tar", "-C", root / split, "."], check=True
                )
        return Source(name=source).open(root)[0].digest

    before = digest()
    Image.new("RGB", (32, 32), "red").save(root / "train/class_0/train_0_000.png")
    assert digest() != before


def test_streams_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="streamed"):
        Source(name="wds/some").open(tmp_path)
