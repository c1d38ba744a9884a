"""Following runs in Weights & Biases, MLflow and Trackio: real clients offline, and a client that fails."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest

from mimbench.__main__ import main as mimbench
from mimbench.benchmarks.cells import Cell
from mimbench.benchmarks.lifecycle import begin
from mimbench.checkpoints.files import write_weights
from mimbench.results.record import read_result, write_result
from mimbench.sample import generate
from mimbench.suite.running.cluster import Cluster, submit_cells
from mimbench.suite.running.runner import run_cells
from mimbench.suite.task_main import task_main
from mimbench.suite.tracking import session
from mimbench.suite.tracking.clients import CLIENTS, Ending, MlflowClient, Point
from mimbench.suite.tracking.follower import Follower
from mimbench.suite.tracking.run import TrackedRun, read_mark, shareable, write_mark
from mimbench.suite.tracking.session import tracked, tracked_cell
from mimbench.system.options import SHARED
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from pretrain.__main__ import main as pretrain
from tests.support import tracked_points
from tests.support.light_cells import LightJob, cell, child
from tests.support.results_folder import write_run
from tests.support.typed_commands import type_command


def curve(folder: Path, *steps: int) -> None:
    """Write a curve as a run does, one figure of it no number."""
    lines = [json.dumps({"step": s, "loss": 1 / s, "rank": None}) + "\n" for s in steps]
    (folder / "metrics.jsonl").write_text("".join(lines))


def conclude(one: Cell, **changes: Any) -> None:
    """Write a cell's result as its process does."""
    place = Path(tempfile.mkdtemp(dir=one.folder.parent))
    path = write_run(place, "made", share=0.8) / "result.json"
    write_result(one.folder / "result.json", replace(read_result(path), **changes))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "POLL", 0.05)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All clients' own settings for work without a network, in a folder of the test."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path / "store"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/store/mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "store"),
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


READERS = {
    "wandb": tracked_points.in_wandb,
    "mlflow": lambda store: tracked_points.in_mlflow(store / "mlflow.db"),
    "trackio": lambda store: tracked_points.in_trackio(store / "mimbench.db"),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_real_client_gets_every_point_once(client: str, offline: Path, tmp_path: Path) -> None:
    """Over two commands: one is interrupted, the next goes on from a saved state before its end."""
    if find_spec(client) is None:
        required = os.environ.get("MIMBENCH_REQUIRE_ALL") == "1" and client != "trackio"
        assert not required, f"{client} is locked; ./setup.sh installs it"
        pytest.skip(f"{client} is not installed; trackio is not locked: it wants an older Pillow")
    out = tmp_path / "out"
    done, left = cell(out, "done"), cell(out, "left")
    for one in (done, left):
        begin(one)
    # both started after the command, as far as the follower is concerned
    runs = [replace(tracked_cell(one), before=None) for one in (done, left)]
    with tracked(client, runs, out / "tracking.log"):
        curve(done.folder, 5, 10)
        conclude(done)
        curve(left.folder, 5, 10, 15)
    curve(left.folder, 5, 10, 15, 20)
    conclude(left, status="failed", metrics={}, intervals={}, error="broken")
    with tracked(client, runs, out / "tracking.log"):
        pass
    found = READERS[client](offline)
    group = f"{done.candidate.folder}/"
    assert set(found) == {f"{group}done a", f"{group}left a"}, (out / "tracking.log").read_text()
    points, result = found[f"{group}done a"]
    assert points == [(5, {"loss": 0.2}), (10, {"loss": 0.1})]
    stored = read_result(done.folder / "result.json")
    assert result["result/top1"] == stored.metrics["top1"]
    assert result["result/top1_interval"] == stored.intervals["top1"] > 0
    points, result = found[f"{group}left a"]
    assert [step for step, _ in points] == [5, 10, 15, 20]
    assert "result/top1" not in result


class ForgetfulClient:
    """Keeps what it is sent; `dies_at` counts calls until one fails as a killed process would."""

    def __init__(self, *, memory: bool = False, dies_at: int = -1) -> None:
        self.memory, self.left = memory, dies_at
        self.points: dict[str, list[int]] = {}
        self.results: dict[str, list[tuple[Mapping[str, float], Ending]]] = {}

    def call(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def open(self, run: TrackedRun, known: str) -> str:
        self.call()
        self.points.setdefault(known or run.name, [])
        return known or run.name

    def reached(self, run: str) -> int | None:
        return max(self.points[run], default=-1) if self.memory else None

    def log(self, run: str, points: Sequence[Point]) -> None:
        for step, _ in points:
            self.call()
            self.points[run].append(step)
        self.call()

    def finish(self, run: str, step: int, result: Mapping[str, float], ending: Ending) -> None:
        self.call()
        self.results.setdefault(run, []).append((result, ending))


@pytest.mark.parametrize("memory", [True, False], ids=["client-knows", "client-forgets"])
def test_killed_anywhere_no_point_is_doubled(memory: bool, tmp_path: Path) -> None:
    """Whichever call it dies in; a client that knows what it has gets every point as well."""
    for dies_at in range(1, 8):
        one = cell(tmp_path / str(dies_at), "a")
        begin(one)
        run = replace(tracked_cell(one), before=None)
        client = ForgetfulClient(memory=memory, dies_at=dies_at)
        curve(one.folder, 1, 2, 3)
        conclude(one)
        for _ in range(3):
            try:
                Follower("wandb", client, [run]).advance()
            except KeyboardInterrupt:
                continue
        [sent] = client.points.values()
        assert sent == sorted(set(sent)), f"call {dies_at}"
        assert not memory or sent == [1, 2, 3]
        [[(result, ending)]] = client.results.values()
        assert ending == "done"
        assert result["result/top1"] > 0


def test_steps_that_a_resumed_run_writes_again_are_sent_once(tmp_path: Path) -> None:
    one = cell(tmp_path, "a")
    begin(one)
    client = ForgetfulClient()
    follower = Follower("wandb", client, [replace(tracked_cell(one), before=None)])
    for steps in ((1, 2, 3, 4), (1, 2), (1, 2, 3), (1, 2, 3, 4, 5)):
        curve(one.folder, *steps)
        follower.advance()
    assert client.points == {"a a": [1, 2, 3, 4, 5]}


def test_another_recipe_in_the_same_place_is_another_run(tmp_path: Path) -> None:
    one = cell(tmp_path, "a")
    begin(one)
    client = ForgetfulClient()
    curve(one.folder, 1, 2)
    Follower("wandb", client, [replace(tracked_cell(one), before=None)]).advance()
    first = read_mark(one.folder, "wandb")
    other = replace(one, run=replace(one.run, config={**one.run.config, "seconds": 9.0}))
    waiting = tracked_cell(other)
    Follower("wandb", client, [waiting]).advance()
    # what lies there until the cell starts is not its own
    assert client.points == {"a a": [1, 2]}
    begin(other)
    assert read_mark(one.folder, "wandb") is None
    curve(one.folder, 1)
    client.points.clear()
    Follower("wandb", client, [waiting]).advance()
    assert client.points == {"a a": [1]}
    assert first is not None
    assert first.step == 2


def test_a_result_that_replaces_a_failure_is_sent(tmp_path: Path) -> None:
    one = cell(tmp_path, "a")
    begin(one)
    client = ForgetfulClient()
    run = replace(tracked_cell(one), before=None)
    conclude(one, status="failed", metrics={}, intervals={}, error="broken")
    Follower("wandb", client, [run]).advance()
    Follower("wandb", client, [run]).advance()
    begin(one)
    conclude(one)
    Follower("wandb", client, [run]).advance()
    Follower("wandb", client, [run]).advance()
    assert [ending for _, ending in client.results["a a"]] == ["failed", "done"]


def test_what_was_done_before_is_sent_and_what_was_sent_is_not(tmp_path: Path) -> None:
    one = cell(tmp_path, "a")
    begin(one)
    conclude(one, protocol=one.protocol)
    client = ForgetfulClient()
    for _ in range(2):
        follower = Follower("mlflow", client, [tracked_cell(one)])
        follower.advance()
        follower.close("done")
    assert len(client.results["a a"]) == 1
    # another client has a mark of its own
    other = ForgetfulClient()
    Follower("trackio", other, [tracked_cell(one)]).advance()
    assert len(other.results["a a"]) == 1


def test_a_pretraining_ends_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    run = TrackedRun(folder=tmp_path, name="hpm", group="pretrain", ends_with_result=False)
    client = ForgetfulClient()
    commands: list[tuple[Ending, tuple[int, ...]]]
    commands = [("left", (1, 2)), ("done", (1, 2, 3)), ("done", (1, 2, 3))]
    for ending, steps in commands:
        curve(tmp_path, *steps)
        follower = Follower("wandb", client, [run])
        follower.advance()
        follower.close(ending)
    assert client.points == {"hpm": [1, 2, 3]}
    # the third command had nothing to do
    assert [ending for _, ending in client.results["hpm"]] == ["left", "done"]


FAKE = """
import json, os, pathlib, sys
STORE = pathlib.Path(os.environ["FAKE_STORE"])
class Settings:
    def __init__(self, **_): pass
class Summary(dict):
    pass
class Run:
    step, resumed = 0, False
    def __init__(self, name): self.name, self.summary = name, Summary()
    def log(self, figures, step): write(self.name, step=step, **figures)
    def finish(self, exit_code): write(self.name, code=exit_code, **self.summary)
def write(name, **line):
    with STORE.open("a") as file: file.write(json.dumps({"run": name, **line}) + "\\n")
def init(*, name, group, config, **_):
    if (STORE.parent / "down").exists(): sys.exit("no way to the server\\x1b[2J")
    assert '"/' not in json.dumps(config), config
    return Run(name)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `wandb` that writes lines, or dies where a file `down` lies beside its store."""
    (tmp_path / "fake" / "wandb").mkdir(parents=True)
    (tmp_path / "fake" / "wandb" / "__init__.py").write_text(FAKE.replace("\\\\", "\\"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("FAKE_STORE", str(tmp_path / "fake" / "store.jsonl"))
    return tmp_path / "fake" / "store.jsonl"


def stored(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_cells_in_processes_of_their_own_are_followed(fake: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cells = [cell(out, "a", answer=61.5), cell(out, "b", fail=True)]
    with tracked("wandb", [tracked_cell(c) for c in cells], out / "tracking.log"):
        run_cells(cells, command=child)
    lines = stored(fake)
    assert [(line["run"], line["code"], line.get("result/top1")) for line in lines] == [
        ("a a", 0, 61.5),
        ("b a", 1, None),
    ]


@pytest.mark.slow
def test_jobs_of_a_cluster_are_followed(fake: Path, tmp_path: Path) -> None:
    """From where the command runs, through the folder that it shares with the nodes."""
    out = tmp_path / "out"
    cells = [cell(out, "a", answer=61.5)]
    cluster = Cluster(kind="local", gpus=0, poll=0.1, job=LightJob)
    with tracked("wandb", [tracked_cell(c) for c in cells], out / "tracking.log"):
        submit_cells(cells, cluster)
    assert [line["result/top1"] for line in stored(fake)] == [61.5]


def test_a_client_that_fails_costs_a_warning(
    fake: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The evaluation goes on; the warning names the reason; the next command sends the rest."""
    out = tmp_path / "out"
    cells = [cell(out, "a"), cell(out, "b", seconds=1.5)]
    (fake.parent / "down").touch()
    with tracked("wandb", [tracked_cell(c) for c in cells], out / "tracking.log"):
        ended = run_cells(cells, command=child)
    assert [e.status for e in ended] == ["done", "done"]
    said = [r.getMessage() for r in caplog.records if "wandb" in r.getMessage()]
    assert len(said) == 2, said
    assert (
        "tracking in wandb stopped: no way to the server\\x1b[2J; the evaluation goes on" in said[0]
    )
    assert "the same command sends the rest" in said[1]
    (fake.parent / "down").unlink()
    with tracked("wandb", [tracked_cell(c) for c in cells], out / "tracking.log"):
        pass
    assert [line["run"] for line in stored(fake)] == ["a a", "b a"]


def test_an_outage_that_ends_leaves_no_gap(fake: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = cell(out, "a")
    (fake.parent / "down").touch()
    run = tracked_cell(one)
    begin(one)
    with tracked("wandb", [run], out / "tracking.log"):
        curve(one.folder, 1, 2, 3)
        deadline = time.monotonic() + 20
        while "no way" not in (out / "tracking.log").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        (fake.parent / "down").unlink()
        conclude(one)
    assert [line["step"] for line in stored(fake) if "step" in line] == [1, 2, 3]
    assert stored(fake)[-1]["code"] == 0


def test_a_client_that_hangs_is_given_up(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0.5)
    (fake.parent / "wandb" / "__init__.py").write_text("import time; time.sleep(60)")
    began = time.monotonic()
    with tracked("wandb", [tracked_cell(cell(tmp_path, "a"))], tmp_path / "tracking.log"):
        pass
    assert time.monotonic() - began < 20
    assert "not everything reached wandb" in caplog.text


@pytest.mark.parametrize(
    "command",
    [
        lambda out: mimbench(["run", "none.pth", "--track", "trackio", "--out", out]),
        lambda out: task_main("knn.classify", ["none.pth", "--track", "trackio", "--out", out]),
        lambda out: pretrain(["demo", "--track", "trackio", "--out", out]),
    ],
    ids=["run", "task", "pretrain"],
)
def test_a_missing_package_is_an_error_before_anything_starts(
    command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(session, "find_spec", lambda name: None)
    assert command(str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "error: --track trackio needs the package trackio, which is not installed:" in said
    assert f"{sys.executable} -m pip install trackio\n" in said
    assert not (tmp_path / "out").exists()


def test_only_the_main_process_follows(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with tracked("wandb", [tracked_cell(cell(tmp_path, "a"))], tmp_path / "tracking.log"):
        pass
    assert not (tmp_path / "tracking.log").exists()


def test_nothing_is_followed_unasked(tmp_path: Path) -> None:
    with tracked("", [tracked_cell(cell(tmp_path, "a"))], tmp_path / "tracking.log"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_no_place_on_a_disk_leaves_the_machine() -> None:
    config = {"k": [20], "data": "/home/me/imagenet", "machine": {"workers": 3}, "start": {"weights": "/w/a.pth"}}  # fmt: skip
    assert shareable(config) == {"k": [20], "start": {"weights": "a.pth"}}
    assert shareable({"data": {"name": "sample", "root": "/d/x"}}) == {"data": {"name": "sample", "root": "x"}}  # fmt: skip


def test_marks_of_two_clients_stand_beside_each_other(tmp_path: Path) -> None:
    client = ForgetfulClient()
    (tmp_path / "config.yaml").write_text("{}")
    run = TrackedRun(folder=tmp_path, name="a", group="g", ends_with_result=False)
    Follower("wandb", client, [run]).advance()
    mark = read_mark(tmp_path, "wandb")
    assert mark is not None
    write_mark(tmp_path, "mlflow", replace(mark, step=7))
    assert read_mark(tmp_path, "wandb") == mark


def test_the_option_names_every_client() -> None:
    assert tuple(SHARED["--track"]["choices"]) == tuple(CLIENTS) == tuple(session.PACKAGES)
    assert set(get_args(Ending)) == set(MlflowClient.STATUS)
    assert (
        os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true")
        == session.QUIET["MLFLOW_DISABLE_TELEMETRY"]
    )


def tiny_sample(place: Path, monkeypatch: pytest.MonkeyPatch) -> VitWeights:
    """Give a folder the sample data in small, and return a network to evaluate on it."""
    generate(
        place / "cache" / "sample",
        train_per_class=24,
        val_per_class=2,
        train_scenes=1,
        val_scenes=1,
    )
    monkeypatch.setenv("MIMBENCH_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)
    spec = VitSpec(embed_dim=32, depth=2, num_heads=2, mlp_dim=64, patch_size=8, grid=(4, 4))
    weights = random_weights(spec, 0)
    write_weights(place / "tiny.safetensors", weights)
    return weights


def test_every_command_that_takes_the_option_follows_its_run(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_sample(tmp_path, monkeypatch)
    task = "python -m knn tiny.safetensors --data sample --profile demo --device cpu --workers 0"
    suite = "./run_all.sh tiny.safetensors --data sample --only knn --no-canary --device cpu"
    training = "python -m pretrain demo --set data.images=16 --set training.batch=4"
    training += (
        " --set training.epochs=1 --set optimizer.warmup_epochs=0 --set training.log_every=2"
    )
    for command, out in ((task, "a"), (suite, "b"), (training, "hpm")):
        code, said = type_command(f"{command} --out {out} --track wandb")
        assert code == 0, said
    lines = stored(fake)
    results = [line for line in lines if "result/top1" in line]
    assert [line["run"] for line in results] == ["in-knn.demo tiny", "in-knn.demo tiny"]
    assert results[0]["result/top1"] == results[1]["result/top1"]
    assert all("result/top1_interval" in line and line["code"] == 0 for line in results)
    trained = [line for line in lines if line["run"] == "hpm"]
    assert [line["step"] for line in trained[:-1]] == [2, 4]
    assert all(line["loss"] > 0 for line in trained[:-1])
    assert trained[-1]["code"] == 0
    # a run that was followed is not sent again, one that goes on is
    type_command(f"{task} --out a --track wandb")
    assert stored(fake) == lines
