"""Scores and intervals on cases small enough to work out by hand."""

import numpy as np
import pytest

from mimbench.scores.confidence import CHUNK, image_weights, mean_iou
from mimbench.scores.confusion import Confusion


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
