"""`python -m transfer.detection`: the suite's own path, scoring again, pictures, several processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from mimbench.checkpoints.files import write_weights
from mimbench.results.record import read_result
from mimbench.sample import generate
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec, random_weights
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
    max_batch: 1
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
        assert main(arguments(place, "--max-batch=2")) == 0
    [record] = place.glob("runs/**/run.json")
    return record.parent


def test_the_command_leaves_a_result_of_the_suite(finished: Path) -> None:
    assert (finished / "result.json").exists()
    assert (finished / "detections.json").exists()


def test_the_users_batch_wins_over_the_benchmarks(finished: Path) -> None:
    notes = read_result(finished / "result.json").notes
    assert (notes["micro_batch"], notes["micro_steps"]) == (2, 2)


def test_scoring_again_prints_the_same_figures_and_draws(
    place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "detections.json").read_text()
    again = arguments(place, f"--eval-only={finished}", "--show=2")
    assert main(again) == 0
    lines = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert {"box_ap", "mask_ap"} <= lines.keys()
    assert (finished / "detections.json").read_text() == before
    shown = [path.name for path in (finished / "pictures").glob("*.png")]
    # the run's own for the report lie beside them
    assert len([name for name in shown if not name.startswith("detections-")]) == 2


def test_mistakes_on_the_command_line_are_explained(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(place, "--show=2")) == 2
    assert "--show needs --eval-only" in capsys.readouterr().err
    assert main(arguments(place, f"--eval-only={place}")) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    assert main([f"--eval-only={place}"]) == 2
    assert "needs the checkpoint" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not the folder of a run"):
        draw(place, 1, None, threshold=0.5)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def machines(way: str, port: int) -> list[list[str]]:
    """The commands, one for each machine (here all are this one), that start two processes."""
    module = ["-m", "transfer.detection"]
    if way == "two GPUs":
        return [[*module, "--gpus=2"]]
    if way == "two machines":
        together = ["--nodes=2", f"--dist-url=tcp://127.0.0.1:{port}"]
        return [[*module, *together, f"--node-rank={rank}"] for rank in range(2)]
    meeting = ["--master-addr=127.0.0.1", f"--master-port={port}"]
    if way == "torchrun":
        return [["-m", "torch.distributed.run", "--nproc-per-node=2", *meeting, *module]]
    return [
        ["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", *meeting, *module]
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["two GPUs", "two machines", "torchrun", "torchrun on two nodes"])
def test_launchers_start_two_processes_that_work_on_one_run(
    way: str, place: Path, tmp_path: Path
) -> None:
    options = [a for a in arguments(place, "--seed=1") if not a.startswith("--out=")]
    parts = [
        subprocess.Popen(
            [sys.executable, *command, *options, f"--out={tmp_path / 'runs'}"],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "MIMBENCH_CACHE": str(place), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in machines(way, free_port())
    ]
    outputs = [part.communicate(timeout=400) for part in parts]
    for part, (_, errors) in zip(parts, outputs, strict=True):
        assert part.returncode == 0, errors[-3000:]
    lines = [line for out, _ in outputs for line in out.splitlines()]
    assert len([line for line in lines if line.startswith("box_ap\t")]) == 1
    [result] = tmp_path.glob("runs/**/result.json")
    assert read_result(result).notes["processes"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes=2"], "--nodes 2 needs --dist-url tcp://HOST:PORT"),
        (
            ["--nodes=2", "--dist-url=tcp://h:1", "--node-rank=2"],
            "--node-rank is 2, expected 0 to 1",
        ),
        (["--gpus=0"], "--gpus is 0, expected 1 or more"),
    ],
)
def test_a_launch_that_cannot_work_is_refused_at_once(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(arguments(place, *options)) == 2
    assert message in capsys.readouterr().err
