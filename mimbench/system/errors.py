"""The error for a user's mistake: shown without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches

WORKER = "Caught UserError in DataLoader worker"


class UserError(Exception):
    """A mistake that the user can fix: the message says what failed, what was expected, what to do.

    Control characters, which a file's names may hold, are shown and never sent to a terminal.
    """

    def __init__(self, message: str = "") -> None:
        # torch hands on what a loader process raised as text, the traceback in front of it
        worker = message.startswith(WORKER)
        message = message.rpartition("UserError: ")[2].rstrip() if worker else message
        super().__init__("\n".join(printable(line) for line in message.split("\n")))


def printable(text: str, limit: int | None = None) -> str:
    """Return text with everything that is no plain character written out, cut at `limit`."""
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' for the nearest known name, else the list of known names."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known) or 'none'}"
