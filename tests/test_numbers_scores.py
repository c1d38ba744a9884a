"""Scores and intervals on cases small enough to work out by hand."""

import numpy as np
import pytest
import torch

from mimbench.scores.confidence import CHUNK, image_weights, mean_iou
from mimbench.scores.confusion import Confusion
from mimbench.scores.hits import Hits
from mimbench.scores.outcomes import Statistic
from mimbench.scores.shares import Shares
from mimbench.scores.spectra import mean_cosine, two_nn
from mimbench.system.errors import UserError


def test_as_many_resamples_as_asked_for_in_pieces_of_a_bounded_size() -> None:
    chunks = list(image_weights(7, np.random.default_rng(0), CHUNK + 3))
    assert [len(chunk) for chunk in chunks] == [CHUNK, 3]
    assert all((chunk.sum(axis=1) == 7).all() for chunk in chunks)


def test_a_class_with_a_single_labelled_pixel_counts() -> None:
    counts = np.array([[[4, 1], [4, 2], [4, 2], [4, 1]]])
    value = mean_iou(counts[:, 0], counts[:, 1], counts[:, 3])
    assert value(np.ones((1, 1))) == pytest.approx([75.0])


def test_confusion_knows_its_images_and_classes() -> None:
    #  by hand: class 1 has 3 + 0 of 6 pixels right, class 2 was never labelled, class 3 has 2 of 4
    intersect = np.array([[3, 0, 2], [0, 0, 0]])
    union = np.array([[4, 1, 4], [2, 0, 0]])
    labelled = np.array([[3, 0, 4], [1, 0, 0]])
    found = Confusion(
        images=("a", "b"), intersect=intersect, union=union, predicted=union, labelled=labelled
    )
    assert found.classes() == {"class 1": pytest.approx(50.0), "class 3": pytest.approx(50.0)}
    [statistic] = found.statistics()
    assert (statistic.metric, statistic.images) == ("miou", ("a", "b"))
    assert statistic.value(np.ones((1, 2))) == pytest.approx([50.0])
    again = Confusion.from_arrays(found.arrays())
    assert again.classes() == found.classes()


def test_hits_are_counted_class_by_class() -> None:
    hits = Hits(
        images=("cat/1.png", "cat/2.png", "dog/1.png"),
        labels=np.array([0, 0, 1]),
        top5=np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [1, 0, 2, 3, 4]]),
    )
    assert hits.classes() == {"cat": 50.0, "dog": 100.0}


def test_a_statistic_in_another_order_is_the_same_statistic() -> None:
    shares = np.array([1.0, 0.5, 0.0])
    one = Statistic(
        metric="m", images=("a", "b", "c"), value=lambda w: 100 * (w @ shares) / w.sum(axis=1),
        per_image=shares,
    )  # fmt: skip
    assert one.ordered(("a", "b", "c")) is one
    other = one.ordered(("c", "a", "b"))
    assert other.images == ("c", "a", "b")
    assert other.per_image is not None
    assert other.per_image.tolist() == [0.0, 1.0, 0.5]
    assert other.value(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])) == pytest.approx([0, 100, 50])


def test_shares_give_a_hundred_times_their_mean() -> None:
    shares = Shares(images=("a", "b"), values={"recall": np.array([0.25, 1.0])})
    [found] = shares.statistics()
    assert (found.metric, found.images, found.whole()) == ("recall", ("a", "b"), 62.5)
    assert found.value(np.array([[2.0, 0.0]])) == pytest.approx([25.0])
    with pytest.raises(ValueError, match="recall has shares of shape"):
        Shares(images=("a",), values={"recall": np.zeros(2)})


def test_spectra_are_taken_in_double_precision_and_refuse_too_few() -> None:
    generator = torch.Generator().manual_seed(0)
    # far from the origin single precision loses the small distances
    points = torch.randn(200, 4, generator=generator) / 50 + 30
    assert two_nn(points) == pytest.approx(two_nn(points.double()), rel=1e-9)
    with pytest.raises(UserError, match="2 or more"):
        mean_cosine(torch.ones(1, 3))
    assert mean_cosine(torch.ones(2, 3)) == pytest.approx(1.0)
