"""How fast a process gets on, read from the progress lines in its log."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

CLOCK = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$")
# our own progress lines; then detectron2's and mmengine's
PROGRESS = re.compile(
    r"(?:\d\d:\d\d:\d\d )?(?P<label>\S.*?) (?P<done>\d+)/(?P<total>\d+) \d+% "
    r"(?P<spent>[\ddhms]+) left (?P<left>[\ddhms]+)"
)
ETA = re.compile(r"(?:eta: |ETA=)(?:(?P<days>\d+) days?, )?(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d)")
SETTLED = 3.0
"""Seconds a stage must have run for its speed to count; before that the line's own estimate is taken."""


@dataclass(frozen=True)
class StageProgress:
    """What the progress lines of a stage say."""

    label: str
    total: int | None
    left: float
    """Seconds to the end of the stage."""
    spent: float = 0.0
    """Seconds since its beginning."""


def read_stage(lines: Sequence[str]) -> StageProgress | None:
    """Return the progress of the newest stage in a log.

    The first units of a stage wait for loader processes and caches, so speed is measured between
    the stage's first and its last line, where they are far enough apart.
    """
    matches = [m for line in lines if (m := PROGRESS.search(line))]
    for line in reversed(lines):
        if match := PROGRESS.search(line):
            return _ours([m for m in matches if m["label"] == match["label"]])
        if match := ETA.search(line):
            hours = int(match["days"] or 0) * 24 + int(match["h"])
            return StageProgress(
                "other", None, float(hours * 3600 + int(match["m"]) * 60 + int(match["s"]))
            )
    return None


def _ours(stage: Sequence[re.Match[str]]) -> StageProgress | None:
    first, last = stage[0], stage[-1]
    start, spent, left = (clock_seconds(t) for t in (first["spent"], last["spent"], last["left"]))
    done, total = int(last["done"]), int(last["total"])
    if start is not None and spent is not None and spent - start >= SETTLED:
        left = (total - done) * (spent - start) / max(1, done - int(first["done"]))
    if left is None or spent is None:
        return None
    return StageProgress(last["label"], total, left, spent)


def clock_seconds(text: str) -> float | None:
    """Return the seconds of 42s, 3m07s, 2h05m or 3d04h."""
    match = CLOCK.match(text)
    if not match or not any(match.groups()):
        return None
    days, hours, minutes, seconds = (int(g or 0) for g in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
