"""The contract of a model: what specification, weights and network say of themselves, of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mimbench.system.errors import UserError
from mimbench.system.listing import first_few

if TYPE_CHECKING:  # the runner reads what tasks declare without torch
    from torch import Tensor

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One map that a network gives: its stride in pixels, its channels."""

    stride: int
    channels: int


class Spec(Protocol):
    """Everything that tensors mean beyond their values; together they fix the function."""

    @property
    def embed_dim(self) -> int:
        """Width of the image vector."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the network was made for."""
        ...

    @property
    def mean(self) -> Triple:
        """Normalisation of images in [0, 1], per channel."""
        ...

    @property
    def std(self) -> Triple:
        """Normalisation of images in [0, 1], per channel."""
        ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """The maps, finest first: one for a flat trunk, four for most networks with levels."""
        ...

    @property
    def layers(self) -> int:
        """Levels of layer decay: the embeddings are 0, the head is the last."""
        ...

    def layer_of(self, name: str) -> int:
        """Return a parameter's level of layer decay; names that are no part of it are the last."""
        ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every tensor that weights of this specification hold."""
        ...

    @property
    def model(self) -> str:
        """The architecture's short name in tables."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        ...


@runtime_checkable
class Weights(Protocol):
    """One network as every task receives it."""

    @property
    def spec(self) -> Spec:
        """What the tensors mean."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """float32, exactly the names of `spec.shapes()`."""
        ...

    @property
    def format(self) -> str:
        """Where they were read from."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the network everywhere."""
        ...

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    @property
    def which(self) -> str:
        """The network taken where a file holds several."""
        ...

    @property
    def extras(self) -> Mapping[str, int]:
        """Tensors that are no part of the network: group -> count."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        ...

    @property
    def origin(self) -> str:
        """The name they were found by, with its revision (`hf:ORG/NAME@REVISION`); '' for a path."""
        ...


class Network(Protocol):
    """A frozen network: images (b, 3, H, W) in [0, 1] go in, it normalises them itself."""

    @property
    def normalise(self) -> Any:
        """The network's `Normalisation`, on its device."""
        ...

    def vectors(self, images: Tensor, blocks: int) -> dict[str, Tensor]:
        """Return image vectors (b, d): `cls.n` and `avg.n` of the n-th block from the end.

        A network without class token gives its own image vector under both names; one whose blocks
        have different widths gives those of the end alone.
        """
        ...

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return one map (b, c, h, w) for each of the specification's levels, finest first."""
        ...

    def to(self, device: Any) -> Any:
        """Move the network."""
        ...


def mismatches(spec: Spec, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return every way in which tensors are not exactly what the specification asks for."""
    wanted = spec.shapes()
    faults = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in wanted:
            faults.append(f"unexpected {name} {tuple(tensor.shape)}")
        elif tuple(tensor.shape) != wanted[name]:
            faults.append(f"{name} has shape {tuple(tensor.shape)}, expected {wanted[name]}")
    return faults


def require_fit(weights: Weights) -> None:
    """Raise `UserError` unless the tensors are exactly what the specification asks for."""
    if faults := mismatches(weights.spec, weights.tensors):
        raise UserError(
            f"{weights.name or 'weights'} do not fit their specification: "
            f"{first_few(faults, separator='; ')}"
        )


def strides(spec: Spec) -> Sequence[int]:
    """Return the strides of a network's maps."""
    return [level.stride for level in spec.levels]
