"""The pretraining loader against Pillow and torchvision's first transforms: images a second and core.

    python -m bench.pretrain_loader [--images 64] [--repeat 5]

Ours decodes with torchvision's `decode_jpeg`, crops and resizes bytes, and leaves normalisation to
the device; the usual way decodes with Pillow and hands over normalised floats. Both read the same
JPEG files (1/f noise, 500 x 375, quality 90) and draw the same crops, in turns on one thread; the
clock is processor time. The pixels' mean difference is measured on equal crops.
"""

import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms
from torchvision.transforms import functional as first

from bench.stopwatch import Stopwatch, ratios
from mimbench.system.files import write_json
from mimbench.system.options import Parser, add_option
from mimbench.vit.weights import IMAGENET_MEAN, IMAGENET_STD
from pretrain.sources.crops import Crops, DataConfig

HEIGHT, WIDTH, QUALITY = 375, 500, 90


class Memory:
    """JPEG files in memory, so that no disk is measured."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> bytes:
        """Return a file."""
        return self.files[index]

    def name(self, index: int) -> str:
        """Return its name."""
        return f"#{index}"


def photograph(rng: np.random.Generator) -> bytes:
    """Return a JPEG file of noise with a photograph's spectrum (amplitude falls as 1/f)."""
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / WIDTH)
    spectrum = rng.standard_normal((3, *fall.shape)) + 1j * rng.standard_normal((3, *fall.shape))
    waves = np.fft.irfft2(spectrum * fall, s=(HEIGHT, WIDTH))
    # channels of a photograph move together
    waves = 0.8 * waves[:1] + 0.2 * waves
    pixels = np.clip(waves / waves.std() * 55 + 115, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def usual(config: DataConfig) -> transforms.Compose:
    """Return the transforms of the released recipes."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                config.image_size,
                config.scale,
                config.ratio,
                transforms.InterpolationMode.BICUBIC,
            ),
            transforms.RandomHorizontalFlip(config.flip),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def opened(file: bytes) -> Image.Image:
    """Return a file as Pillow decodes it."""
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB")


def measure(files: Sequence[bytes], repeat: int) -> dict[str, list[float]]:
    """Return seconds an image, in turns: ours, ours with normalisation, the usual way."""
    config, watch = DataConfig(), Stopwatch(torch.device("cpu"))
    crops, transform = Crops(Memory(files), config), usual(config)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def ours() -> Tensor:
        return default_collate([crops[i] for i in range(len(files))])

    def whole() -> Tensor:
        return (ours().float() / 255 - mean) / std

    def theirs() -> Tensor:
        return default_collate([transform(opened(file)) for file in files])

    ways: dict[str, Callable[[], Tensor]] = {"ours": ours, "normalised": whole, "usual": theirs}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            torch.manual_seed(turn)
            watch.start()
            way()
            watch.mark(name)
            if turn:
                found[name].append(watch.read()[name] / len(files))
    return found


def pixel_difference(files: Sequence[bytes]) -> float:
    """Return the mean absolute difference of equal crops, in grey levels of 255."""
    config = DataConfig(scale=(0.2, 1.0))
    crops = Crops(Memory(files), config)
    apart = []
    for i, file in enumerate(files):
        torch.manual_seed(i)
        own = crops[i].float()
        torch.manual_seed(i)
        box = crops.crop.make_params([torch.empty(3, HEIGHT, WIDTH)])
        top, left, height, width = (int(box[k]) for k in ("top", "left", "height", "width"))
        bicubic = transforms.InterpolationMode.BICUBIC
        # typed for tensors, made for Pillow's images
        image: Any = opened(file)
        other = first.resized_crop(image, top, left, height, width, [224, 224], bicubic)
        wanted = torch.from_numpy(np.asarray(other).copy()).permute(2, 0, 1).float()
        if torch.rand(()) < config.flip:
            wanted = wanted.flip(-1)
        apart.append((own - wanted).abs().mean().item())
    return sum(apart) / len(apart)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = Parser(prog="python -m bench.pretrain_loader", description=__doc__)
    add_option(parser, "--images", "default: 64", default=64)
    add_option(parser, "--repeat", "default: 5", default=5)
    add_option(parser, "--out", "all measurements as JSON", metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    files = [photograph(rng) for _ in range(args.images)]
    found = measure(files, args.repeat)
    apart = pixel_difference(files)
    per_second = {name: 1 / sorted(times)[len(times) // 2] for name, times in found.items()}
    faster = ratios(found["usual"], found["ours"])
    faster_whole = ratios(found["usual"], found["normalised"])
    kib = sum(map(len, files)) / len(files) / 1024
    sys.stdout.write(
        f"{len(files)} JPEG files of {WIDTH} x {HEIGHT}, {kib:.0f} KiB on average\n"
        + "".join(f"  {n:<11}{v:7.0f} images a second and core\n" for n, v in per_second.items())
        + f"  ours over usual {faster}; normalised on the CPU too {faster_whole}\n"
        f"  mean difference {apart:.4f} grey levels\n"
    )
    if args.out is not None:
        write_json(args.out, {"seconds_per_image": found, "mean_difference": apart})
    return 0


if __name__ == "__main__":
    sys.exit(main())
