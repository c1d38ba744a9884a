"""The error for a user's mistake: shown without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches

WORKER = "Caught UserError in DataLoader worker"


class UserError(Exception):
    """A mistake that the user can fix: the message says what failed, what was expected, what to do."""

    def __init__(self, message: str = "") -> None:
        # torch hands on what a loader process raised as text, the traceback in front of it
        worker = message.startswith(WORKER)
        super().__init__(message.rpartition("UserError: ")[2].rstrip() if worker else message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' for the nearest known name, else the list of known names."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known) or 'none'}"
