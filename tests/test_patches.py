"""The patch bank: right tokens in the right places, right key, safe against kills, halves with care."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.data.lists import ImageList, read_folder
from mimbench.data.preprocess import Squash
from mimbench.features import extract as extraction
from mimbench.features import patches as banks
from mimbench.features.patches import (
    FinalNorm,
    PatchBank,
    PatchSpec,
    extract_patches,
    open_patches,
    patch_grid,
    random_patches,
)
from mimbench.system.errors import UserError
from mimbench.system.runtime import process_group
from mimbench.task import Machine
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.processes import as_two_ranks, kill_at

ALONE = Machine(device="cpu", workers=0, max_batch=8)
FULL = PatchSpec(preprocess=Squash(size=32), grid=(4, 4), blocks=(1, 2), storage="fp32")
SMALL = 10 * 2 * 16 * 32 * 4
"""Bytes of ten images of `FULL`: a shard."""


@pytest.fixture
def small_spec() -> VitSpec:
    return VitSpec(embed_dim=32, depth=2, num_heads=2, mlp_dim=64, patch_size=8, grid=(4, 4))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(banks, "SHARD_BYTES", SMALL)


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    rng = np.random.default_rng(0)
    for i in range(36):
        path = tmp_path / "data/train" / str(i % 2) / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, size=(40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return read_folder(tmp_path / "data", "train")


def every_token(bank: PatchBank, block: int = 1) -> torch.Tensor:
    return torch.cat([piece for _, piece in bank.pieces(7, block)])


def test_tokens_are_the_backbones_in_order_before_and_after_the_norm(
    images: ImageList, small_spec: VitSpec
):
    weights = random_weights(small_spec, 0)
    bank = extract_patches(weights, images, FULL, ALONE)
    backbone = build_backbone(weights)
    pixels = torch.stack([Squash(size=32)(images.open(i)) for i in (0, 13, 35)]).float() / 255
    norm = FinalNorm(weights, torch.device("cpu"))
    for block in (1, 2):
        raw, normed = (
            backbone.blocks(pixels, [2 - block], norm=after)[0] for after in (False, True)
        )
        found = bank.image_rows([0, 13, 35], block)
        torch.testing.assert_close(found, raw.patches.flatten(1, 2), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm(found), normed.patches.flatten(1, 2), rtol=1e-5, atol=1e-5)
        cls = bank.image_rows([0, 13, 35], block, part="cls")
        torch.testing.assert_close(cls, raw.cls, rtol=1e-5, atol=1e-5)
        whole = every_token(bank, block).view(36, 16, 32)
        assert torch.equal(whole[[0, 13, 35]], found)


def test_a_transposed_grid_of_patches_would_be_seen(tmp_path: Path, small_spec: VitSpec):
    """A picture that is bright in one corner has its odd patch in that corner's place of the bank."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:8, 16:24] = 255
    for i in range(2):
        (tmp_path / f"one/train/{i}").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / f"one/train/{i}/a.png")
    weights = random_weights(small_spec, 0)
    # without positions or mixing of patches each token tells its own place's pixels
    tensors = {
        name: torch.zeros_like(t) if name.startswith(("pos_embed", "blocks")) else t
        for name, t in weights.tensors.items()
    }
    bank = extract_patches(
        replace(weights, tensors=tensors), read_folder(tmp_path / "one", "train"), FULL, ALONE
    )
    tokens = bank.image_rows([0])[0]
    odd = [i for i in range(16) if not torch.allclose(tokens[i], tokens[15], atol=1e-4)]
    assert odd == [2]


def test_the_key_holds_everything_that_may_move_a_token(images: ImageList, small_spec: VitSpec):
    weights = random_weights(small_spec, 0)
    kept = np.tile(np.arange(3), (36, 1))
    changes: list[dict[str, Any]] = [
        {"preprocess": Squash(size=32, interpolation="bilinear")},
        {"storage": "fp16"},
        {"precision": "bf16"},
        {"blocks": (1,)},
        {"kept": kept},
        {"kept": kept + 1},
    ]
    banks_of = [open_patches(weights, images, replace(FULL, **change)) for change in changes]
    banks_of += [open_patches(weights, images.subset([0, 1]), FULL)]
    banks_of += [open_patches(random_weights(small_spec, 1), images, FULL)]
    banks_of += [open_patches(weights.with_spec(std=(0.229, 0.224, 0.255)), images, FULL)]
    folders = {bank.folder for bank in [*banks_of, open_patches(weights, images, FULL)]}
    assert len(folders) == len(banks_of) + 1


def test_kept_patches_are_those_of_the_full_bank(images: ImageList, small_spec: VitSpec):
    weights = random_weights(small_spec, 0)
    kept = random_patches(36, (4, 4), 5, seed=3)
    assert kept is not None
    assert (np.diff(kept, axis=1) > 0).all()
    assert len({tuple(row) for row in kept.tolist()}) > 20
    assert random_patches(36, (4, 4), 16, seed=3) is None
    full = extract_patches(weights, images, FULL, ALONE)
    part = extract_patches(weights, images, replace(FULL, kept=kept), ALONE)
    assert part.patches == 36 * 5
    whole = every_token(full).view(36, 16, 32)
    chosen = whole[torch.arange(36)[:, None], torch.from_numpy(kept)]
    torch.testing.assert_close(every_token(part).view(36, 5, 32), chosen)


def test_half_storage_keeps_exact_tokens_to_compare(
    images: ImageList, small_spec: VitSpec, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(banks, "CHECKED", 9)
    weights = random_weights(small_spec, 0)
    full = extract_patches(weights, images, FULL, ALONE)
    half = extract_patches(weights, images, replace(FULL, storage="fp16"), ALONE)
    rows, exact = half.exact()
    assert rows == list(range(0, 36, 4))
    torch.testing.assert_close(exact, full.image_rows(rows), rtol=1e-6, atol=1e-6)
    assert torch.equal(full.exact()[1], full.image_rows(rows))
    stored = half.image_rows(rows)
    assert stored.dtype == torch.float16
    torch.testing.assert_close(stored.float(), exact, rtol=2e-3, atol=1e-3)
    assert not torch.equal(stored.float(), exact)


def test_damaged_and_missing_shards_alone_are_computed_again(
    images: ImageList, small_spec: VitSpec, caplog: pytest.LogCaptureFixture
):
    weights = random_weights(small_spec, 0)
    bank = extract_patches(weights, images, FULL, ALONE)
    assert bank.shards == 4
    before = every_token(bank).clone()
    bank.path(1).unlink()
    whole = bank.path(3).read_bytes()
    bank.path(3).write_bytes(whole[: len(whole) // 2])
    untouched = bank.path(0).stat().st_mtime_ns
    assert bank.missing() == [1, 3]
    extract_patches(weights, images, FULL, ALONE)
    assert "damaged" in caplog.text
    assert torch.equal(every_token(bank), before)
    assert bank.path(0).stat().st_mtime_ns == untouched


def _extract_slowly(weights: VitWeights, images: ImageList, root: Path) -> None:
    torch.set_num_threads(1)
    # another process: what the fixture sets here does not hold there
    banks.SHARD_BYTES = SMALL
    write = extraction._write

    def slowly(*args: Any):
        write(*args)
        time.sleep(0 if args[1] == 0 else 600)

    extraction._write = slowly
    extract_patches(weights, images, FULL, ALONE, root=root)


def test_killed_at_any_point_it_continues(images: ImageList, small_spec: VitSpec, tmp_path: Path):
    weights, root = random_weights(small_spec, 0), tmp_path / "killed"
    bank = open_patches(weights, images, FULL, root=root)
    kill_at(bank.path(1), _extract_slowly, weights, images, root)
    assert bank.missing() == [2, 3]
    first = bank.path(0).stat().st_mtime_ns
    again = extract_patches(weights, images, FULL, ALONE, root=root)
    assert bank.path(0).stat().st_mtime_ns == first
    direct = extract_patches(weights, images, FULL, ALONE, root=tmp_path / "direct")
    assert torch.equal(every_token(again), every_token(direct))


def _extract_as_rank(weights: VitWeights, images: ImageList, root: Path) -> None:
    torch.set_num_threads(1)
    banks.SHARD_BYTES = SMALL
    with process_group("cpu") as ranks:
        bank = extract_patches(weights, images, FULL, ALONE, ranks=ranks, root=root)
        assert not bank.missing()


def test_two_processes_make_the_same_bank(images: ImageList, small_spec: VitSpec, tmp_path: Path):
    weights = random_weights(small_spec, 0)
    assert as_two_ranks(_extract_as_rank, weights, images, tmp_path / "two") == [0, 0]
    shared = open_patches(weights, images, FULL, root=tmp_path / "two")
    alone = extract_patches(weights, images, FULL, ALONE, root=tmp_path / "one")
    for shard in range(alone.shards):
        assert shared.path(shard).read_bytes() == alone.path(shard).read_bytes()


def test_reading_takes_no_memory_for_what_is_not_touched(images: ImageList, small_spec: VitSpec):
    bank = extract_patches(random_weights(small_spec, 0), images, FULL, ALONE)
    one, other = bank.shard(0), bank.shard(0)
    # both views are of the same mapped file, not copies in memory
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert maps.count(str(bank.path(0))) >= 1
    assert torch.equal(one, other)


def test_what_does_not_fit_is_refused_by_name(images: ImageList, small_spec: VitSpec):
    weights = random_weights(small_spec, 0)
    with pytest.raises(UserError, match="image_size 33 does not divide .* for example 32"):
        patch_grid(weights, 33)
    with pytest.raises(UserError, match="block 3 from the end of a model with 2 blocks"):
        open_patches(weights, images, replace(FULL, blocks=(3,)))
    with pytest.raises(UserError, match=r"patches \(2, 2\), the model gives \(4, 4\)"):
        extract_patches(weights, images, replace(FULL, grid=(2, 2)), ALONE)
