"""Sample data of landmarks and of videos: scenes seen again, and scenes whose digits move.

Landmarks lie as revisited Oxford does, videos as DAVIS-2017: `roxford5k/` and `davis/` of a folder of
their own, made at first use.
"""

import pickle
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from mimbench.sample.digits import contrasting_ink, digit_bank
from mimbench.sample.scenes import SIDE, make_scene
from mimbench.sample.store import make_beside
from mimbench.sample.textures import texture_bank
from mimbench.system.files import write_text
from mimbench.system.seeds import sequence_generator

VERSION = 3
"""Raise it with every change that moves a pixel, a label or a judgement."""
SEED = 20_243
PLACES, EASY, HARD, JUNK, OTHERS = 32, 5, 5, 2, 48
"""Scenes that are looked for; how often each is seen well, badly, hardly; scenes that are not."""
FIRST = 5_000
"""Index of the first scene: no validation scene of the other layouts is one of these."""
SEQUENCES, FRAMES, HEIGHT, WIDTH = 48, 8, 96, 160
LIGHT = (0.4, 1.4)
"""Between what factors each colour of a clip's light lies: a patch's mean colour tells little."""
SHARES = {"query": (0.95, 1.0), "easy": (0.75, 0.95), "hard": (0.5, 0.65), "junk": (0.25, 0.35)}
"""Side of what is seen of a scene, as a share of the scene's."""
Pixels = NDArray[np.uint8]


def moving_root(root: Path | None = None) -> Path:
    """Return the folder of both layouts, making it at first use."""
    return make_beside("moving", VERSION, _fill, root)


def _fill(root: Path) -> None:
    write_landmarks(root / "roxford5k")
    write_clips(root / "davis")


def write_landmarks(root: Path, *, places: int = PLACES, others: int = OTHERS) -> None:
    """Write jpg/ and gnd_roxford5k.pkl."""
    (root / "jpg").mkdir(parents=True)
    names, queries, truth = [], [], []

    def add(name: str, pixels: Pixels) -> str:
        Image.fromarray(pixels).save(root / "jpg" / f"{name}.jpg", quality=95, subsampling=0)
        return name

    for place in range(places):
        scene = make_scene("val", FIRST + place).image
        entry = {"bbx": [8.0, 8.0, SIDE - 8.0, SIDE - 8.0]}
        for kind, count in (("easy", EASY), ("hard", HARD), ("junk", JUNK)):
            entry[kind] = list(range(len(names), len(names) + count))
            for view in range(count):
                rng = sequence_generator(SEED, place, len(kind), ord(kind[0]), view)
                names.append(add(f"place_{place:03d}_{kind}_{view}", _seen(scene, rng, kind)))
        rng = sequence_generator(SEED, place)
        queries.append(add(f"place_{place:03d}_query", _seen(scene, rng, "query")))
        truth.append(entry)
    for other in range(others):
        scene = make_scene("val", FIRST + places + other).image
        names.append(add(f"other_{other:03d}", scene))
    content = {"imlist": names, "qimlist": queries, "gnd": truth}
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=3))


def _seen(scene: Pixels, rng: Generator, kind: str) -> Pixels:
    """Return a part of a scene under another light, at the scene's size."""
    side = round(SIDE * rng.uniform(*SHARES[kind]))
    top, left = rng.integers(0, SIDE - side + 1, 2).tolist()
    light = rng.uniform(0.7, 1.2) if kind != "query" else 1.0
    part = Image.fromarray(scene[top : top + side, left : left + side])
    pixels = np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) * light
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_clips(root: Path, *, sequences: int = SEQUENCES, frames: int = FRAMES) -> None:
    """Write JPEGImages/, Annotations/ (palette, an object a number) and ImageSets/2017/val.txt."""
    names = [f"digits-{number}" for number in range(sequences)]
    write_text(root / "ImageSets" / "2017" / "val.txt", "\n".join(names) + "\n")
    for number, name in enumerate(names):
        folders = [root / kind / "480p" / name for kind in ("JPEGImages", "Annotations")]
        for folder in folders:
            folder.mkdir(parents=True)
        for at, (pixels, labels) in enumerate(_clip(number, frames)):
            picture = folders[0] / f"{at:05d}.jpg"
            Image.fromarray(pixels).save(picture, quality=95, subsampling=0)
            drawn = Image.fromarray(labels, mode="P")
            drawn.putpalette(PALETTE)
            drawn.save(folders[1] / f"{at:05d}.png")


PALETTE = [
    value for i in range(256) for value in ((i * 90) % 256, (i * 150) % 256, (i * 210) % 256)
]


def _light(rng: Generator) -> NDArray[np.float64]:
    """Draw one frame's light (WIDTH, 3): a colour that is stronger on one side of the picture."""
    sides = rng.uniform(*LIGHT, (2, 3))
    share = np.linspace(0, 1, WIDTH)[:, None]
    return sides[0] * (1 - share) + sides[1] * share


def _clip(number: int, frames: int) -> list[tuple[Pixels, Pixels]]:
    """Return frames and label maps of one or two digits that move over a texture."""
    rng = sequence_generator(SEED, 1, number)
    ground = texture_bank().patch(rng, number % 3, "val", WIDTH)[:HEIGHT]
    things = []
    for _ in range(1 + number % 2):
        size = int(rng.integers(38, 52))
        ink = digit_bank("val").draw(rng, int(rng.integers(10)), size)
        start = rng.uniform(0, [HEIGHT - size, WIDTH - size])
        things.append(
            (
                ink,
                start,
                rng.uniform(-4, 4, 2),
                contrasting_ink(rng, ground[::8, ::8].reshape(-1, 3), 0.3),
            )
        )
    out = []
    for at in range(frames):
        pixels, labels = ground.copy(), np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for thing, (ink, start, speed, colour) in enumerate(things, start=1):
            size = len(ink)
            limits = np.array([HEIGHT - size, WIDTH - size])
            # a digit that meets the border turns back
            place = np.abs((start + at * speed) % (2 * limits) - limits)
            top, left = np.round(limits - place).astype(int)
            part = np.s_[top : top + size, left : left + size]
            pixels[part] += ink[..., None] * (colour - pixels[part])
            labels[part][ink > 0.5] = thing
        lit = pixels * _light(rng)
        noisy = lit + rng.normal(0, 0.02, pixels.shape)
        out.append((np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8), labels))
    return out
