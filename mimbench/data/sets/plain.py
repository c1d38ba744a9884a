"""Any folder of classes: train and test (or val) as class folders, as tar files or as parquet files."""

from pathlib import Path

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, require_plain
from mimbench.data.sets import PublishedSet


def read(folder: Path) -> Splits:
    """Return the splits."""
    return require_plain(folder)


SETS = {
    "folder": PublishedSet(
        title="folder of classes",
        read=read,
        marks=PLAIN_MARKS,
        counts={},
        obtain="# -> FOLDER/train/<class>/<image>, FOLDER/test/<class>/<image>",
    )
}
