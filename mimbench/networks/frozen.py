"""A frozen network with levels: image vectors as its classifier has them, maps as detectors do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor, nn

from mimbench.networks.levels import LevelSpec, LevelWeights, build_levels
from mimbench.system.errors import UserError, printable
from mimbench.system.memory import is_out_of_memory
from mimbench.vit.normalise import Normalisation

TABLE = "relative_position_bias_table"


class LevelNetwork(nn.Module):
    """A network of timm's behind the contract: images (b, 3, H, W) in [0, 1] go in."""

    def __init__(self, weights: LevelWeights) -> None:
        super().__init__()
        self.weights, self.spec = weights, weights.spec
        self.body = filled(weights, any_size=True)
        self.classifier = self.body
        self.size = self.spec.image_size
        if self.spec.family == "swin":
            self.classifier = filled(weights)
        self.normalise = Normalisation(self.spec.mean, self.spec.std)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the image vectors (b, d), as the classifier's head would read them."""
        model: Any = self._at(images)
        with fitting(self.spec, images):
            features = model.forward_features(self.normalise(images))
            return model.forward_head(features, pre_logits=True)

    def vectors(self, images: Tensor, blocks: int) -> dict[str, Tensor]:
        """Return the image vector under both names; blocks of other widths have none."""
        del blocks
        vector = self(images)
        return {"cls.1": vector, "avg.1": vector}

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return a map (b, c, h, w) for each level, before any norm of a head."""
        return level_maps(self.body, self.spec, self.normalise(images))

    def _at(self, images: Tensor) -> nn.Module:
        """Return the classifier for pictures of this size."""
        size = (images.shape[2], images.shape[3])
        if self.spec.family == "swin" and size != self.size:
            self.classifier = filled(at_size(self.weights, size)).to(self.normalise.mean.device)
            self.classifier.eval().requires_grad_(requires_grad=False)
            self.size = size
        return self.classifier


def filled(weights: LevelWeights, *, any_size: bool = False) -> nn.Module:
    """Return the network with its weights in it."""
    model = build_levels(weights.spec, any_size=any_size)
    # batch norms also count their steps
    model.load_state_dict({**model.state_dict(), **weights.tensors})
    return model


def level_maps(model: nn.Module, spec: LevelSpec, images: Tensor) -> list[Tensor]:
    """Return a map (b, c, h, w) of normalised images for each of the specification's levels."""
    network: Any = model
    info = [feature["reduction"] for feature in network.feature_info]
    wanted = [max(i for i, s in enumerate(info) if s == level.stride) for level in spec.levels]
    with fitting(spec, images):
        found = network.forward_intermediates(
            images, indices=wanted, intermediates_only=True, output_fmt="NCHW"
        )
    return list(found)


@contextmanager
def fitting(spec: LevelSpec, images: Tensor) -> Iterator[None]:
    """Say that an architecture reads images of one size only, where timm's own code fails on another."""
    size = (images.shape[2], images.shape[3])
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        if size == spec.image_size or is_out_of_memory(error):
            raise
        own = "x".join(map(str, spec.image_size))
        raise UserError(
            f"{spec.model} does not read images of {size[0]}x{size[1]}: timm builds it for {own} "
            f"({printable(str(error).partition(chr(10))[0], 120)}); use an image size of {own}, or leave the "
            "benchmark out"
        ) from error


def at_size(weights: LevelWeights, size: tuple[int, int]) -> LevelWeights:
    """Return the weights as published fine-tuning takes them to another size of picture.

    A Swin's windows grow with the picture and its bias tables are resized geometrically (SimMIM:
    windows of 6 at 192 become 7 at 224); other families need nothing.
    """
    spec = weights.spec
    if spec.family != "swin" or size == spec.image_size:
        return weights
    old = int(spec.options["window_size"])
    new = max(1, old * min(size) // min(spec.image_size))
    tensors = dict(weights.tensors)
    for name, table in weights.tensors.items():
        if name.endswith(TABLE):
            side = table.shape[0] ** 0.5
            fitted = _fitted(name, spec, size, new)
            rows = (2 * fitted[0] - 1) * (2 * fitted[1] - 1)
            was = round((side + 1) / 2)
            tensors[name] = resize_rel_pos_bias_table(
                table,
                new_window_size=fitted,
                new_bias_shape=(rows, table.shape[1]),
                old_window_size=(was, was),
            )
    changed = replace(spec, image_size=size, options={**spec.options, "window_size": new})
    return replace(weights, spec=changed, tensors=tensors)


def _fitted(name: str, spec: LevelSpec, size: tuple[int, int], window: int) -> tuple[int, int]:
    """Return a block's window: no larger than its stage's grid."""
    stage = int(name.split(".")[1])
    stride = spec.levels[stage].stride
    return min(window, -(-size[0] // stride)), min(window, -(-size[1] // stride))
