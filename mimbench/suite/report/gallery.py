"""Pictures that a run left in its folder: what tasks drew, what pretraining drew."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from mimbench.benchmarks.records import PICTURES, pictures_of
from mimbench.results.record import Result
from mimbench.suite.report.gathered import Gathered
from mimbench.suite.report.markup import picture, text

MOST, BROADEST = 8, 1104
"""Pictures of a run, and pixels across: what the page is wide at most."""
PRETRAINING = "pretrain"


def pictures(gathered: Gathered) -> list[str]:
    """Return the pictures of all runs, a heading for each."""
    found = []
    if drawn := list(drawn_in(gathered.out / PRETRAINING)):
        found.append(_block("Pretraining", drawn))
    for path, result in gathered.done:
        if made := list(pictures_in(path, result)):
            title = f"{gathered.title(result)} · {gathered.look(result).label}"
            found.append(_block(title, made))
    return found


def _block(title: str, drawn: list[str]) -> str:
    return f'<h3>{text(title)}</h3><div class="pictures">{"".join(drawn)}</div>'


def pictures_in(folder: Path, result: Result) -> Iterator[str]:
    """Yield the first pictures that a task made of its run."""
    for i, (shown, caption) in enumerate(pictures_of(folder, result)):
        if i == MOST:
            return
        if isinstance(shown, Path):
            with Image.open(shown) as image:
                yield picture(image, caption, side=BROADEST)
        else:
            yield picture(shown.image, caption, side=BROADEST)


def drawn_in(folder: Path) -> Iterator[str]:
    """Yield the pictures in a folder that no result tells of: pretraining's."""
    found = [*sorted((folder / PICTURES).glob("*.png")), *sorted((folder / PICTURES).glob("*.jpg"))]
    for path in found[:MOST]:
        with Image.open(path) as image:
            yield picture(image, path.stem, side=BROADEST)
