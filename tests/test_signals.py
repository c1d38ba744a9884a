"""Signals: a scheduler's, a closed terminal's; and what interrupted writes leave behind."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from mimbench.__main__ import main
from mimbench.benchmarks.cells import Cell
from mimbench.suite.running.runner import run_cells
from mimbench.suite.running.screen import last_lines
from mimbench.suite.suite import _verdict
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode
from mimbench.system.files import atomic_path, sweep_parts, write_text
from mimbench.system.lock import NO_LOCK, folder_lock
from mimbench.system.signals import Interrupts
from mimbench.training.snapshots import read_state
from tests.support.light_cells import cell, child


def started(out: Path, epochs: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a training run in a process group of its own; return it once it has taken a step."""
    command = [sys.executable, "-m", "tests.support.signalled_run", str(out), str(epochs)]
    with log.open("wb") as file:
        run = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    while not (out / "metrics.jsonl").exists():
        assert run.poll() is None, log.read_text()
        time.sleep(0.02)
    return run


@pytest.mark.parametrize(
    "sign", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_whole_group_saves_and_ends_without_an_error(
    sign: signal.Signals, tmp_path: Path
) -> None:
    """As Slurm does: the loader's processes get the signal too, and first."""
    run = started(tmp_path / "run", 100_000, tmp_path / "log")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    until = time.monotonic() + 60
    while len(workers := children.read_text().split()) < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.3)  # let them leave signals to their parent
    for worker in workers:
        os.kill(int(worker), sign)
    # long enough for the parent to ask its workers for more
    time.sleep(1.0)
    assert run.poll() is None, (tmp_path / "log").read_text()[-1000:]
    assert all(Path(f"/proc/{worker}").exists() for worker in workers)
    os.killpg(run.pid, sign)
    assert run.wait(timeout=60) == ExitCode.PREEMPTED
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert read_state(tmp_path / "run" / "checkpoints" / "last.pt")["step"] > 0


def runner(cells: list[Cell], *, signals: tuple[int, ...]) -> tuple[int, list[int]]:
    """Run cells in a process that gets the signals; return its exit code and the cells' processes."""
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # the tests themselves may have been started with nohup, which ignores it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            with Interrupts():
                run_cells(cells, command=child)
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(0)
    while not last_lines(cells[0].folder / "log.txt"):
        time.sleep(0.02)
    [found] = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent(p) == process]
    for number in signals:
        os.kill(process, number)
        time.sleep(0.02)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), [found]


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_the_runner_takes_its_cells_with_it(sign: int, tmp_path: Path) -> None:
    slow = cell(tmp_path, "slow", seconds=60)
    # a closing terminal signals more than once
    code, children = runner([slow], signals=(sign, sign, signal.SIGHUP))
    assert code == 7
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (slow.folder / "result.json").exists()


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("code", [ExitCode.PREEMPTED, -signal.SIGTERM])
def test_a_cell_told_to_leave_is_interrupted_and_not_failed(
    code: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leaving = (
        cell(tmp_path, "leaving", leave=int(code))
        if code > 0
        else cell(tmp_path, "slow", seconds=60)
    )

    class Sender:
        def begin(self, cell: object) -> None:
            if code < 0:
                time.sleep(0.3)
                found = [
                    int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent(p) == os.getpid()
                ]
                for process in found:
                    if b"config" in Path(f"/proc/{process}/cmdline").read_bytes():
                        os.kill(process, signal.SIGTERM)

        def end(self, cell: object, seconds: float) -> None: ...

    with caplog.at_level(logging.INFO):
        ended = run_cells([leaving], command=child, monitor=Sender())
    assert [e.status for e in ended] == ["interrupted"]
    assert "interrupted after" in caplog.text
    assert "the same command goes on" in caplog.text
    assert not (leaving.folder / "result.json").exists()
    assert _verdict([leaving], ended) == ExitCode.PREEMPTED
    [again] = run_cells([cell(tmp_path, leaving.run.benchmark)], command=child)
    assert again.status == "done"


def test_interrupted_writes_are_swept_and_writes_under_way_are_kept(tmp_path: Path) -> None:
    writer = os.fork()
    if writer == 0:
        with atomic_path(tmp_path / "a" / "lost.bin") as part:
            part.write_bytes(b"x" * 100)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(writer, 0)
    [lost] = tmp_path.rglob("*.part")
    with atomic_path(tmp_path / "a" / "kept.bin") as part:
        part.write_bytes(b"y" * 100)
        assert sweep_parts(tmp_path) == [lost]
        assert part.exists()
    assert (tmp_path / "a" / "kept.bin").read_bytes() == b"y" * 100
    assert not list(tmp_path.rglob("*.part"))
    (tmp_path / "a" / ".old.bin.x.part").write_bytes(b"z")
    with folder_lock(tmp_path, "busy"):
        assert not list(tmp_path.rglob("*.part"))


def test_without_locks_only_old_parts_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    for name, age in (("new", 60), ("old", 2 * 24 * 3600)):
        part = tmp_path / f".{name}.part"
        part.write_bytes(b"x")
        at = time.time() - age
        os.utime(part, (at, at))
    assert [p.name for p in sweep_parts(tmp_path)] == [".old.part"]
    write_text(tmp_path / "text", "written all the same")
    assert (tmp_path / "text").read_text() == "written all the same"


@pytest.mark.parametrize("number", [37, 38, 95])
def test_a_file_system_without_locks_is_named_and_no_lock_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with (
        pytest.raises(
            UserError, match="without file locks .* or --no-lock if this is the only run"
        ),
        folder_lock(tmp_path, "busy"),
    ):
        pass
    monkeypatch.setenv(NO_LOCK, "1")
    with folder_lock(tmp_path, "busy"):
        pass


def test_a_forks_life_does_not_prolong_a_lock(tmp_path: Path) -> None:
    """Workers of a killed run held its lock until they noticed: the same command was refused."""
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        with folder_lock(tmp_path, "busy"):
            worker = os.fork()
            if worker == 0:
                time.sleep(30)
                os._exit(0)
            os.write(writer, str(worker).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    worker = int(os.read(reader, 20))
    try:
        os.kill(worker, 0)
        with folder_lock(tmp_path, "busy"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_an_output_folder_that_is_a_file_is_said(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file")
    torch.save({}, tmp_path / "a.pth")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        assert main([command, str(tmp_path / "a.pth"), "--out", str(out)]) == 2
        assert "is a file, not a folder; use another --out" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_or_vanishes_is_said(tmp_path: Path) -> None:
    from mimbench.features.bank import FeatureBank

    with (
        pytest.raises(UserError, match=r"cannot be written \(.*choose another"),
        atomic_path(Path("/proc/nothing/here.bin")),
    ):
        pass
    images: Any = ["one image"]
    bank = FeatureBank(folder=tmp_path / "gone", images=images, spec=cast(Any, None))
    with pytest.raises(UserError, match="was removed or damaged since it was written"):
        bank.load("cls")


def test_a_process_with_loader_workers_that_live_on_ends_at_once() -> None:
    """Python terminates daemons at its end and waits for them: workers that ignore it hung for ever."""
    code = """
import multiprocessing, time
from mimbench.system.signals import leave_signals_to_parent

def work():
    leave_signals_to_parent()
    time.sleep(600)

if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    worker.start()
    time.sleep(1)
"""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert done.returncode == 0
