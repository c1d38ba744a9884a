"""Dense tasks: what oracle, shifted, foreign and transposed patches give, and whole runs on tiny scenes."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mimbench.data.label_maps import VOC, LabelLayout, class_indices, read_label_maps
from mimbench.data.preprocess import Squash
from mimbench.features.logistic.grid import Grid
from mimbench.features.search import Approximate, search, search_pieces
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.task import Machine, TaskResult
from mimbench.vit.weights import VitSpec, random_weights
from transfer.dense import hummingbird, layers, patch_knn, patch_logreg
from transfer.dense.banks import Patches, SquashedLabels, every, held_out, patch_labels
from transfer.dense.confusion import miou_labelled
from transfer.dense.neighbours import KeptLabels, LabelledPatches, Truth, vote
from transfer.dense.patch_knn import Ready
from transfer.dense.patches import frequencies, patchify
from transfer.dense.soft_labels import SoftLabels, without_void
from transfer.dense.views import BankView
from transfer.dense.votes import soft_votes, upsample

CPU = Machine(device="cpu", workers=0, max_batch=16)
SPEC = VitSpec(embed_dim=24, depth=2, num_heads=3, mlp_dim=48, patch_size=8, grid=(4, 4))
PICTURES, CLASSES, PATCH, SIDE = 24, 6, 4, 32
PER_IMAGE = (SIDE // PATCH) ** 2


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class _Spec:
    per_image: int = PER_IMAGE
    grid: tuple[int, int] = (SIDE // PATCH, SIDE // PATCH)


class FakeBank:
    """Tokens at hand, in two shards."""

    spec, shards = _Spec(), 2

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.width = tokens, tokens.shape[2]

    def rows(self, shard: int) -> range:
        half = len(self.tokens) // 2
        return range(half) if shard == 0 else range(half, len(self.tokens))

    def shard(self, shard: int, block: int = 1) -> Tensor:
        rows = self.rows(shard)
        return self.tokens[rows.start : rows.stop]


def label_maps(seed: int) -> np.ndarray:
    """Return blobs of classes 1 to 6 with some pixels not labelled (0)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, CLASSES + 1, size=(PICTURES, 4, 4))
    maps = coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    maps = np.roll(maps, (3, 2), axis=(1, 2))
    maps[:, :4, :8] = 0
    return maps.astype(np.uint8)


def truth_of(maps: np.ndarray, **changes: Any) -> Truth:
    names = tuple(f"{i}" for i in range(len(maps)))
    truth = Truth(
        pixels=patchify(maps, PATCH), first=1, classes=CLASSES, ignored=(0, 255), names=names
    )
    return replace(truth, **changes)


def oracle(maps: np.ndarray) -> Tensor:
    """Return tokens that say everything about the labels of their pixels."""
    pixels = patchify(maps, PATCH)
    one_hot = np.eye(CLASSES + 1, dtype=np.float32)[pixels]
    return torch.from_numpy(one_hot.reshape(*pixels.shape[:2], -1))


def score(tokens: Tensor, maps: np.ndarray, train: np.ndarray | None = None) -> float:
    """Return mIoU with an oracle bank of other pictures and the given query tokens, one neighbour."""
    source = label_maps(0) if train is None else train
    bank = LabelledPatches.of(_patches(oracle(source)), truth_of(source), every(PICTURES))
    answers = bank.exact("ip", "cpu")
    found = vote(answers, _patches(tokens), truth_of(maps), pictures=every(PICTURES), ks=[1])
    return miou_labelled(found[1].total)


def _patches(tokens: Tensor) -> Patches:
    return Patches(FakeBank(tokens), None, device="cpu")  # pyright: ignore[reportArgumentType]


def test_a_bank_that_knows_every_patch_gives_100() -> None:
    maps = label_maps(0)
    assert score(oracle(maps), maps) == pytest.approx(100)


def test_labels_shifted_by_one_give_0() -> None:
    maps = label_maps(0)
    shifted = np.where(maps == 0, 0, maps % CLASSES + 1).astype(np.uint8)
    assert score(oracle(maps), shifted) == pytest.approx(0)


def test_patches_of_other_pictures_give_chance_and_transposed_grids_are_caught() -> None:
    maps = label_maps(0)
    others = score(oracle(np.roll(maps, 7, axis=0)), maps)
    side = SIDE // PATCH
    turned = oracle(maps).unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
    # one of six classes, at random: an IoU of 1 in 11
    assert others < 20
    assert score(turned, maps) < 60


def test_patches_without_a_class_do_not_answer() -> None:
    maps = label_maps(0)
    maps[:, :8] = 0
    bank = LabelledPatches.of(_patches(oracle(maps)), truth_of(maps), every(PICTURES))
    assert len(bank.labels) == bank.kept.sum() == PICTURES * (PER_IMAGE - 2 * SIDE // PATCH)
    rows = np.concatenate(list(bank.rows(unit=False)))
    assert len(rows) == len(bank.labels)
    np.testing.assert_array_equal(
        rows.reshape(len(rows), -1, CLASSES + 1).argmax(2), bank.labels[np.arange(len(rows))]
    )


def test_pieces_do_not_move_a_neighbour() -> None:
    rng = np.random.default_rng(0)
    # whole numbers: a product is the same wherever the bank is cut, so that ties are ties
    bank = rng.integers(-3, 4, size=(500, 8)).astype(np.float32)
    bank[300:320] = bank[10]
    queries = np.concatenate([bank[10:12], rng.integers(-3, 4, size=(30, 8))]).astype(np.float32)
    for metric in ("ip", "l2"):
        want = search(bank, queries, 12, metric=metric, device="cpu")
        cuts = [0, 7, 7, 260, 305, 499, 500]
        pieces = [bank[a:b] for a, b in itertools.pairwise(cuts)]
        found = search_pieces(pieces, queries, 12, metric=metric, device="cpu")
        np.testing.assert_array_equal(found[1], want[1])
        np.testing.assert_allclose(found[0], want[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="k = 501"):
        search_pieces([bank], queries, 501, device="cpu")


def test_the_scaler_is_scikit_learns() -> None:
    from sklearn.preprocessing import StandardScaler

    tokens = torch.randn(PICTURES, PER_IMAGE, 10, generator=torch.Generator().manual_seed(1))
    tokens[..., 3] = 7.0
    patches, chosen = _patches(tokens), np.array([0, 5, 13, 20])
    patches.scaler = patches.fit(chosen)
    rows = tokens[chosen].flatten(0, 1).numpy()
    want = np.asarray(StandardScaler().fit(rows).transform(tokens.flatten(0, 1).numpy()))
    found = torch.cat([t for _, t in patches.of(every(PICTURES))]).flatten(0, 1)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_logistic_regression_on_patches_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    from transfer.dense.patch_logreg import Config, fit, label_patches, labelled_patches

    maps = label_maps(0)
    tokens = oracle(maps)[..., :20] + 0.4 * torch.randn(
        PICTURES, PER_IMAGE, 20, generator=torch.Generator().manual_seed(2)
    )
    truth = truth_of(maps)
    ready = Ready(
        train=_patches(tokens),
        val=_patches(tokens),
        train_truth=truth,
        val_truth=truth,
        class_names=tuple("abcdef"),
    )
    config = Config(data=Path(), machine=CPU, grid=Grid(tolerance=1e-9), stride=3)
    found, record = fit(ready, config, every(PICTURES), [0.1])
    features, labels = labelled_patches(ready, config, every(PICTURES))
    assert record["patches"] == len(labels) < PICTURES * PER_IMAGE / 2.9
    want = LogisticRegression(C=0.1, max_iter=2000, tol=1e-8).fit(features.numpy(), labels)
    ours = found.logits(0, features).argmax(dim=1).numpy()
    assert (ours == want.predict(features.numpy())).mean() > 0.995
    [tally] = label_patches(found, ready.val, truth, every(PICTURES))
    assert miou_labelled(tally.total) > 50


def test_a_single_c_is_taken_without_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_knn, "draw", lambda *_, **__: [])
    maps = label_maps(0)
    truth, patches = truth_of(maps), _patches(oracle(maps))
    names = tuple("abcdef")
    ready = Ready(train=patches, val=patches, train_truth=truth, val_truth=truth, class_names=names)
    grid = Grid(lowest=0.5, highest=0.5, steps=1, max_iterations=30)
    config = patch_logreg.Config(data=Path(), machine=CPU, grid=grid, stride=3)
    found = patch_logreg.evaluate(ready, config)
    assert found.notes["C"] == pytest.approx(0.5)
    assert found.notes["at_edge_of_grid"] is False
    assert found.notes["held_out_miou"] == {}
    assert found.metrics["miou_labelled"] > 40


def test_held_out_pictures_are_a_fixed_part() -> None:
    kept, held = held_out(50, 0.1, seed=0)
    assert (len(kept), len(held)) == (45, 5)
    assert sorted([*kept, *held]) == list(range(50))
    assert (held_out(50, 0.1, seed=0)[1] == held).all()
    assert (held_out(50, 0.1, seed=1)[1] != held).any()
    with pytest.raises(UserError, match="at least 2"):
        held_out(1, 0.1, seed=0)


def faithful(result: TaskResult) -> None:
    """Check that the outcomes reproduce the metric, also after a way through plain arrays."""
    [outcome] = result.outcomes
    again = type(outcome).from_arrays(outcome.arrays())
    for one in (outcome, again):
        [statistic] = one.statistics()
        assert statistic.whole() == pytest.approx(result.metrics["miou"], abs=1e-9)


@pytest.fixture(scope="module")
def ade(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(8, 4) / "ade"


def test_patch_knn_runs_and_says_how_it_chose(ade: Path, tmp_path: Path) -> None:
    weights = random_weights(SPEC, 0)
    config = patch_knn.Config(data=ade, image_size=64, k=(1, 3), machine=CPU)
    result = patch_knn.run(weights, config, tmp_path)
    faithful(result)
    assert set(result.notes["held_out_miou"]) == {
        f"{d} k={k}" for d in ("cosine", "L2") for k in (1, 3)
    }
    assert result.notes["storage_effect"]["pictures"] == 4
    quick = replace(config, index=Approximate(kind="ivf", lists=4, probes=4), distances=("cosine",))
    approximate = patch_knn.run(weights, replace(quick, k=(3,)), tmp_path)
    assert approximate.notes["recall_at_3"] == pytest.approx(100)
    exact = patch_knn.run(weights, replace(config, k=(3,), distances=("cosine",)), tmp_path)
    assert approximate.metrics == pytest.approx(exact.metrics)


def test_a_bank_of_the_val_pictures_gives_100(ade: Path, tmp_path: Path) -> None:
    own = LabelLayout(train_images="images/validation", train_labels="annotations/validation")
    config = patch_knn.Config(data=ade, image_size=64, k=(1,), labels=own, machine=CPU)
    config = replace(config, distances=("L2",), storage="fp32")
    result = patch_knn.run(random_weights(SPEC, 0), config, tmp_path)
    # patches that are mostly not labelled do not answer
    assert result.metrics["miou_labelled"] > 85


@pytest.mark.parametrize("memory", [None, 64])
def test_hummingbird_runs(ade: Path, tmp_path: Path, memory: int | None) -> None:
    config = hummingbird.Config(data=ade, image_size=64, memory=memory, k=5, machine=CPU)
    result = hummingbird.run(random_weights(SPEC, 0), config, tmp_path)
    faithful(result)
    assert result.metrics["miou"] >= result.metrics["miou_identity"]
    assert result.notes["bank_patches"] == (8 * 2 * 64 if memory is None else 64)
    assert result.notes["deviation"] == [0.229, 0.224, 0.255]


def test_hummingbirds_approximate_index_says_its_recall(ade: Path, tmp_path: Path) -> None:
    config = hummingbird.Config(data=ade, image_size=64, views=1, memory=None, k=5, machine=CPU)
    exact = hummingbird.run(random_weights(SPEC, 0), config, tmp_path)
    assert not any(note.startswith("recall") for note in exact.notes)
    whole = replace(config, index=Approximate(kind="ivf", lists=4, probes=4))
    found = hummingbird.run(random_weights(SPEC, 0), whole, tmp_path)
    assert found.notes["recall_at_5"] == pytest.approx(100)
    assert found.metrics == pytest.approx(exact.metrics)
    part = replace(config, index=Approximate(kind="ivf", lists=16, probes=1))
    assert 0 < hummingbird.run(random_weights(SPEC, 0), part, tmp_path).notes["recall_at_5"] < 100


def test_logreg_and_layers_run(ade: Path, tmp_path: Path) -> None:
    weights = random_weights(SPEC, 0)
    grid = Grid(lowest=1e-3, highest=1e-1, steps=2, max_iterations=20)
    config = patch_logreg.Config(data=ade, image_size=64, grid=grid, machine=CPU)
    result = patch_logreg.run(weights, config, tmp_path)
    faithful(result)
    assert set(result.notes["held_out_miou"]) == {"0.001", "0.1"}
    sweep = layers.run(weights, layers.Config(data=ade, image_size=64, k=1, machine=CPU), tmp_path)
    faithful(sweep)
    assert [list(f.values) for f in sweep.figures] == [["1", "2"], ["1", "2"]]
    assert sweep.metrics["block"] in (1, 2)


class TwoBlocks(FakeBank):
    """The last block says nothing of the labels, the one before it everything."""

    def shard(self, shard: int, block: int = 1) -> Tensor:
        tokens = super().shard(shard, block)
        return torch.ones_like(tokens) if block == 1 else tokens


def test_the_sweep_reads_each_block_and_scores_the_one_it_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patch_knn, "draw", lambda *_, **__: [])
    maps = label_maps(0)
    truth = truth_of(maps)
    patches = Patches(TwoBlocks(oracle(maps)), None, device="cpu")  # pyright: ignore[reportArgumentType]
    names = tuple(str(c) for c in range(CLASSES))
    ready = Ready(train=patches, val=patches, train_truth=truth, val_truth=truth, class_names=names)
    found = layers.sweep(ready, layers.Config(data=Path(), k=1, machine=CPU), depth=2)
    by_block = found.figures[0].values
    assert by_block["1"] > by_block["2"] + 30
    assert found.metrics["block"] == 1
    assert found.metrics["miou"] > found.metrics["miou_last"] + 60
    assert found.notes["chosen"].startswith("block 1 of 2")
    assert found.notes["last"] == "block 2 of 2, after the final norm"


def test_views_crop_pictures_and_labels_alike() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, size=(40, 60)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    picture = Image.fromarray(np.stack([100 * labels] * 3, axis=2))
    view = BankView(size=64, epoch=1)
    pixels = view(picture, 5).numpy().mean(axis=0)
    cut = view.labels(Image.fromarray(labels), 5)
    assert np.corrcoef(pixels.ravel(), cut.ravel())[0, 1] > 0.8
    assert (view.labels(Image.fromarray(labels), 5) == cut).all()
    assert (view.labels(Image.fromarray(labels), 6) != cut).any()
    assert (BankView(size=64, epoch=2).labels(Image.fromarray(labels), 5) != cut).any()


def test_the_chosen_block_is_standardised_by_every_training_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = label_maps(0)
    truth, patches = truth_of(maps), _patches(3 * oracle(maps) + 1)
    names = tuple("abcdef")
    ready = Ready(
        train=patches, val=_patches(oracle(maps)), train_truth=truth, val_truth=truth, class_names=names
    )  # fmt: skip
    asked: list[Patches] = []

    def vote(answers: Any, queries: Patches, *_: Any, ks: list[int], **__: Any) -> dict[int, Any]:
        asked.append(queries)
        return dict.fromkeys(ks)

    monkeypatch.setattr(layers, "vote", vote)
    config = layers.Config(data=Path(), k=1, machine=CPU)
    layers.on_val(ready, config, layers.PatchLayer(1, normed=False))
    scaler, wanted = asked[0].scaler, patches.fit(every(PICTURES))
    assert scaler is not None
    torch.testing.assert_close(scaler.mean, wanted.mean)
    torch.testing.assert_close(scaler.deviation, wanted.deviation)


def test_views_are_jittered_about_the_picture_itself_half_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[str, list[float]] = {}
    kinds = ("brightness", "contrast", "saturation", "hue")
    for name in kinds:
        monkeypatch.setattr(
            f"transfer.dense.views.TF.adjust_{name}",
            lambda image, amount, name=name: drawn.setdefault(name, []).append(amount) or image,
        )
    picture = Image.new("RGB", (40, 30))
    for index in range(600):
        BankView(size=16, epoch=0)(picture, index)
    assert set(drawn) == set(kinds)
    for name in kinds:
        middle = 0.0 if name == "hue" else 1.0
        found = np.array(drawn[name]) - middle
        assert 240 < len(found) < 360
        assert np.abs(found).max() <= 0.1 + 1e-9
        assert np.abs(found).max() > 0.095
        assert abs(found.mean()) < 0.015


def voc_folder(root: Path) -> Path:
    """Write three pictures in VOC's layout, with a palette as VOC has it."""
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        labels = np.full((16, 24), i, dtype=np.uint8)
        labels[0, 0] = 255
        Image.fromarray(np.zeros((16, 24, 3), dtype=np.uint8)).save(root / f"JPEGImages/{i}.jpg")
        image = Image.fromarray(labels, mode="P")
        image.putpalette(list(range(256)) * 3)
        image.save(root / f"SegmentationClassAug/{i}.png")
    lists = root / "ImageSets/Segmentation"
    (lists / "trainaug.txt").write_text("/JPEGImages/2.jpg /SegmentationClassAug/2.png\n0\n")
    (lists / "val.txt").write_text("1\n")
    return root


def test_vocs_layout_is_read_by_its_lists(tmp_path: Path) -> None:
    train = read_label_maps(voc_folder(tmp_path / "voc"), VOC, "train")
    assert [Path(name).stem for name in train.images.names] == ["2", "0"]
    labels = train.settle(np.asarray(train.open(0)), 0)
    assert labels[0, 0] == 255
    assert labels[1, 1] == 2
    assert train.names[2] == "bicycle"
    assert train.ignored == (255,)
    assert (class_indices(labels, train.first) == labels).all()


def test_one_written_configuration_is_vocs(tmp_path: Path) -> None:
    from mimbench.benchmarks.manifest import load_manifest

    for name in ("voc-patch-knn", "voc-patch-logreg", "voc-dense-knn"):
        config = load_manifest().benchmarks[name].config
        assert from_mapping(LabelLayout, config["labels"], name) == VOC


def test_wrong_layouts_are_refused_by_name(tmp_path: Path, ade: Path) -> None:
    with pytest.raises(UserError, match="no folder 'images/training'"):
        read_label_maps(tmp_path, LabelLayout(), "train")
    root = voc_folder(tmp_path / "voc")
    (root / "SegmentationClassAug/1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 1 pictures .* have no label map"):
        read_label_maps(root, VOC, "val")
    (root / "ImageSets/Segmentation/val.txt").write_text("7\n")
    with pytest.raises(UserError, match="1 of which are not in .*, for example 7"):
        read_label_maps(root, VOC, "val")
    few = LabelLayout(classes="names.txt", reduce_zero_label=False)
    copy = tmp_path / "own"
    copy.symlink_to(ade)
    with pytest.raises(UserError, match="class list .* does not exist"):
        read_label_maps(copy, few, "train")
    maps = read_label_maps(ade, LabelLayout(reduce_zero_label=False), "val")
    with pytest.raises(UserError, match="holds label 150"):
        maps.settle(np.full((2, 2), 150, dtype=np.uint8), 0)


def test_joined_labels_count_as_one_class(ade: Path, tmp_path: Path) -> None:
    digits = tuple(range(141, 151))
    plain, layout = LabelLayout(), LabelLayout(joined=(digits,))
    maps = read_label_maps(ade, layout, "val")
    assert maps.names[140] == "zero to nine"
    assert maps.names[:140] == read_label_maps(ade, plain, "val").names[:140]
    every_label = np.arange(151, dtype=np.uint8)
    found = maps.settle(every_label, 0)
    np.testing.assert_array_equal(found, np.where(every_label > 141, 141, every_label))
    # kept labels of the one layout are not read for the other
    view = SquashedLabels(squash=Squash(size=64))
    joined, apart = (
        patch_labels(read_label_maps(ade, way, "val"), view, 8, root=tmp_path)
        for way in (layout, plain)
    )
    np.testing.assert_array_equal(joined, np.where((apart > 141) & (apart < 255), 141, apart))
    assert (joined != apart).any()
    for wrong in ((141,), (141, 151), (0, 5)):
        with pytest.raises(UserError, match="a group has two labels or more, each between 1 and"):
            read_label_maps(ade, LabelLayout(joined=(wrong,)), "val")
    with pytest.raises(UserError, match="none is in two groups"):
        read_label_maps(ade, LabelLayout(joined=((1, 2), (2, 3))), "val")


def test_shares_computed_on_demand_are_those_of_all_patches() -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.choice([0, 1, 2, 255], size=(9, 4)).astype(np.uint8) for _ in range(2)]
    parts = [KeptLabels(pixels[0], np.array([8, 1, 4])), KeptLabels(pixels[1], np.arange(9))]
    labels = SoftLabels(parts, 3)
    whole = frequencies(
        without_void(np.concatenate([pixels[0][[8, 1, 4]], pixels[1]])), labels.classes
    )
    assert len(labels) == 12
    at = rng.integers(0, 12, size=(700, 5))
    np.testing.assert_array_equal(labels[at], whole[at])
    similarity = rng.random((700, 5), dtype=np.float32)
    torch.testing.assert_close(
        labels.vote(similarity, at, 0.1), soft_votes(similarity, whole[at], 0.1)
    )


def test_maps_enlarged_a_few_classes_at_a_time_are_the_whole_ones() -> None:
    shares = torch.rand(2, 12, 40, generator=torch.Generator().manual_seed(0))
    shares[..., 7:20] = 0
    # of equal ones the smallest class
    shares[..., 30] = shares[..., 2]
    maps = shares.unflatten(1, (3, 4)).permute(0, 3, 1, 2)
    full = torch.nn.functional.interpolate(maps, size=(24, 32), mode="bilinear")
    np.testing.assert_array_equal(upsample(shares, (3, 4), (24, 32)), full.argmax(dim=1).numpy())


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="need values"):
        patch_knn.Config(data=Path(), k=())
    with pytest.raises(ValueError, match="views is 0"):
        hummingbird.Config(data=Path(), views=0)
    with pytest.raises(ValueError, match="norms needs true"):
        layers.Config(data=Path(), norms=(False,))
    with pytest.raises(ValueError, match="stride is 0"):
        patch_logreg.Config(data=Path(), stride=0)
