"""Published sets of `mimbench.data.sets` as the doctor sees them: found, complete, or how to get them."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from mimbench.data.listed import PLAIN_MARKS
from mimbench.data.sets import PublishedSet, published
from mimbench.doctor.check import Check, fault, ok
from mimbench.system.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SetLayout:
    """One set in the form that the doctor's other layouts have."""

    known: PublishedSet

    @property
    def TITLE(self) -> str:  # noqa: N802
        """What messages call the set."""
        return self.known.title

    def looks_like(self, folder: Path) -> bool:
        """Return whether `folder` has the outline of this data set."""
        return self.known.looks_like(folder)

    def says_so(self, folder: Path) -> bool:
        """Return whether something in `folder` is this set's alone: plain splits are any set's."""
        return any((folder / m).exists() for m in self.known.marks if m not in PLAIN_MARKS)

    def obtain(self, folder: Path) -> str:
        """Return how one comes by the data."""
        return self.known.obtain.replace("FOLDER", shlex.quote(str(folder)))

    def check(self, folder: Path) -> list[Check]:
        """Read the set's lists and compare what they hold with what is published."""
        name = self.TITLE
        logger.info("reading the lists of %s", folder)
        if not self.looks_like(folder):
            marks = " or ".join(self.known.marks)
            return [fault(name, f"{folder} has no {marks}", self.obtain(folder))]
        try:
            found = self.known.read(folder).counts()
        except UserError as error:
            return [fault(name, str(error), self.obtain(folder))]
        wrong = [
            f"{part}: {found.get(part, 0):,}, expected {count:,}"
            for part, count in self.known.counts.items()
            if found.get(part, 0) != count
        ]
        if wrong:
            return [fault(name, "; ".join(wrong), self.obtain(folder))]
        return [ok(name, ", ".join(f"{count:,} {part}" for part, count in found.items()))]


def set_layouts() -> dict[str, SetLayout]:
    """Return name -> layout of every published set."""
    return {name: SetLayout(known) for name, known in published().items()}
