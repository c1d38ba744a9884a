"""Masking strategies: each module in this folder is one, named in a config by its file's name.

A strategy is a frozen dataclass `Strategy` whose fields are its configuration. It declares in
`needs` what must be computed for it; the learner computes just that, and only at the moments when
`idle` is false. A module may set `NAME` where its file cannot carry the name (`random`).

Not here: SemMAE's semantic parts. Its published stage takes parts from arrays whose learning code
was never released, so nothing that we wrote could be checked against it.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast, runtime_checkable

from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError, did_you_mean

if TYPE_CHECKING:
    # `python -m pretrain.masks --help` comes through here, and needs no torch
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

Need = Literal[
    "difficulty", "attention", "images", "generator", "salience", "trial", "labels", "masker"
]
"""The teacher's predicted loss; its class token's attention; the images; a trained generator; how
much embedded patches attend to each; the student's loss under a mask; what people annotated; a
trained masking network."""

SEMANTIC = frozenset({"semantic", "semantic_parts", "parts", "semmae"})
"""Names under which somebody may look for SemMAE, which stays out."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much an objective hides that draws it: masks of a batch then differ in their counts."""

    share: Tensor
    """(b,) share of each image's patches to hide; 0 leaves an image whole."""
    again: float
    """A second, independent draw of the same distribution, for strategies that reveal some again."""


@dataclass(frozen=True, kw_only=True)
class MaskInput:
    """What a strategy may look at. Tensors are there only if the strategy needs them."""

    batch: int
    grid: tuple[int, int]
    device: torch.device
    epoch_progress: float = 1.0
    """(epoch + 1) / epochs: constant within an epoch, 1 in the last one."""
    step_progress: float = 1.0
    """(step + 1) / steps."""
    difficulty: Tensor | None = None
    """(b, n) predicted loss of each patch, float32; None also where the teacher was left out."""
    attention: Tensor | None = None
    """(b, n) attention of the teacher's class token, mean over heads, float32."""
    images: Tensor | None = None
    """(b, 3, H, W), normalised."""
    log_probability: Tensor | None = None
    """(b, n) logarithm of the chance at which a trained generator picks each patch first."""
    salience: Tensor | None = None
    """(b, n) in [0, 1]: how much the student's embedded patches attend to each, float32."""
    trial: Callable[[Tensor], Tensor] | None = None
    """The student's mean loss (b,) under masks (b, n), without gradient."""
    labels: Tensor | None = None
    """(b, H, W) the number of the annotated thing that each pixel belongs to, 0 for none, bytes."""
    keep: Tensor | None = None
    """(b, n) in (0, 1): how much a masking network wants each patch to be seen."""
    turn: float = 0.0
    """Where the random order of patches is cut, as a share of it: masks of one image at 0, 1/2 show
    different parts of one permutation."""
    amount: Amount | None = None
    """Set by an objective that replaces tokens; without it a strategy's own count holds."""
    first: int = 0
    """Place of the first image in the effective batch, over all processes and micro-steps."""
    whole: int | None = None
    """Images in the effective batch; by default just this batch."""

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return self.grid[0] * self.grid[1]

    def wanted(self, usual: int) -> int | Tensor:
        """Return how many patches to hide: the objective's number for each image, or the usual."""
        if self.amount is None:
            return usual
        # a product that should be whole must not fall below it by rounding
        return (self.amount.share.to(self.device) * self.patches + 1e-4).long()

    def uniform(self, rng: torch.Generator, *shape: int) -> Tensor:
        """Return numbers from [0, 1) of shape (b, *shape), this batch's share of the whole's.

        All processes hold generators in the same state; drawing for the whole effective batch
        and keeping the own rows makes masks that do not depend on how the batch is divided.
        A strategy takes all its randomness from here.
        """
        whole = self.batch if self.whole is None else self.whole
        import torch  # noqa: PLC0415

        drawn = torch.rand(whole, *shape, generator=rng, device=rng.device)
        own = self._turned(drawn[self.first : self.first + self.batch])
        if self.device.type == "cuda" and not own.is_cuda:
            # from pageable memory the copy would make the host wait for the device
            return own.pin_memory().to(self.device, non_blocking=True)
        return own.to(self.device)

    def _turned(self, drawn: Tensor) -> Tensor:
        if not self.turn:
            return drawn
        if drawn.shape[-1] != self.patches:
            return (drawn + self.turn) % 1
        # by ranks: shares of the patches are then exactly apart
        ranks = drawn.argsort(dim=-1, stable=True).argsort(-1)
        return (ranks + int(self.turn * self.patches)) % self.patches / self.patches


@runtime_checkable
class MaskStrategy(Protocol):
    """What a module's `Strategy` offers."""

    needs: ClassVar[frozenset[Need]]

    def count(self, patches: int) -> int:
        """Return how many patches of each image are hidden: known without asking the device."""
        ...

    def idle(self, inp: MaskInput) -> bool:
        """Tell whether, at this moment of the schedule, the needs make no difference."""
        ...

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask (b, n): True = hidden, `count(n)` of them in each row."""
        ...


def hidden_count(patches: int, ratio: float) -> int:
    """Return how many patches a ratio hides: all but floor(patches x (1 - ratio)).

    The floor is taken of the exact product, so that 0.9 of 100 leaves 10 and not 9.
    """
    if not 0 < ratio < 1:
        raise UserError(f"a mask ratio of {ratio:g} leaves nothing to see or nothing to learn")
    visible = int(patches * (1 - ratio) + 1e-9)
    if not 0 < visible < patches:
        raise UserError(f"a mask ratio of {ratio:g} leaves {visible} of {patches} patches visible")
    return patches - visible


def hide_largest(keys: Tensor, count: int | Tensor) -> Tensor:
    """Return the mask that hides the `count` largest keys of each row: one number, or one per row."""
    import torch  # noqa: PLC0415

    if isinstance(count, torch.Tensor):
        ranks = keys.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return ranks < count.unsqueeze(1)
    mask = torch.zeros_like(keys, dtype=torch.bool)
    return mask.scatter_(1, keys.topk(count, dim=1).indices, value=True)


def available() -> dict[str, type[MaskStrategy]]:
    """Return name -> strategy of every module in this folder."""
    found: dict[str, type[MaskStrategy]] = {}
    for info in pkgutil.iter_modules(__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"{__name__}.{info.name}")
            if hasattr(module, "Strategy"):
                found[getattr(module, "NAME", info.name)] = module.Strategy
    return found


def build(config: Mapping[str, Any]) -> MaskStrategy:
    """Return the strategy that a config's `mask` section describes: `name`, then its fields."""
    known = available()
    fields = dict(config)
    name = fields.pop("name", None)
    if name in SEMANTIC:
        raise UserError(
            f"mask.name {name!r}: SemMAE's semantic parts are not offered, because the code that "
            f"learns them was never released; there are {', '.join(sorted(known))}"
        )
    if name not in known:
        raise UserError(f"unknown mask.name {name!r}{did_you_mean(str(name), known)}")
    return cast(MaskStrategy, from_mapping(cast(Any, known[name]), fields, f"mask ({name})"))
