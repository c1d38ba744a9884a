"""What a run keeps beside its numbers, in files of its folder: outcomes and pictures, written and read."""

import logging
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from mimbench.results import legacy
from mimbench.results.record import Result, StoredOutcomes, StoredPicture
from mimbench.scores.figures import Picture
from mimbench.scores.outcomes import Outcomes, Statistic, faithful, read_outcomes, write_outcomes
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path
from mimbench.task import Task, load_task

logger = logging.getLogger(__name__)
LIBRARY = "mimbench.scores."
PICTURES = "pictures"


def keep_outcomes(out: Path, found: Sequence[Outcomes], task: Task) -> list[StoredOutcomes]:
    """Write a run's outcomes; return how its result refers to them."""
    kept = []
    for i, outcomes in enumerate(found):
        stored = StoredOutcomes(kind=kind_of(outcomes, task), file=f"outcomes.{i}.npz")
        write_outcomes(out / stored.file, outcomes)
        kept.append(stored)
    return kept


def kind_of(outcomes: Outcomes, task: Task) -> str:
    """Return how a result names the class of outcomes: by its place here, or by the task's name for it."""
    kind = type(outcomes)
    if kind.__module__.startswith(LIBRARY):
        return f"{kind.__module__}:{kind.__qualname__}"
    if getattr(task, kind.__name__, None) is not kind:
        raise UserError(
            f"outcomes of class {kind.__name__} cannot be read again: import the class in the task's "
            "module, under its own name"
        )
    return kind.__name__


def _class_of(stored: StoredOutcomes, task: str, tasks: Collection[str]) -> type[Outcomes]:
    """Return a recorded class; a result may come from a stranger, so only known modules are imported."""
    module, _, name = stored.kind.rpartition(":")
    owner = None
    if module.startswith(LIBRARY):
        owner = import_module(module)
    elif not module:
        if task not in tasks:
            raise UserError(
                f"outcomes of kind '{name}' belong to the task {task}, which benchmarks.yaml does not "
                "name; pass the file that does: --benchmarks FILE"
            )
        owner = load_task(task)
    kind = getattr(owner, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Outcomes):
        raise UserError(f"task {task} has no outcomes of kind '{stored.kind}'")
    return kind


def outcomes_of(folder: Path, result: Result, tasks: Collection[str]) -> list[Outcomes]:
    """Return the outcomes that a run kept.

    Args:
        folder: The run's folder.
        result: Its result.
        tasks: Names of tasks whose modules may be imported for outcomes of their own: the manifest's.
    """
    if result.format == legacy.FORMAT:
        return legacy.outcomes(folder)
    return [
        read_outcomes(folder / _inside(stored.file), _class_of(stored, result.task, tasks))
        for stored in result.outcomes
    ]


def statistics_of(folder: Path, result: Result, tasks: Collection[str]) -> dict[str, Statistic]:
    """Return metric -> statistic for the metrics that the kept outcomes reproduce."""
    return faithful(outcomes_of(folder, result, tasks), result.metrics)


def keep_pictures(folder: Path, pictures: Sequence[Picture]) -> list[Path]:
    """Write pictures as PNG into a folder; return their paths."""
    paths = []
    for picture in pictures:
        path = folder / f"{picture.name}.png"
        with atomic_path(path) as part:
            picture.image.save(part, format="PNG", optimize=True)
        paths.append(path)
    return paths


def store_pictures(out: Path, pictures: Sequence[Picture]) -> list[StoredPicture]:
    """Write a run's pictures; return how its result refers to them."""
    paths = keep_pictures(out / PICTURES, pictures)
    return [
        StoredPicture(file=path.relative_to(out).as_posix(), caption=picture.caption)
        for path, picture in zip(paths, pictures, strict=True)
    ]


def pictures_of(folder: Path, result: Result) -> Iterator[tuple[Path | Picture, str]]:
    """Yield a run's pictures with their captions."""
    if result.format == legacy.FORMAT:
        for found in legacy.pictures(folder, Path(result.data)):
            yield found, found.stem if isinstance(found, Path) else found.caption
        return
    for stored in result.pictures:
        path = folder / _inside(stored.file)
        if path.is_file():
            yield path, stored.caption or path.stem


def files_of(folder: Path, result: Result) -> list[Path]:
    """Return the files that hold a run's outcomes."""
    if result.format == legacy.FORMAT:
        names = list(legacy.FILES)
    else:
        names = [_inside(stored.file) for stored in result.outcomes]
    return [folder / name for name in names if (folder / name).is_file()]


def _inside(name: str) -> str:
    """Return a file name of a result, which may come from a stranger: it stays in the run's folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"a result names the file '{name}', which is not in its own folder")
    return name
