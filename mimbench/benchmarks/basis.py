"""What a result was built on: another cell's number, which may be another one by now."""

from pathlib import Path

from mimbench.benchmarks.run_config import RESULT_FILE
from mimbench.results.record import Result, read_result


def outdated(result: Result, place: Path) -> bool:
    """Return whether a run that the result was built on has another result by now."""
    for name, checksum in result.built_on.items():
        if (place / name / RESULT_FILE).is_file():
            now = number_in(place / name)
            if now is not None and now.checksum != checksum:
                return True
    return False


def number_in(folder: Path) -> Result | None:
    """Return the result in a folder if it holds a number, under whichever protocol."""
    path = folder / RESULT_FILE
    result = read_result(path) if path.is_file() else None
    return result if result is not None and result.status == "done" else None
