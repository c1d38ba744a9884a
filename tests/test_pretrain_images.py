"""Decoding: the same pixels as Pillow, and no broken file passes for an image."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.data.images import CorruptImageError, decode, read


@pytest.fixture
def picture() -> Image.Image:
    """A smooth picture: what a camera sees, not noise."""
    y, x = np.mgrid[0:90, 0:130]
    planes = [128 + 100 * np.sin(x / (7 + c)) * np.cos(y / (9 + c)) for c in range(3)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"quality": 90}),
        ("RGB", "JPEG", {"quality": 75, "progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("L", "PNG", {}),
        ("P", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("P", "GIF", {}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {}),
    ],
)
def test_pixels_are_pillows(
    picture: Image.Image, mode: str, kind: str, options: dict[str, object]
) -> None:
    data = encoded(picture.convert(mode), kind, **options)
    found = decode(data, "x")
    with Image.open(io.BytesIO(data)) as image:
        wanted = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
    assert found.dtype == torch.uint8
    assert found.shape == (3, 90, 130)
    assert (found.int() - wanted.int()).abs().float().mean() <= 0.1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_no_image(picture: Image.Image, kind: str, share: float) -> None:
    data = encoded(picture, kind)
    with pytest.raises(CorruptImageError, match=r"cut\.img: "):
        decode(data[: int(len(data) * share)], "cut.img")


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff" + bytes(5000)])
def test_other_bytes_are_no_image(data: bytes) -> None:
    with pytest.raises(CorruptImageError, match="other"):
        decode(data, "other")


def test_bytes_after_the_end_do_no_harm(picture: Image.Image) -> None:
    data = encoded(picture, "JPEG")
    wanted = decode(data, "x")
    assert torch.equal(decode(data + bytes(100), "x"), wanted)
    assert torch.equal(decode(data + bytes(10_000), "x"), wanted)


def test_files(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture, "JPEG"))
    assert read(path).shape == (3, 90, 130)
    with pytest.raises(CorruptImageError, match=r"b\.jpg: No such file"):
        read(tmp_path / "b.jpg")


def test_sixteen_bits_become_eight() -> None:
    """They came as they were, up to 65535, and were normalised as bytes: wrong by a factor of 257."""
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    # steps in between as well: modulo 256, a whole multiple of 257 is itself whatever it is scaled by
    between = np.arange(256, dtype=np.uint16)[::-1].reshape(16, 16)
    found = decode(encoded(Image.fromarray(levels * 257 + between), "PNG"), "x")
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(levels.astype(np.uint8)).expand(3, -1, -1))
