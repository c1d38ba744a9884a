"""A few predictions of a dense task, drawn beside picture and ground truth for the report."""

from collections.abc import Sequence

import numpy as np

from mimbench.features.patches import PatchBank
from mimbench.scores.figures import Picture
from mimbench.scores.label_pictures import SMALL, compose
from transfer.dense.confusion import Tally
from transfer.dense.patches import unpatchify

DRAWN = 4


def drawn_rows(images: int) -> frozenset[int]:
    """Return the images that are drawn, evenly spread."""
    return frozenset(int(i) for i in np.linspace(0, images - 1, min(DRAWN, images)).round())


def draw(tally: Tally, bank: PatchBank, names: Sequence[str], *, by_patch: bool) -> list[Picture]:
    """Return a picture for each image that the tally kept, as the network saw it.

    Args:
        tally: Of a bank's images.
        bank: Theirs.
        names: Of the classes.
        by_patch: Labels were counted as the pixels of patches (m, p x p), not as maps (H, W).
    """
    found = []
    for row, seen in sorted(tally.kept.items()):
        pixels = bank.spec.preprocess(bank.images.open(row), row)
        guess, truth = (
            unpatchify(m, bank.spec.grid) if by_patch else m for m in (seen.predicted, seen.truth)
        )
        panels = compose(
            pixels.permute(1, 2, 0).numpy(),
            guess,
            truth,
            names,
            largest=SMALL,
        )
        caption = f"{bank.images.names[row]}: {tally.accuracy(row):.1f} % of labelled pixels right"
        found.append(Picture(name=f"prediction-{row}", image=panels, caption=caption))
    return found
