"""Per-class results from per-image outcomes."""

from pathlib import Path

import numpy as np

from mimbench.outcomes import CLASSIFICATION, SEGMENTATION
from mimbench.report.markup import bar, text

SHOWN = 10


def class_scores(folder: Path) -> dict[str, float]:
    """Return class -> top-1 or IoU in percent, for the outcomes in a run's folder."""
    if (path := folder / CLASSIFICATION).is_file():
        with np.load(path, allow_pickle=False) as file:
            names, labels = file["images"], file["labels"]
            drawn = file["draws"] if "draws" in file else file["top5"][None, :, 0]
            hits = (drawn == labels).mean(axis=0)
        found = {}
        for label in np.unique(labels):
            mine = labels == label
            name = str(names[np.argmax(mine)])
            found[name.split("/")[0] if "/" in name else f"class {label}"] = 100 * float(
                hits[mine].mean()
            )
        return found
    if (path := folder / SEGMENTATION).is_file():
        with np.load(path, allow_pickle=False) as file:
            both, either, labelled = (
                file[k].sum(axis=0) for k in ("intersect", "union", "labelled")
            )
        return {
            f"class {i + 1}": 100 * float(both[i] / either[i]) for i in np.flatnonzero(labelled)
        }
    return {}


def class_bars(scores: dict[str, float], title: str, index: int) -> str:
    """Return bars of all classes, or of the best and worst where there are many."""
    order = sorted(scores, key=lambda name: -scores[name])
    many = len(order) > 2 * SHOWN
    shown = order[:SHOWN] + order[-SHOWN:] if many else order
    bars = [bar(name, scores[name], 100, index) for name in shown]
    if many:
        bars.insert(SHOWN, f'<p class="soft">{len(order) - 2 * SHOWN} more</p>')
    return f"<div><h3>{text(title)}</h3>{''.join(bars)}</div>"
