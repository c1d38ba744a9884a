"""Images from files: fast decoding, the same on every machine, and what to do with a broken one."""

import io
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png
from torchvision.transforms.v2 import functional as vision

from mimbench.system.errors import UserError

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"
END_OF_JPEG, TAIL = b"\xff\xd9", 4096
"""A complete JPEG ends with the marker; some cameras append a little after it."""


FAULTS = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What decoding and transforms raise; none of it says by itself which image it was."""


class CorruptImageError(Exception):
    """An image that cannot be read; whoever loads many decides whether to go on without it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn what fails on an image into an error that names the image and the operation."""
    try:
        yield
    except FAULTS as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{name}: {last.name} ({Path(last.filename).name}, line {last.lineno}) failed: "
            f"{type(error).__name__}: {error}"
        ) from error


def decode(data: bytes, name: str) -> Tensor:
    """Return the image in `data` as RGB bytes (3, H, W).

    Args:
        data: A whole file: JPEG and PNG take torchvision's decoder, other formats take Pillow.
        name: What to call the image when it is broken.
    """
    try:
        if data.startswith(JPEG):
            return _decode_jpeg(data)
        if data.startswith(PNG):
            raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            image = decode_png(raw, mode=ImageReadMode.RGB)
            # 16 bits come as they are, up to 65535: 257 of their steps are one of a byte's
            return image if image.dtype == torch.uint8 else (image.int() // 257).to(torch.uint8)
        return _decode_pillow(data)
    except (RuntimeError, ValueError, OSError, SyntaxError, UnidentifiedImageError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptImageError(name, reason if data else "the file is empty") from error


def read(path: Path) -> Tensor:
    """Return the image in a file as RGB bytes (3, H, W)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptImageError(str(path), error.strerror or str(error)) from error
    return decode(data, str(path))


def _decode_jpeg(data: bytes) -> Tensor:
    if END_OF_JPEG not in data[-TAIL:]:
        # torchvision fills what is cut off with grey and says nothing; Pillow judges
        return _decode_pillow(data)
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        return cast(Tensor, decode_jpeg(raw, mode=ImageReadMode.RGB))
    except RuntimeError:
        # CMYK and some progressive files: slower, but right
        return _decode_pillow(data)


def _decode_pillow(data: bytes) -> Tensor:
    with warnings.catch_warnings():
        # a palette with transparency is worth no line in the log for each epoch
        warnings.simplefilter("ignore", UserWarning)
        with Image.open(io.BytesIO(data)) as image:
            return vision.pil_to_tensor(image.convert("RGB"))
