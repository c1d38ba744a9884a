"""95 % intervals of AP and mIoU differences cover zero for two equal models, in 1,000 simulated draws."""

import numpy as np

from mimbench.scores.confidence import mean_iou
from mimbench.scores.matches import ClassMatches, average_precision
from mimbench.scores.verdicts import compare_functions

DRAWS = 1000


def detector(rng: np.random.Generator, objects: np.ndarray, hardness: np.ndarray) -> ClassMatches:
    """One class as a detector of fixed quality finds it; hard objects are hard for every detector."""
    image = np.repeat(np.arange(len(objects)), objects)
    quality = 0.6 * hardness + 0.4 * rng.random(len(image))
    seen = quality > 0.2
    alarms = rng.integers(0, len(objects), rng.poisson(0.5 * len(objects)))
    where = np.concatenate([image[seen], alarms])
    score = np.concatenate([quality[seen], 0.8 * rng.random(len(alarms))])
    overlap = np.concatenate([quality[seen], np.zeros(len(alarms))])
    order = np.argsort(-(score + 0.3 * rng.random(len(score))), kind="stable")
    hit = np.stack([overlap[order] > cut for cut in (0.3, 0.5)])
    return ClassMatches(where[order], hit, np.ones_like(hit), objects.astype(float))


def test_interval_of_ap_covers_zero_in_95_percent() -> None:
    rng = np.random.default_rng(0)
    covered, images = 0, 50
    for _ in range(DRAWS):
        objects = rng.integers(0, 4, images)
        hardness = rng.random(objects.sum())
        pair = [average_precision([detector(rng, objects, hardness)]) for _ in range(2)]
        found = compare_functions("box_ap", pair[:1], pair[1:], images, rng, resamples=250)
        covered += found.sampling.covers(0)
    assert 0.93 * DRAWS <= covered <= 0.97 * DRAWS, covered


def test_interval_of_miou_covers_zero_in_95_percent() -> None:
    rng = np.random.default_rng(2)
    covered, images, classes = 0, 100, 3
    for _ in range(DRAWS):
        labelled = rng.integers(0, 150, (images, classes))
        easy = rng.beta(8, 4, (images, classes))
        functions = []
        for _ in range(2):
            hit = labelled * np.clip(easy + rng.normal(0, 0.08, easy.shape), 0, 1)
            functions.append(mean_iou(hit, 2 * labelled - hit, labelled))
        found = compare_functions("miou", functions[:1], functions[1:], images, rng, resamples=400)
        covered += found.sampling.covers(0)
    assert 0.93 * DRAWS <= covered <= 0.97 * DRAWS, covered
