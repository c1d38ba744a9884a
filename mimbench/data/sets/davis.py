"""DAVIS-2017: JPEGImages/480p/<sequence>/, Annotations/480p/<sequence>/ and the list of the val sequences."""

from pathlib import Path

from mimbench.data.contents import Clip, Clips, require_files
from mimbench.data.listed import read_lines
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few

LISTS = ("ImageSets/2017/val.txt", "DAVIS/ImageSets/2017/val.txt")


def read(folder: Path) -> Clips:
    """Return the val sequences; every frame has its label map."""
    root = next((folder / mark).parents[2] for mark in LISTS if (folder / mark).is_file())
    names = read_lines(root / "ImageSets" / "2017" / "val.txt")
    if wrong := [n for n in names if "/" in n or n.startswith(".")]:
        raise UserError(f"{root}/ImageSets/2017/val.txt names '{wrong[0]}', which is no sequence")
    return Clips(clips=tuple(_clip(root, name) for name in names))


def _clip(root: Path, name: str) -> Clip:
    frames, labels = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
    stems = sorted(p.stem for p in frames.glob("*.jpg"))
    drawn = sorted(p.stem for p in labels.glob("*.png"))
    if len(stems) < 3:
        raise UserError(
            f"{frames} holds {len(stems)} frames; unpack DAVIS-2017-trainval-480p.zip once more"
        )
    if stems != drawn:
        odd = first_few(sorted(set(stems) ^ set(drawn)), 3)
        raise UserError(f"{name}: frames and label maps differ in {odd}; both are in the archive")
    require_files(frames, [f"{stem}.jpg" for stem in stems], f"sequence {name}")
    return Clip(
        name=name,
        frames=tuple(frames / f"{stem}.jpg" for stem in stems),
        labels=tuple(labels / f"{stem}.png" for stem in stems),
    )


SETS = {
    "davis": PublishedSet(
        title="DAVIS-2017",
        read=read,
        marks=LISTS,
        counts={"sequences": 30, "frames": 1_999},
        obtain=(
            "# DAVIS-2017-trainval-480p.zip: https://davischallenge.org/davis2017/code.html\n"
            "# -> FOLDER/JPEGImages/480p/, FOLDER/Annotations/480p/, FOLDER/ImageSets/2017/val.txt"
        ),
        folders=("DAVIS", "davis2017", "DAVIS-2017", "davis-2017"),
    )
}
