"""Multi-crop training images: two global crops and several local ones, each distorted on its own."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from mimbench.data.images import decode
from pretrain.objectives.distill.config import ViewsConfig
from pretrain.sources.images import ImageSource

JITTER = (0.4, 0.4, 0.2, 0.1)
BLUR_SIGMA = (0.1, 2.0)


def _distort(blur: float, solarize: float) -> v2.Transform:
    """Return DINO's distortions with one crop kind's chances of blur and solarisation."""
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(9, BLUR_SIGMA)], p=blur),
            v2.RandomSolarize(threshold=128, p=solarize),
        ]
    )


class MultiCrops:
    """A source's images as `{global: (2, 3, S, S), local: (l, 3, s, s)}`, uint8."""

    def __init__(self, source: ImageSource, config: ViewsConfig) -> None:
        self.source, self.config = source, config
        mode = InterpolationMode(config.interpolation)
        flip = v2.RandomHorizontalFlip(config.flip)

        def view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> v2.Compose:
            crop = v2.RandomResizedCrop(size, scale, interpolation=mode, antialias=True)
            rest = [_distort(blur, solarize)] if config.colour else []
            return v2.Compose([crop, flip, *rest])

        size, scale = config.image_size, config.global_scale
        self.globals = [view(size, scale, 1.0, 0.0), view(size, scale, 0.1, 0.2)]
        self.local = view(config.local_size, config.local_scale, 0.5, 0.0)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        loaded = self.source.load(index)
        image = decode(loaded, self.name(index)) if isinstance(loaded, bytes) else loaded
        views = {"global": torch.stack([view(image) for view in self.globals])}
        if self.config.locals:
            views["local"] = torch.stack([self.local(image) for _ in range(self.config.locals)])
        return views

    def name(self, index: int) -> str:
        """Return the image's path."""
        return self.source.name(index)
