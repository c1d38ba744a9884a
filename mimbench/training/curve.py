"""A run's training curve: metrics.jsonl, one JSON object for each recorded step, and TensorBoard.

The one writer of that file, whatever trains: a figure that was not measured has no place in a line,
and one that is no finite number is null.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mimbench.system.files import append_json_line, json_lines, write_text

logger = logging.getLogger(__name__)

CURVE_FILE = "metrics.jsonl"
BOARD_FOLDER = "tensorboard"


class Curve:
    """The curve of one run; a resumed run continues it without a seam."""

    def __init__(self, out: Path, *, resumed_at: int, tensorboard: bool = False) -> None:
        """Open the file after dropping what the resumed run will write again.

        Args:
            out: The run's folder.
            resumed_at: The last step that is kept.
            tensorboard: Write event files as well.
        """
        out.mkdir(parents=True, exist_ok=True)
        path = out / CURVE_FILE
        kept = [line for line, entry in _entries(path) if entry["step"] <= resumed_at]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")
        self.board = _summary_writer(out / BOARD_FOLDER, resumed_at) if tensorboard else None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Record the figures that were measured at a step."""
        plain = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        append_json_line(self.file, {"step": step, **plain})
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the files."""
        self.file.close()
        if self.board is not None:
            self.board.close()


def read_curve(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's curve, each with its `step`; none where nothing was recorded."""
    return [entry for _, entry in _entries(out / CURVE_FILE)]


def remove_curve(out: Path) -> None:
    """Forget the curve of a run that starts afresh."""
    (out / CURVE_FILE).unlink(missing_ok=True)


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, entry in json_lines(path):
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield line, entry


def _summary_writer(folder: Path, resumed_at: int) -> Any:
    try:
        # an optional package, and slow to import
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError:
        logger.warning("no TensorBoard files: the package tensorboard is not installed")
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at + 1)
