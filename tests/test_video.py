"""DAVIS: the official J and F, DINO's propagation, the published layout, an oracle and a stranger."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.data.contents import Clips
from mimbench.data.sets import published, read_set
from mimbench.scores.outcomes import read_outcomes, write_outcomes
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.memory import Halving
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, random_weights
from transfer.video import davis
from transfer.video.contours import boundary, contour, object_scores, region, summary
from transfer.video.davis import Config, Sequences
from transfer.video.frames import frame_size, patch_features, read_labels
from transfer.video.outcomes import TrackedObjects
from transfer.video.propagation import PropagationRule, carry, decide, propagate, window


def film(
    root: Path, *, frames: int = 5, step: int = 4, names: tuple[str, ...] = ("ball", "car")
) -> Path:
    """Write a miniature of the published layout: squares that move over noise, with void pixels."""
    rng = np.random.default_rng(0)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(names) + "\n")
    for name in names:
        ground = rng.integers(0, 90, (40, 72, 3), dtype=np.uint8)
        objects = 1 + names.index(name)
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True)
        for i in range(frames):
            pixels, labels = ground.copy(), np.zeros((40, 72), dtype=np.uint8)
            for number in range(1, objects + 1):
                left, top = 8 + step * i, 2 + 18 * (number - 1)
                pixels[top : top + 16, left : left + 16] = (250, 60 * number, 250 - 100 * number)
                labels[top : top + 16, left : left + 16] = number
            labels[-1, -1] = 255
            Image.fromarray(pixels).save(
                root / "JPEGImages" / "480p" / name / f"{i:05d}.jpg", quality=95, subsampling=0
            )
            drawn = Image.fromarray(labels, mode="P")
            drawn.putpalette(bytes(range(256)) * 3)
            drawn.save(root / "Annotations" / "480p" / name / f"{i:05d}.png")
    return root


def config(data: Path, **changes: Any) -> Config:
    plain = {
        "data": str(data), "side": 40, "multiple": 8, "rule": {"radius": 3, "previous": 2},
        "machine": {"device": "cpu", "workers": 0},
    }  # fmt: skip
    return from_mapping(Config, {**plain, **changes})


def test_j_and_f_are_the_official_ones(golden: Path) -> None:
    with np.load(golden / "davis_metrics.npz") as file:
        pairs = list(zip(file["annotation"], file["segmentation"], strict=True))
        j = np.array([region(a, s) for a, s in pairs])
        f = np.array([contour(a, s) for a, s in pairs])
        np.testing.assert_allclose(j, file["j"], atol=1e-12)
        np.testing.assert_allclose(f, file["f"], atol=1e-12)
        np.testing.assert_allclose(summary(j), file["j_mean_recall_decay"], atol=1e-12)
        np.testing.assert_allclose(summary(f), file["f_mean_recall_decay"], atol=1e-12)
        np.testing.assert_array_equal(boundary(pairs[0][0]), file["boundary_of_first_annotation"])


def test_a_box_moved_by_nine_pixels_in_a_large_frame(golden: Path) -> None:
    with np.load(golden / "davis_metrics.npz") as file:
        top, bottom, left, right = file["big_box"]
        shift = int(file["big_shift"])
        annotation = np.zeros((480, 854), dtype=bool)
        annotation[top:bottom, left:right] = True
        moved = np.zeros_like(annotation)
        moved[top:bottom, left + shift : right + shift] = True
        assert region(annotation, moved) == pytest.approx(float(file["big_j"]), abs=1e-12)
        assert contour(annotation, moved) == pytest.approx(float(file["big_f"]), abs=1e-12)


def test_first_and_last_frame_do_not_count_and_the_truth_is_perfect() -> None:
    truth = np.zeros((6, 20, 30), dtype=np.uint8)
    truth[:, 4:12, 5:14], truth[:, 13:18, 5:14] = 1, 2
    assert object_scores(truth, truth).tolist() == [[1, 1, 0, 1, 1, 0]] * 2
    wrong = truth.copy()
    wrong[[0, -1]] = 0
    assert object_scores(truth, wrong).tolist() == [[1, 1, 0, 1, 1, 0]] * 2
    wrong[1] = 0
    assert object_scores(truth, wrong)[0, 0] == 0.75


def test_propagation_is_that_of_the_reference(golden: Path) -> None:
    with np.load(golden / "davis_propagation.npz") as file:
        grid = (int(file["grid"][0]), int(file["grid"][1]))
        rule = PropagationRule(
            previous=int(file["previous_frames"]),
            neighbours=int(file["topk"]),
            radius=int(file["radius"]),
            temperature=float(file["temperature"]),
        )
        near = window(grid, rule.radius)
        np.testing.assert_array_equal(near.float().numpy(), file["neighbourhood"])
        features = torch.nn.functional.normalize(torch.from_numpy(file["features"]), dim=2)
        first = torch.from_numpy(file["first_labels"])
        soft = list(propagate(features, first, grid, rule))
        np.testing.assert_allclose(torch.stack(soft).numpy(), file["soft"], atol=1e-5)
        predicted = torch.stack([decide(s, int(file["patch_size"])) for s in soft])
        np.testing.assert_array_equal(predicted.numpy(), file["prediction"])
        pieces = list(propagate(features, first, grid, rule, Halving(size=9)))
        torch.testing.assert_close(torch.stack(pieces), torch.stack(soft))


def test_the_neighbours_are_chosen_over_all_frames_together() -> None:
    target = torch.tensor([[1.0, 0.0]])
    sources = torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[0.0, 1.0], [-1.0, 0.0]]])
    labels = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    rule = PropagationRule(neighbours=2, temperature=1.0)
    near = torch.ones(1, 2, dtype=torch.bool)
    # two of each frame would let the second object in
    assert carry(target, sources, labels, near, rule).tolist() == [[1.0], [0.0]]


def test_identical_frames_keep_the_first_masks() -> None:
    grid = (4, 6)
    one = torch.eye(24)
    first = torch.zeros(2, *grid)
    first[1, 1:3, 2:4] = 1
    first[0] = 1 - first[1]
    rule = PropagationRule(neighbours=1)
    for soft in propagate([one] * 5, first, grid, rule):
        assert torch.equal(soft, first)


def test_frames_have_the_sizes_of_the_script() -> None:
    assert frame_size(854, 480, side=480, multiple=64) == (832, 480)
    assert frame_size(910, 480, side=480, multiple=64) == (896, 480)
    assert frame_size(480, 854, side=480, multiple=64) == (480, 832)


def test_the_scripts_blue_is_divided_by_its_own_number(small_spec: VitSpec) -> None:
    network = build_backbone(random_weights(small_spec, 0))
    frame = torch.rand(3, 32, 32)
    seen: list[torch.Tensor] = []
    embed = network.vit.embed

    def spy(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return embed(x)

    network.vit.embed = spy  # pyright: ignore[reportAttributeAccessIssue]
    for published_std in (True, False):
        patch_features(network, frame, block=1, norm=True, published_std=published_std)
    mean = torch.tensor(small_spec.mean).view(3, 1, 1)
    for x, blue in zip(seen, (0.228, 0.225), strict=True):
        std = torch.tensor([0.229, 0.224, blue]).view(3, 1, 1)
        torch.testing.assert_close(x[0], (frame - mean) / std)


def test_the_layout_is_read_and_counted(tmp_path: Path) -> None:
    root = film(tmp_path / "DAVIS")
    for folder in (root, tmp_path):
        clips = read_set("davis", folder, Clips)
        assert [c.name for c in clips.clips] == ["ball", "car"]
        assert clips.counts() == {"sequences": 2, "frames": 10}
    assert published()["davis"].counts == {"sequences": 30, "frames": 1_999}
    labels = read_labels(clips.clips[1].labels[0])
    assert np.unique(labels).tolist() == [0, 1, 2]
    (root / "Annotations" / "480p" / "car" / "00002.png").unlink()
    with pytest.raises(UserError, match=r"car: frames and label maps differ in 00002"):
        read_set("davis", root, Clips)
    (root / "ImageSets" / "2017" / "val.txt").write_text("../../etc\n")
    with pytest.raises(UserError, match="no sequence"):
        read_set("davis", root, Clips)


def test_a_run_is_scored_kept_and_gone_on_with(
    small_spec: VitSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, weights = film(tmp_path / "davis"), random_weights(small_spec, 0)
    result = davis.run(weights, config(root), tmp_path / "out")
    metrics = result.metrics
    assert metrics["jf"] == pytest.approx((metrics["j_mean"] + metrics["f_mean"]) / 2)
    # squares on a ground of their own colour: even random weights follow them
    assert 30 < metrics["jf"] < 100
    assert result.notes["objects"] == 3
    [kept] = result.outcomes
    write_outcomes(tmp_path / "o.npz", kept)
    for statistic in read_outcomes(tmp_path / "o.npz", TrackedObjects).statistics():
        assert statistic.whole() == pytest.approx(metrics[statistic.metric])
        assert statistic.images == ("ball", "car")
    assert result.pictures[0].image.height == 240

    def refuse(*_: Any) -> Any:
        raise AssertionError("a sequence that was done is done again")

    monkeypatch.setattr(Sequences, "follow", refuse)
    assert davis.run(weights, config(root), tmp_path / "out").metrics == metrics
    with pytest.raises(AssertionError):
        davis.run(weights, config(root, norm=False), tmp_path / "out")


def test_a_sequence_that_is_drawn_twice_brings_its_objects_twice() -> None:
    scores = np.array([[1.0] * 6, [0.0] * 6, [0.5] * 6])
    kept = TrackedObjects(images=("a", "b"), sequence=np.array([0, 0, 1]), scores=scores)
    jf = kept.statistics()[0]
    assert jf.value(np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0]])).tolist() == [50, 50, 50]
    other = TrackedObjects(
        images=("a", "b"),
        sequence=np.array([0, 0, 1]),
        scores=np.array([[1.0] * 6] * 2 + [[0.0] * 6]),
    )
    assert other.statistics()[0].value(np.array([[1.0, 1.0]])) == pytest.approx(200 / 3)


def test_an_oracle_is_perfect_and_a_stranger_is_not(
    small_spec: VitSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, weights = film(tmp_path / "davis"), random_weights(small_spec, 0)

    def truth(self: Sequences, clip: Any, first: Any) -> Any:
        return [read_labels(path) for path in clip.labels]

    rng = np.random.default_rng(0)

    def noise(self: Sequences, clip: Any, first: Any) -> Any:
        return [rng.integers(0, 2, first.shape).astype(np.uint8) for _ in clip.labels]

    found = {}
    for name, answer in {"oracle": truth, "stranger": noise}.items():
        monkeypatch.setattr(Sequences, "follow", answer)
        found[name] = davis.run(weights, config(root), tmp_path / name).metrics
    assert (found["oracle"]["jf"], found["oracle"]["j_decay"]) == (100, 0)
    assert found["stranger"]["j_mean"] < 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 5}, "block 5 from the end of a model of 4"),
        ({"side": 44}, "do not divide into this checkpoint's patches of 8"),
        ({"rule": {"temperature": 0.0}}, "cannot be propagated with"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    changes: dict[str, Any], message: str, small_spec: VitSpec, tmp_path: Path
) -> None:
    root = film(tmp_path / "davis", names=("ball",), frames=3)
    with pytest.raises((ValueError, UserError), match=message):
        davis.run(random_weights(small_spec, 0), config(root, **changes), tmp_path / "out")
