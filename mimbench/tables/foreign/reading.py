"""Files from elsewhere, read with limits: every fault is a sentence with the line that it is in."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.system.errors import UserError, printable
from mimbench.system.listing import first_few

FILE_BYTES = 64 << 20
LINES = 200_000
FIELD = 8192
"""Characters of one value: the longest note in the public tables has under a thousand."""


@dataclass(frozen=True)
class Line:
    """One line of a table, by column."""

    path: Path
    line: int
    values: Mapping[str, str]

    def error(self, what: str) -> UserError:
        """Return the error that names file and line."""
        return fault(self.path, self.line, what)

    def text(self, column: str, *, empty: bool = False) -> str:
        """Return a value as one line of plain characters; it may be empty only where that is said."""
        value = printable(self.values[column].strip())
        if not value and not empty:
            raise self.error(f"{column} is empty")
        return value

    def number(self, column: str, low: float, high: float) -> float:
        """Return a number; `1,014.45` is one too."""
        shown = self.text(column)
        try:
            value = float(shown.replace(",", "")) if shown.isascii() else math.nan
        except ValueError:
            value = math.nan
        if "_" in shown or not math.isfinite(value):
            raise self.error(f"{column} is '{printable(shown, 40)}', expected a number")
        if not low <= value <= high:
            raise self.error(f"{column} is {value:g}, expected {low:g} to {high:g}")
        return value

    def whole(self, column: str, low: int, high: int) -> int:
        """Return a whole number."""
        shown = self.text(column)
        if not (shown.isascii() and shown.isdigit() and len(shown) < 20):
            raise self.error(f"{column} is '{printable(shown, 40)}', expected a whole number")
        value = int(shown)
        if not low <= value <= high:
            raise self.error(f"{column} is {value}, expected {low} to {high}")
        return value


def fault(path: Path, line: int, what: str) -> UserError:
    """Return the error for one line of a file."""
    return UserError(f"{path}, line {line}: {what}")


def read_lines(path: Path) -> list[str]:
    """Return a file's lines; one that is too large or no text is refused before it is read."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if path.stat().st_size > FILE_BYTES:
            raise UserError(f"{path} has more than {FILE_BYTES:,} bytes: no table of results")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error.reason}") from error
    except OSError as error:
        raise UserError(f"{path} is not readable: {error.strerror or error}") from error
    # not splitlines(): a form feed or U+2028 inside a value ends no line
    lines = text.split("\n")
    if len(lines) > LINES:
        raise UserError(f"{path} has more than {LINES:,} lines: no table of results")
    return [f"{line}\n" for line in lines]


def read_csv(path: Path, *, needed: Sequence[str], exact: bool = False) -> Iterator[Line]:
    """Yield the records of a CSV file with a header.

    Args:
        path: The file.
        needed: Columns that its header must have.
        exact: It has no others, in this order.
    """
    reader = csv.reader(read_lines(path), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, needed, exact=exact)
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise fault(
                    path, reader.line_num, f"{len(values)} values, the header has {len(header)}"
                )
            if max(map(len, values)) > FIELD:
                raise fault(path, reader.line_num, f"a value of more than {FIELD:,} characters")
            yield Line(path, reader.line_num, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise fault(path, reader.line_num, f"is not CSV: {error}") from error


def _check_header(path: Path, header: list[str], needed: Sequence[str], *, exact: bool) -> None:
    if missing := [name for name in needed if name not in header]:
        found = first_few([printable(name, 30) for name in header], 12) or "nothing"
        raise fault(
            path,
            1,
            f"the header lacks {first_few(missing, 12)}; it has {found}. Is it another file?",
        )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise fault(path, 1, f"the header names {printable(twice[0], 40)} twice")
    if exact and header != list(needed):
        raise fault(path, 1, f"the header should be {','.join(needed)}")
