"""A user's own module as a network: what it declares, what it must not do, and its identity.

No name map exists for it, so that nothing can be said about its tensors: rows are marked "module". It
is trusted code, run in the user's own process; what is checked is what would give a wrong number.
"""

import copy
import hashlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.model import Level, Triple
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest
from mimbench.vit.normalise import Normalisation

TOLERANCE = 1e-4
"""Between a picture alone and the same picture in a batch."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Vectors = Callable[[nn.Module, Tensor], Tensor]
MapsOf = Callable[[nn.Module, Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class ModuleSpec:
    """What is known of a module."""

    model: str
    embed_dim: int
    image_size: tuple[int, int]
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    levels: tuple[Level, ...] = ()
    """Empty where the module gives an image vector alone."""
    layers: int = 1
    """Its layers have no order that is known: no layer decay."""

    def layer_of(self, name: str) -> int:
        """Return 0: all parameters are alike."""
        del name
        return 0

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return nothing: its tensors mean nothing to us."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {"kind": "module", **to_mapping(self)}


@dataclass(frozen=True, kw_only=True)
class ModuleWeights:
    """A module as tasks receive weights."""

    spec: ModuleSpec
    module: nn.Module
    vector: Vectors
    maps: MapsOf | None
    digest: str
    name: str
    format: str = "module"
    which: str = ""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    origin: str = ""
    state: str = ""
    """SHA-256 over its parameters and buffers."""
    source: str = ""
    """SHA-256 over the code of its class and of what reads it."""
    frozen: tuple[str, ...] = ()
    """Beginnings of the names of parameters that stay as they are where the network is trained."""


class ModuleNetwork(nn.Module):
    """The module behind the contract."""

    def __init__(self, weights: ModuleWeights) -> None:
        super().__init__()
        self.spec, self.weights, self.body = weights.spec, weights, weights.module
        self.normalise = Normalisation(self.spec.mean, self.spec.std)
        self.eval()

    @torch.no_grad()
    def vectors(self, images: Tensor, blocks: int) -> dict[str, Tensor]:
        """Return the module's image vector under both names."""
        del blocks
        found = self.weights.vector(self.body, self.normalise(images))
        return {"cls.1": found, "avg.1": found}

    @torch.no_grad()
    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the module's maps."""
        if self.weights.maps is None:
            raise UserError(f"{self.weights.name} gives an image vector alone, no maps")
        return list(self.weights.maps(self.body, self.normalise(images)))


def adapt(  # noqa: PLR0913 - everything that a module may declare
    module: nn.Module,
    *,
    name: str = "",
    vector: Vectors | None = None,
    maps: MapsOf | None = None,
    strides: Sequence[int] = (),
    mean: Triple | None = None,
    std: Triple | None = None,
    image_size: int | None = None,
    frozen: Sequence[str] = (),
) -> ModuleWeights:
    """Return a module as weights, after it has shown that its numbers can be trusted.

    Args:
        module: Pictures (b, 3, H, W) go in, normalised with `mean` and `std`.
        name: Row of the table; by default the class's name.
        vector: From module and pictures to image vectors (b, d); by default what calling it gives.
        maps: From module and pictures to maps (b, c, h, w), finest first; needs `strides`.
        strides: Of the maps.
        mean: Normalisation; by default the module's `pretrained_cfg`, else ImageNet's.
        std: The same.
        image_size: Side of the pictures it was made for; by default its `pretrained_cfg`'s, else 224.
        frozen: Beginnings of parameters' names that trained tasks leave as they are.
    """
    said: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    side = image_size or int((said.get("input_size") or (3, 224, 224))[1])
    label = name or type(module).__name__
    if bool(maps) != bool(strides):
        raise UserError(f"{label}: maps and strides belong together; say both or neither")
    module = module.eval().requires_grad_(requires_grad=False)
    read = vector or (_timm_vector if hasattr(module, "forward_head") else _call)
    probe = _Probe(label, module, read, maps, tuple(strides), side)
    width, levels = probe.run()
    spec = ModuleSpec(
        model=type(module).__name__,
        embed_dim=width,
        image_size=(side, side),
        mean=_triple(mean or said.get("mean") or IMAGENET_MEAN),
        std=_triple(std or said.get("std") or IMAGENET_STD),
        levels=levels,
    )
    state, source = _fingerprint(module), source_digest(module, read, maps)
    return ModuleWeights(
        spec=spec,
        module=module,
        vector=read,
        maps=maps,
        digest=value_digest({"state": state, "source": source, "spec": spec.to_json()}),
        state=state,
        source=source,
        name=label,
        frozen=_frozen(label, module, frozen),
        notes=("a module of the user's own: no tensor can be accounted for",),
    )


def _frozen(label: str, module: nn.Module, named: Sequence[str]) -> tuple[str, ...]:
    names = [name for name, _ in module.named_parameters()]
    if lost := [start for start in named if not any(name.startswith(start) for name in names)]:
        raise UserError(f"{label}: frozen names {', '.join(lost)}, which no parameter begins with")
    return tuple(named)


class TrainedModule(nn.Module):
    """A copy of the user's module that a task may train; the user's own stays as it is."""

    def __init__(self, weights: ModuleWeights) -> None:
        super().__init__()
        self.body = copy.deepcopy(weights.module)
        self.weights = weights
        for name, parameter in self.body.named_parameters():
            parameter.requires_grad_(not name.startswith(weights.frozen or ("\0",)))

    def vector(self, images: Tensor) -> Tensor:
        """Return the image vectors (b, d) of normalised pictures."""
        return self.weights.vector(self.body, images)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of normalised pictures, finest first."""
        if self.weights.maps is None:
            raise UserError(
                f"{self.weights.name} gives an image vector alone; what is trained on maps needs "
                "maps= and strides="
            )
        return list(self.weights.maps(self.body, images))


class ModuleClassifier(TrainedModule):
    """The copy under a new head: what fine-tuning trains."""

    def __init__(self, weights: ModuleWeights, classes: int) -> None:
        super().__init__(weights)
        self.head = nn.Linear(weights.spec.embed_dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalised pictures."""
        return self.head(self.vector(images))


def home(module: nn.Module) -> torch.device:
    """Return the device that a module lies on."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


@contextmanager
def as_it_was(module: nn.Module) -> Iterator[None]:
    """Give a module back as it came: its device, its training mode, which of its parameters learn."""
    device = home(module)
    modes = {part: part.training for part in module.modules()}
    learns = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        yield
    finally:
        if home(module) != device:
            module.to(device)
        for part, mode in modes.items():
            part.training = mode
        for parameter, wanted in learns.items():
            parameter.requires_grad_(wanted)


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _call(module: nn.Module, images: Tensor) -> Tensor:
    return module(images)


def _timm_vector(module: nn.Module, images: Tensor) -> Tensor:
    """Return what timm's head would read."""
    model: Any = module
    return model.forward_head(model.forward_features(images), pre_logits=True)


@dataclass(frozen=True)
class _Probe:
    """The checks of a module, on pictures of noise."""

    label: str
    module: nn.Module
    vector: Vectors
    maps: MapsOf | None
    strides: tuple[int, ...]
    side: int

    def run(self) -> tuple[int, tuple[Level, ...]]:
        """Return the vector's width and the levels, or say what is wrong."""
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(2, 3, self.side, self.side, generator=draw).to(home(self.module))
        before = _fingerprint(self.module)
        first = self._vectors(images)
        self._check_answers(images, first)
        levels = self._levels(images) if self.maps else ()
        if _fingerprint(self.module) != before:
            raise UserError(
                f"{self.label}: its parameters or buffers change while it looks at pictures, though it "
                "is in eval(): it trains itself; a frozen network must give the same features tomorrow"
            )
        return first.shape[1], levels

    def _vectors(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            found: Any = self.vector(self.module, images)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"{self.label}: {len(images)} pictures of {self.side}x{self.side} gave {shape}, "
                f"expected image vectors ({len(images)}, width); pass vector=, a function of module and "
                "pictures that returns them"
            )
        if not torch.isfinite(found).all():
            raise UserError(
                f"{self.label}: image vectors of noise hold NaN or infinite values; check its weights "
                "and the normalisation that it expects"
            )
        return found

    def _check_answers(self, images: Tensor, first: Tensor) -> None:
        if not torch.equal(self._vectors(images), first):
            raise UserError(
                f"{self.label}: the same pictures gave two answers in eval(): dropout or another draw "
                "is left on, and features would differ from run to run"
            )
        alone = torch.cat([self._vectors(images[i : i + 1]) for i in range(len(images))])
        scale = first.abs().max().clamp_min(1e-6)
        if (alone - first).abs().max() > TOLERANCE * scale:
            raise UserError(
                f"{self.label}: a picture's vector depends on the others in its batch (by "
                f"{float((alone - first).abs().max() / scale):.1e}): a batch norm that eval() does not "
                "reach, or rows exchanged"
            )

    def _maps(self, images: Tensor) -> list[Tensor]:
        assert self.maps is not None
        with torch.no_grad():
            found: Any = self.maps(self.module, images)
        several = isinstance(found, (list, tuple)) and len(found) == len(self.strides)
        if not several or not all(isinstance(m, Tensor) and m.dim() == 4 for m in found):
            kinds = [tuple(getattr(m, "shape", ())) or type(m).__name__ for m in found]
            raise UserError(
                f"{self.label}: maps gave {kinds}, expected {len(self.strides)} maps (b, c, h, w), one for "
                f"each of strides {list(self.strides)}"
            )
        return list(found)

    def _check_maps(self, images: Tensor) -> None:
        unit = math.lcm(max(self.strides), 32)
        pictures = images.new_zeros(2, 3, unit, 2 * unit).normal_(generator=_draw(images.device))
        first, again = self._maps(pictures), self._maps(pictures)
        if not all(torch.isfinite(m).all() for m in first):
            raise UserError(f"{self.label}: maps of noise hold NaN or infinite values")
        if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
            raise UserError(
                f"{self.label}: the same pictures gave two maps in eval(): dropout or another draw is left on"
            )
        alone = self._maps(pictures[1:])
        apart = max(
            float((a - b[1:]).abs().max() / b.abs().max().clamp_min(1e-6))
            for a, b in zip(alone, first, strict=True)
        )
        if apart > TOLERANCE:
            raise UserError(
                f"{self.label}: a picture's maps depend on the others in its batch (by {apart:.1e})"
            )

    def _levels(self, images: Tensor) -> tuple[Level, ...]:
        assert self.maps is not None
        coarsest = max(self.strides)
        unit = math.lcm(coarsest, 32)
        widths: list[list[int]] = []
        for size in ((2 * unit, 3 * unit), (4 * unit, 2 * unit)):
            found = self._maps(images.new_zeros(1, 3, *size))
            wanted = [(-(-size[0] // s), -(-size[1] // s)) for s in self.strides]
            shapes = [tuple(m.shape[2:]) for m in found]
            if shapes != wanted:
                raise UserError(
                    f"{self.label}: pictures of {size[0]}x{size[1]} gave maps of {shapes}, expected "
                    f"{wanted} for strides {list(self.strides)}"
                )
            widths.append([m.shape[1] for m in found])
        self._check_maps(images)
        return tuple(
            Level(stride=s, channels=c) for s, c in zip(self.strides, widths[0], strict=True)
        )


def _draw(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(1)


def _fingerprint(module: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(
            value.view(torch.uint8).numpy().tobytes()
            if value.numel() and value.dim()
            else str(value).encode()
        )
    return total.hexdigest()


def source_digest(module: nn.Module, *functions: Any) -> str:
    """Return the SHA-256 of a module's source and of what reads it."""
    total = hashlib.sha256()
    for part in (type(module), *functions):
        try:
            total.update(inspect.getsource(part).encode())
        except (OSError, TypeError):
            # typed at a prompt: only the state and the name tell
            total.update(getattr(part, "__qualname__", repr(type(part))).encode())
    return total.hexdigest()
