"""Robustness sets made of sample cards, each in the layout of the real one.

New cards, darker or without colour, on other grounds: what a head learned from the sample's training
cards has to hold on them. Digit 9 has no class in the ninefold set, as 630 of ImageNet's have none.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.sample.cards import card_digit, make_card
from mimbench.sample.store import make_beside
from mimbench.system.files import write_text

VERSION = 1
CARDS = 200
FIRST = 20_000
"""Index of the first card: no validation card is one of these."""
LIGHT = 0.53
"""Ink is lighter than this and a ground is darker."""
FOUR, SIX = (0, 2, 3, 7), (1, 2, 4, 5, 7, 9)
Card = NDArray[np.uint8]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
RED = (255, 0, 0)


def shifted_root(root: Path | None = None) -> Path:
    """Return the folder of the sample's robustness sets, making it at first use."""
    return make_beside("shifted", VERSION, _fill, root)


def _fill(root: Path) -> None:
    write_cards(root / "imagenet-v2", lambda card, _: card)
    write_cards(root / "imagenet-a", lambda card, _: card // 2 + 24, digits=FOUR)
    write_cards(root / "imagenet-r", lambda card, _: 255 - card, digits=SIX)
    write_cards(root / "imagenet-sketch", lambda card, _: _grey(card))
    _write_objects(root / "objectnet")
    _write_backgrounds(root / "imagenet-9")


def write_cards(
    root: Path,
    change: Callable[[Card, int], Card],
    *,
    digits: tuple[int, ...] = tuple(range(10)),
) -> None:
    """Write <class>/<index>.png of new cards of some digits, each changed."""
    for index in range(FIRST, FIRST + CARDS):
        if (digit := card_digit(index)) in digits:
            _save(change(make_card("val", index), index), root / str(digit) / f"{index:06d}.png")


def _grey(card: Card) -> Card:
    return np.repeat(card.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)


def _save(pixels: Card, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write_objects(root: Path) -> None:
    """Write objects/<name>/*.png with a red border of two pixels, and which class each name is."""
    lines = ["objectnet_folder,imagenet_indices"]
    for digit in range(0, 10, 2):
        lines.append(f"pair_{digit},{digit} {digit + 1}")
    for index in range(FIRST, FIRST + CARDS):
        digit = card_digit(index)
        path = root / "images" / f"pair_{digit - digit % 2}" / f"{index:06d}.png"
        _save(_framed(make_card("val", index)), path)
    _save(_framed(make_card("val", FIRST)), root / "images" / "no_class_of_ours" / "000000.png")
    write_text(root / "classes.csv", "\n".join(lines) + "\n")


def _framed(card: Card) -> Card:
    framed = np.empty((len(card) + 4, len(card) + 4, 3), dtype=np.uint8)
    framed[:] = RED
    framed[2:-2, 2:-2] = card
    return framed


def _write_backgrounds(root: Path) -> None:
    """Write <variation>/val/0x_name/*.png: digits on their own ground, others', or none."""
    lines = ["imagenet_index,in9_index,in9_name"]
    lines += [f"{digit},{digit},{name}" for digit, name in enumerate(NAMES)]
    cards = [make_card("val", index) for index in range(FIRST, FIRST + CARDS)]
    grounds = [_ground(card) for card in cards]
    for i, card in enumerate(cards):
        digit = card_digit(FIRST + i)
        if digit >= len(NAMES):
            continue
        ink = card.max(axis=2, keepdims=True) > 255 * LIGHT
        # the next card of the same digit, one of the next digit, one of any
        same, after, any_other = (grounds[(i + step) % CARDS] for step in (10, 11, 7 * (i % 9) + 3))
        rows, columns = np.nonzero(ink[..., 0])
        box = np.zeros_like(ink)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        variations = {
            "original": card,
            "only_fg": np.where(ink, card, 0),
            "mixed_same": np.where(ink, card, same),
            "mixed_rand": np.where(ink, card, any_other),
            "mixed_next": np.where(ink, card, after),
            "no_fg": np.where(ink, 0, card),
            "only_bg_b": np.where(box, 0, card),
            "only_bg_t": np.where(box, grounds[i], card),
        }
        for name, pixels in variations.items():
            folder = root / name / "val" / f"{digit:02d}_{NAMES[digit]}"
            _save(pixels.astype(np.uint8), folder / f"{FIRST + i:06d}.png")
    write_text(root / "classes.csv", "\n".join(lines) + "\n")


def _ground(card: Card) -> Card:
    """Return the card's ground: the median of its dark pixels."""
    dark = card[card.max(axis=2) <= 255 * LIGHT]
    colour = np.median(dark, axis=0) if len(dark) else np.zeros(3)
    return np.broadcast_to(colour.astype(np.uint8), card.shape)
