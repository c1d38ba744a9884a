"""Dense k-NN equals the published evaluations: labels of patches, sampling, votes, both means."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mimbench.system.errors import UserError
from transfer.dense.confusion import (
    Tallier,
    best_names,
    miou_every,
    miou_labelled,
    miou_occurring,
)
from transfer.dense.patches import (
    IGNORED,
    frequencies,
    modal,
    patchify,
    rare_patches,
    rarity,
    unpatchify,
)
from transfer.dense.votes import pixel_votes, soft_votes, upsample

CLASSES = 5


@pytest.fixture
def hummingbird(golden: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "dense_knn.npz"))


@pytest.fixture
def capi(golden: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "capi_knn.npz"))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_capi_votes_are_exact_for_every_setting(capi: dict[str, np.ndarray]) -> None:
    pixels = capi["train_pixels"].astype(np.uint8)
    kept = ~np.isin(modal(pixels), (0, 255))
    assert kept.sum() == capi["kept_training_patches"]
    features, queries = capi["train_features"][kept], capi["query_features"]
    distances = {
        "cosine": -unit(queries) @ unit(features).T,
        "L2": np.square(queries[:, None] - features).sum(axis=2),
    }
    for name, distance in distances.items():
        neighbours = distance.argsort(axis=1)[:, :30]
        found = pixel_votes(pixels[kept], neighbours, (1, 3, 10, 30))
        for k, prediction in found.items():
            np.testing.assert_array_equal(prediction, capi[f"prediction/{name}_{k}"])


def bank_of(data: dict[str, np.ndarray], form: str) -> tuple[np.ndarray, np.ndarray]:
    truth = data["train_labels"][:, 0]
    pixels = patchify(np.where(truth == 255, 0, truth).astype(np.uint8), 4)
    shares = np.stack([frequencies(image, CLASSES) for image in pixels])
    np.testing.assert_array_equal(shares.reshape(5, 4, 4, 5), data["patch_soft_labels"])
    scores = np.stack([rarity(image, CLASSES) for image in pixels])
    np.testing.assert_array_equal(scores.reshape(5, 4, 4), data["patch_scores"])
    features = unit(data["train_features"])
    if form == "full":
        return features.reshape(-1, 8), shares.reshape(-1, CLASSES)
    uniform = data["uniform_noise"].reshape(5, 16)
    chosen = np.stack([rare_patches(s, u, 7) for s, u in zip(scores, uniform, strict=True)])
    np.testing.assert_array_equal(chosen, data["sampled_index"])
    rows = np.arange(5)[:, None]
    return features[rows, chosen].reshape(-1, 8), shares[rows, chosen].reshape(-1, CLASSES)


@pytest.mark.parametrize("form", ["sampled", "full"])
def test_hummingbird_is_exact(hummingbird: dict[str, np.ndarray], form: str) -> None:
    features, labels = bank_of(hummingbird, form)
    if form == "sampled":
        np.testing.assert_allclose(features, hummingbird["bank"], rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(labels, hummingbird["bank_labels"])
    cosine = unit(hummingbird["val_features"].reshape(-1, 8)) @ features.T
    neighbours = (-cosine).argsort(axis=1)[:, :6]
    np.testing.assert_array_equal(neighbours, hummingbird[f"{form}/neighbours"])
    near = np.take_along_axis(cosine, neighbours, axis=1)
    shares = soft_votes(near, labels[neighbours], float(hummingbird["beta"])).reshape(3, 16, 5)
    np.testing.assert_allclose(shares, hummingbird[f"{form}/label_hat"], atol=1e-5)
    prediction = upsample(shares, (4, 4), (16, 16))
    np.testing.assert_array_equal(prediction, hummingbird[f"{form}/prediction"][:, 0])
    tallier = Tallier(CLASSES)
    for name, truth, guess in zip("abc", hummingbird["val_labels"][:, 0], prediction, strict=True):
        tallier.add(name, truth.astype(np.uint8), guess)
    tally = tallier.close()
    total = tally.total
    np.testing.assert_array_equal(total[:, :CLASSES], hummingbird[f"{form}/confusion"])
    assert miou_every(total) == pytest.approx(100 * float(hummingbird[f"{form}/miou_identity"]))
    matched = tally.renamed(best_names(total))
    assert miou_every(matched.total) == pytest.approx(
        100 * float(hummingbird[f"{form}/miou_matched"])
    )
    [statistic] = matched.outcomes(every=True).statistics()
    assert statistic.whole() == pytest.approx(miou_every(matched.total))


def plain_vote(labels: np.ndarray) -> np.ndarray:
    """Return the most frequent label at each place (p,) of (k, p), the smallest of equal ones."""
    return np.array([np.bincount(column).argmax() for column in labels.T])


def test_votes_equal_a_plain_count_with_ties_and_prefixes() -> None:
    rng = np.random.default_rng(0)
    bank = rng.choice(np.array([0, 1, 2, 7, 255], dtype=np.uint8), size=(40, 6))
    neighbours = rng.integers(0, 40, size=(25, 30))
    found = pixel_votes(bank, neighbours, (1, 2, 4, 30))
    for k, row in itertools.product((1, 2, 4, 30), range(25)):
        want = plain_vote(bank[neighbours[row, :k]])
        np.testing.assert_array_equal(found[k][row], want)
    np.testing.assert_array_equal(found[1], bank[neighbours[:, 0]])


def test_more_votes_than_a_byte_counts() -> None:
    """They are added up 255 at a time: neither one twice nor one too few."""
    rng = np.random.default_rng(4)
    bank = np.array([[3, 3], [3, 9], [9, 200]], dtype=np.uint8)
    neighbours = rng.integers(0, 3, size=(7, 800))
    neighbours[0] = 0
    found = pixel_votes(bank, neighbours, (255, 256, 510, 511, 800))
    for k, row in itertools.product(found, range(7)):
        np.testing.assert_array_equal(found[k][row], plain_vote(bank[neighbours[row, :k]]))


def test_votes_do_not_depend_on_how_many_are_counted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    bank = rng.integers(0, 9, size=(50, 4)).astype(np.uint8)
    neighbours = rng.integers(0, 50, size=(33, 10))
    whole = pixel_votes(bank, neighbours, (3, 10))
    monkeypatch.setattr("transfer.dense.votes.PIECE_BYTES", 100)
    for k, found in pixel_votes(bank, neighbours, (3, 10)).items():
        np.testing.assert_array_equal(found, whole[k])


def test_patches_lie_in_raster_order_and_go_back() -> None:
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    pixels = patchify(labels, 2)
    np.testing.assert_array_equal(pixels[1], [2, 3, 8, 9])
    np.testing.assert_array_equal(pixels[3], [12, 13, 18, 19])
    np.testing.assert_array_equal(unpatchify(pixels, (2, 3)), labels)
    several = np.stack([labels, labels[::-1], labels + 50])
    cut = patchify(several, 2)
    assert cut.shape == (3, 6, 4)
    np.testing.assert_array_equal(cut[0], pixels)
    np.testing.assert_array_equal(unpatchify(cut, (2, 3)), several)
    with pytest.raises(UserError, match="4x6 do not divide into patches of 4"):
        patchify(labels, 4)


def test_modal_label_is_the_most_frequent_the_smallest_of_equal_ones() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 4, size=(200, 9)).astype(np.uint8)
    want = [np.bincount(row).argmax() for row in pixels]
    np.testing.assert_array_equal(modal(pixels), want)


def test_ignored_pixels_have_no_share() -> None:
    pixels = np.array([[0, 0, 1, IGNORED]], dtype=np.uint8)
    np.testing.assert_array_equal(frequencies(pixels, 3), [[0.5, 0.25, 0]])


def test_the_three_means_differ_only_in_the_classes_they_count() -> None:
    tallier = Tallier(4)
    truth = np.array([[0, 0, 1, IGNORED]], dtype=np.uint8)
    tallier.add("a", truth, np.array([[0, 2, 1, 3]], dtype=np.uint8))
    total = tallier.close().total
    assert miou_labelled(total) == pytest.approx(75)
    assert miou_occurring(total) == pytest.approx(50)
    assert miou_every(total) == pytest.approx(37.5)


def test_matching_renames_classes_and_never_loses() -> None:
    tallier = Tallier(3)
    truth = np.array([0, 1, 2, 2], dtype=np.uint8)
    tallier.add("a", truth, np.array([1, 0, 2, 2], dtype=np.uint8))
    tally = tallier.close()
    assert miou_every(tally.total) == pytest.approx(100 / 3)
    assert miou_every(tally.renamed(best_names(tally.total)).total) == pytest.approx(100)
    rng = np.random.default_rng(3)
    for _ in range(20):
        tallier = Tallier(6)
        truth, guess = rng.integers(0, 6, size=(2, 40)).astype(np.uint8)
        tallier.add("a", truth, np.where(rng.random(40) < 0.5, truth, guess).astype(np.uint8))
        tally = tallier.close()
        better = tally.renamed(best_names(tally.total))
        assert miou_every(better.total) >= miou_every(tally.total) - 1e-9


def test_an_images_accuracy_is_the_share_of_its_labelled_pixels() -> None:
    tallier = Tallier(3)
    tallier.add("a", np.array([0, 1, 2, IGNORED], np.uint8), np.array([0, 1, 0, 0], np.uint8))
    tallier.add("b", np.full(4, IGNORED, np.uint8), np.zeros(4, np.uint8))
    tallier.add("c", np.array([2, 2], np.uint8), np.array([2, 2], np.uint8))
    tally = tallier.close()
    assert [tally.accuracy(image) for image in range(3)] == pytest.approx([200 / 3, 0, 100])


def test_a_vote_for_no_class_is_wrong_and_belongs_to_no_class() -> None:
    tallier = Tallier(2)
    tallier.add("a", np.array([0, 0], dtype=np.uint8), np.array([0, IGNORED], dtype=np.uint8))
    assert miou_labelled(tallier.close().total) == pytest.approx(50)
