"""The sample's landmarks and clips: in the published layouts, the same everywhere, learnable by looking."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.benchmarks.locations import locate
from mimbench.benchmarks.manifest import load_manifest
from mimbench.data.contents import Clips, Landmarks
from mimbench.data.sets import read_set
from mimbench.sample.moving import moving_root, write_clips, write_landmarks
from mimbench.system.config import from_mapping
from mimbench.task import load_task
from mimbench.vit.weights import VitSpec, random_weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("moving")
    write_landmarks(root / "roxford5k", places=4, others=6)
    write_clips(root / "davis", sequences=2, frames=5)
    return root


def test_landmarks_lie_as_the_published_set_does(made: Path) -> None:
    truth = read_set("roxford5k", made / "roxford5k", Landmarks)
    assert truth.counts() == {"images": 4 * 12 + 6, "queries": 4}
    assert truth.easy[1].tolist() == [12, 13, 14, 15, 16]
    assert truth.hard[1].tolist() == [17, 18, 19, 20, 21]
    assert truth.cropped().open(0).size == (80, 80)
    # what is seen well is more like the query than what is seen badly
    query = np.asarray(truth.queries.open(1).resize((16, 16)), dtype=float)

    def distance(places: np.ndarray) -> float:
        seen = [np.asarray(truth.database.open(int(i)).resize((16, 16))) for i in places]
        return float(np.mean([np.abs(s - query).mean() for s in seen]))

    assert distance(truth.easy[1]) < distance(truth.hard[1])


def test_clips_lie_as_the_published_set_does(made: Path) -> None:
    from transfer.video.frames import read_labels

    clips = read_set("davis", made / "davis", Clips).clips
    assert [len(c.frames) for c in clips] == [5, 5]
    first, last = (read_labels(clips[1].labels[i]) for i in (0, -1))
    assert set(np.unique(first)) == {0, 1, 2}
    assert (first != last).any()


def test_it_is_made_once_and_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path))
    for name in ("write_landmarks", "write_clips"):
        monkeypatch.setattr(
            f"mimbench.sample.moving.{name}", lambda root: (root.mkdir(), calls.append(root))
        )
    assert locate("sample-landmarks", None) == moving_root() / "roxford5k"
    assert locate("sample-clips", None) == moving_root() / "davis"
    assert len(calls) == 2


@pytest.mark.parametrize(("benchmark", "folder"), [("roxf", "roxford5k"), ("davis-prop", "davis")])
def test_the_demos_columns_run_on_it(
    benchmark: str, folder: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    manifest = load_manifest()
    assert benchmark in manifest.defaults["demo"]
    _, recipe = manifest.recipe(benchmark, "demo")
    task = load_task(manifest.benchmarks[benchmark].task)
    machine = {"device": "cpu", "workers": 0}
    config = from_mapping(task.Config, {**recipe, "data": str(made / folder), "machine": machine})
    spec = VitSpec(embed_dim=32, depth=2, num_heads=2, mlp_dim=64, patch_size=8, grid=(4, 4))
    metrics = task.run(random_weights(spec, 0), config, tmp_path / "out").metrics
    assert 5 < metrics[task.MAIN_METRIC] <= 100


def test_the_light_of_a_clip_changes(made: Path) -> None:
    """Objects keep their masks' shapes while colours move, by up to a factor of two and more."""
    clips = read_set("davis", made / "davis", Clips).clips
    means = []
    for path in clips[0].frames:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=float)
        means.append([pixels[:, :20].mean((0, 1)), pixels[:, -20:].mean((0, 1))])
    spread = np.max(means, axis=0) / np.min(means, axis=0)
    assert spread.shape == (2, 3)
    assert spread.min() > 1.05
    assert spread.max() > 1.5
