"""`python -m transfer.detection`: the suite's own path, scoring again, pictures, several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from mimbench.checkpoints import write_weights
from mimbench.errors import UserError
from mimbench.sample import generate
from mimbench.weights import VitSpec, random_weights
from transfer.detection.command import draw, main

SPEC = VitSpec(embed_dim=24, depth=2, num_heads=3, mlp_dim=48, patch_size=8, grid=(4, 4))
MANIFEST = """
reference_file: null
defaults: {demo: [tiny]}
benchmarks:
  tiny:
    title: tiny
    group: detection
    task: transfer.detection.vitdet
    dataset: sample-coco
    config: {image_size: 64, patch_size: null, window: 4, global_blocks: 1, batch: 4, images: 8,
      precision: fp32, pyramid_channels: 16, box_convs: 1, box_width: 16, mask_convs: 1,
      proposals: 16, regions: 8, eval_every: 0}
    profiles: {demo: {}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sample data, a checkpoint and a list of benchmarks."""
    folder = tmp_path_factory.mktemp("command")
    generate(folder / "sample", train_per_class=1, val_per_class=1, train_scenes=6, val_scenes=3)
    write_weights(folder / "tiny.safetensors", random_weights(SPEC, 0))
    (folder / "benchmarks.yaml").write_text(MANIFEST.replace("reference_file: null\n", ""))
    return folder


def arguments(place: Path, *more: str) -> list[str]:
    return [
        str(place / "tiny.safetensors"),
        "--profile=demo",
        f"--benchmarks={place / 'benchmarks.yaml'}",
        "--device=cpu",
        f"--out={place / 'runs'}",
        *more,
    ]


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The folder of a run made through the command."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MIMBENCH_CACHE", str(place))
        assert main(arguments(place)) == 0
    [record] = place.glob("runs/**/run.json")
    return record.parent


def test_the_command_leaves_a_result_of_the_suite(finished: Path) -> None:
    assert (finished / "result.json").exists()
    assert (finished / "detections.json").exists()


def test_scoring_again_prints_the_same_figures_and_draws(
    place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "detections.json").read_text()
    again = arguments(place, f"--eval-only={finished}", "--show=2")
    assert main(again) == 0
    lines = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert {"box_ap", "mask_ap"} <= lines.keys()
    assert (finished / "detections.json").read_text() == before
    assert len(list((finished / "pictures").glob("*.png"))) == 2


def test_mistakes_on_the_command_line_are_explained(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(place, "--show=2")) == 2
    assert "--show needs --eval-only" in capsys.readouterr().err
    assert main(arguments(place, f"--eval-only={place}")) == 2
    assert "is not the folder of a detection run" in capsys.readouterr().err
    assert main([f"--eval-only={place}"]) == 2
    assert "needs the checkpoint" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not the folder of a detection run"):
        draw(place, 1, None)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_detectron2s_launcher_starts_the_processes(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "transfer.detection", *arguments(place, "--seed=1", "--num-gpus=2")],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "MIMBENCH_CACHE": str(place), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([x for x in done.stdout.splitlines() if x.startswith("box_ap\t")]) == 1
