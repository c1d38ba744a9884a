"""Files are whole or absent; progress reads well in a file."""

import io
from pathlib import Path

import pytest

from mimbench.system.files import (
    append_json_line,
    atomic_path,
    file_digest,
    json_lines,
    value_digest,
    write_json,
    write_text,
)
from mimbench.system.progress import Progress, clock


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")

    def fail_midway() -> None:
        with atomic_path(path) as part:
            part.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_midway()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"top1": float("nan")})
    assert not list(tmp_path.iterdir())


def test_lines_are_on_the_disk_at_once_and_one_that_was_cut_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert list(json_lines(path)) == []
    with path.open("a", encoding="utf-8") as file:
        append_json_line(file, {"name": "é\udcff"})
        append_json_line(file, [1, 2])
        assert [value for _, value in json_lines(path)] == [{"name": "é\udcff"}, [1, 2]]
        with pytest.raises(ValueError, match="not JSON compliant"):
            append_json_line(file, float("inf"))
    path.write_bytes(path.read_bytes()[:-4] + b"\n\xff\n3\n")
    assert list(json_lines(path))[1:] == [("3", 3)]


def test_digests_depend_on_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b")
    assert (
        value_digest({"a": 1, "b": 2})
        == value_digest({"b": 2, "a": 1})
        != value_digest({"a": 2, "b": 2})
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59, "59s"), (187, "3m07s"), (7500, "2h05m"), (273600, "3d04h")],
)
def test_clock_reads_like_a_person(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_progress_is_plain_lines_in_a_file() -> None:
    stream = io.StringIO()
    bar = Progress("k-NN", 10, stream=stream)
    bar.step(5, loss=1.23456)
    assert bar.line(bar.began + 10.0) == "k-NN 5/10 50% 10s left 10s loss 1.235"
    bar.close()
    assert "\r" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_the_last_plain_line_is_not_said_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimbench.system.progress.PLAIN_SECONDS", 0.0)
    stream = io.StringIO()
    bar = Progress("k-NN", 10, stream=stream)
    bar.step(5)
    bar.step(5)
    bar.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["5/10", "10/10"]


class Terminal(io.StringIO):
    """Text that goes to a person."""

    def isatty(self) -> bool:
        return True


def test_a_live_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer one goes on in the next row, where no carriage return takes it back."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("mimbench.system.progress.LIVE_SECONDS", 0.0)
    stream = Terminal()
    bar = Progress("pretrain", 3146, stream=stream)
    figures = {f"a_figure_with_a_long_name_{i}": 0.123456 for i in range(8)}
    bar.step(146, **figures)
    bar.close()
    shown = [part for part in stream.getvalue().replace("\n", "").split("\r") if part]
    assert len(shown) == 2
    assert all(60 < len(part) <= 99 for part in shown)
    # words stay whole
    assert shown[0].endswith(("0.1235", *figures))
