"""Image lists from what published sets come with: lists of files, folders of classes, tar files, parquet."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mimbench.data.contents import Splits, require_files
from mimbench.data.lists import FolderOpener, ImageList, check_classes, joined, read_folder
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few

TESTS, VALIDATIONS = ("test", "val", "validation"), ("val", "validation")
LARGEST_LIST = 512 << 20


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise UserError(
                f"{path}: {path.stat().st_size:,} bytes, more than any published list's"
            )
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}: {error}; it is a part of the published set"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def read_fields(path: Path, count: int) -> list[list[str]]:
    """Return the blank-separated fields of each line; the last one may hold blanks."""
    rows = [line.split(maxsplit=count - 1) for line in read_lines(path)]
    short = next((i for i, row in enumerate(rows) if len(row) != count), None)
    if short is not None:
        raise UserError(f"{path}, line {short + 1}: expected {count} fields, found {rows[short]}")
    return rows


def listed(
    root: Path, names: Sequence[str], labels: Sequence[int], classes: Sequence[str]
) -> ImageList:
    """Return the images of a published list, in its order; every file must be there."""
    outside = [n for n in names if n.startswith("/") or ".." in Path(n).parts]
    if outside:
        raise UserError(f"the lists of {root} name {outside[0]}, which lies outside of it")
    wrong = [label for label in labels if not 0 <= label < len(classes)]
    if wrong:
        raise UserError(f"the lists of {root} have the label {wrong[0]} of {len(classes)} classes")
    return ImageList(
        names=tuple(names),
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(classes),
        stamps=require_files(root, list(names), f"the set in {root}"),
        where=str(root),
        opener=FolderOpener(root, tuple(names)),
    )


def with_validation(train: ImageList, validation: ImageList, test: ImageList) -> Splits:
    """Return splits whose training part ends with the official validation part."""
    whole = joined(train, validation)
    return Splits(train=whole, test=test, validation=np.arange(len(train), len(whole)))


def plain_splits(folder: Path, split: str = "") -> Splits | None:
    """Return the splits of a folder, of tar files or of parquet files by split; None if it has neither.

    Args:
        folder: Holds train/ and test/ (or val/) of class folders, or train.tar and test.tar, or
            train-*.parquet and test-*.parquet (also under data/).
        split: The name of the part that is scored; by default test, else val.
    """
    wanted = (split,) if split else TESTS
    for reader in (_folders, _archives, _parquet):
        parts = reader(folder, ("train", *TESTS))
        test = next((name for name in wanted if name in parts), None)
        if "train" not in parts or test is None:
            continue
        train, scored = parts["train"](), parts[test]()
        check_classes(train, scored)
        between = next((n for n in VALIDATIONS if n in parts and test == "test"), None)
        if between is None:
            return Splits(train=train, test=scored)
        return with_validation(train, parts[between](), scored)
    return None


Parts = dict[str, Callable[[], ImageList]]


def _folders(folder: Path, names: Sequence[str]) -> Parts:
    return {
        n: lambda n=n: read_folder(folder, n)
        for n in names
        if (folder / n).is_dir() and any(p.is_dir() for p in (folder / n).iterdir())
    }


def _archives(folder: Path, names: Sequence[str]) -> Parts:
    def read(name: str) -> ImageList:
        # timm is slow to import, and only tar files need it
        from mimbench.data.sources import read_timm  # noqa: PLC0415

        return read_timm("tar", folder, name)

    return {n: lambda n=n: read(n) for n in names if (folder / f"{n}.tar").is_file()}


def _parquet(folder: Path, names: Sequence[str]) -> Parts:
    def read(files: list[Path]) -> ImageList:
        from mimbench.data.parquet import read_parquet  # noqa: PLC0415

        return read_parquet(files)

    found: Parts = {}
    for name in names:
        for place in (folder, folder / "data"):
            files = sorted(place.glob(f"{name}-*.parquet"))
            if files and name not in found:
                found[name] = lambda files=files: read(files)
    return found


PLAIN_MARKS = ("train", "train.tar", "train-*.parquet", "data/train-*.parquet")
"""What shows plain splits."""


def splits_of(
    folder: Path, published: Callable[[Path], Splits], mark: str | Sequence[str]
) -> Splits:
    """Return a set's splits from its published layout where that is there, else from plain splits.

    Args:
        folder: The set's.
        published: Reads the published layout.
        mark: What shows that layout: a file or folder, or several that tell it alike.
    """
    marks = (mark,) if isinstance(mark, str) else tuple(mark)
    if any((folder / name).exists() for name in marks):
        return published(folder)
    return require_plain(folder, marks)


def require_plain(folder: Path, marks: Sequence[str] = ()) -> Splits:
    """Return plain splits, or say what a folder holds and what was expected.

    Args:
        folder: The set's.
        marks: What would have shown its published layout.
    """
    found = plain_splits(folder)
    if found is None:
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        expected = f"{' or '.join(marks)}, or train" if marks else "train"
        raise UserError(
            f"{folder} holds {first_few(there, 6)}; expected {expected} and test (or val) as folders of "
            "classes, as train.tar and test.tar, or as train-*.parquet and test-*.parquet"
        )
    return found
