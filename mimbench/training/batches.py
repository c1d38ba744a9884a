"""Batches for training: which samples a step sees depends on nothing but seed, epoch and step."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from mimbench.data.images import CorruptImageError, naming
from mimbench.system.errors import UserError
from mimbench.system.generators import seeded
from mimbench.system.runtime import Ranks
from mimbench.system.seeds import derive_seed
from mimbench.system.signals import leave_signals_to_parent
from mimbench.training.optim import BatchPlan

logger = logging.getLogger(__name__)

Key = tuple[int, int]
"""Epoch and index: all that a sample's augmentation depends on, beside the seed."""

REPLACEMENTS = 20
"""Broken images in a row before a sample gives up."""


class Samples(Protocol):
    """Training data: a dataset whose items collate, and a name for each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def name(self, index: int) -> str:
        """Return what a person calls the sample: its path."""
        ...


class Batch(NamedTuple):
    """What the loader hands over."""

    indices: Tensor
    data: Any
    faults: tuple[tuple[str, str], ...]
    """Name and reason of each broken image that another one replaced."""


class SeededSamples(Dataset[tuple[int, Any, tuple[tuple[str, str], ...]]]):
    """Samples under a key: the same key gives the same sample in any process, at any time."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __getitem__(self, key: Key) -> tuple[int, Any, tuple[tuple[str, str], ...]]:
        epoch, index = key[0], key[1] % len(self.samples)
        faults: list[tuple[str, str]] = []
        for attempt in range(REPLACEMENTS):
            seed = derive_seed(self.seed, epoch, key[1], attempt)
            if attempt:
                index = seed % len(self.samples)
            try:
                with seeded(seed), naming(self.samples.name(index)):
                    return index, self.samples[index], tuple(faults)
            except CorruptImageError as error:
                faults.append((error.name, error.reason))
        shown = "\n".join(f"  {name}: {reason}" for name, reason in faults)
        raise UserError(f"{REPLACEMENTS} images in a row cannot be read:\n{shown}")


def collate(items: list[tuple[int, Any, tuple[tuple[str, str], ...]]]) -> Batch:
    """Return one batch of keyed samples."""
    indices, data, faults = zip(*items, strict=True)
    return Batch(torch.tensor(indices), default_collate(list(data)), sum(faults, ()))


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Repeated augmentation (Hoffer et al. 2020) as DeiT's sampler has it: several views of some images.

    An epoch sees the first part of a permutation, each image `views` times. Copies of an image never
    share a group: in the published runs they went to different GPUs.
    """

    views: int = 3
    unit: int = 256
    """An epoch is cut down to a multiple of this; of fewer images it has all."""
    group: int
    """Images of a step that are mixed with each other."""

    def length(self, images: int) -> int:
        """Return how many views an epoch has."""
        return images // self.unit * self.unit or images

    def order(self, permutation: Tensor, batch: int) -> Tensor:
        """Return the keys of an epoch: view k of image i is i + k x images."""
        images = len(permutation)
        copies = permutation[:, None] + images * torch.arange(self.views)
        keys = copies.flatten()[: self.length(images) // batch * batch]
        groups = max(1, batch // self.group)
        # of each step every groups-th key goes to one group
        return keys.view(-1, batch // groups, groups).transpose(1, 2).flatten()


@dataclass(frozen=True)
class StepSampler(Sampler[list[Key]]):
    """Yields the keys of each micro-batch of this process, from optimizer step `start` on.

    One permutation for each epoch is cut into effective batches, these into processes and
    micro-steps; so the samples of a step do not depend on how many processes share it, and
    what does not fill a batch at the end of an epoch is left out.
    """

    size: int
    batch: int
    plan: BatchPlan
    ranks: Ranks
    seed: int
    start: int
    stop: int
    repeats: Repeats | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return epoch_length(self.size, self.repeats) // self.batch

    def order(self, epoch: int) -> Tensor:
        """Return the epoch's permutation of all samples."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        permutation = torch.randperm(self.size, generator=generator)
        return self.repeats.order(permutation, self.batch) if self.repeats else permutation

    def __iter__(self) -> Iterator[list[Key]]:
        known, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != known:
                known, order = epoch, self.order(epoch)
            share = self.plan.per_process * self.plan.micro_steps
            first = position * self.batch + self.ranks.rank * share
            for at in range(first, first + share, self.plan.per_process):
                yield [(epoch, int(i)) for i in order[at : at + self.plan.per_process]]

    def __len__(self) -> int:
        return (self.stop - self.start) * self.plan.micro_steps


def epoch_length(images: int, repeats: Repeats | None) -> int:
    """Return how many views of so many images one epoch has."""
    return repeats.length(images) if repeats else images


def loader(samples: Samples, sampler: StepSampler, *, workers: int, pin: bool) -> DataLoader[Any]:
    """Return the loader of all batches that the sampler names; the worker count changes nothing."""
    return DataLoader(
        SeededSamples(samples, sampler.seed),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=leave_signals_to_parent,
        # else the loader would draw from the global generator, once more in a resumed run
        generator=torch.Generator(),
    )


@dataclass
class BrokenImages:
    """Broken images met so far; too many of them end the run."""

    allowed: float
    """Share of the data set that may be broken."""
    size: int
    found: dict[str, str] = field(default_factory=dict)

    def add(self, faults: tuple[tuple[str, str], ...]) -> None:
        """Count and log new broken images; raise when they are more than allowed."""
        for name, reason in faults:
            if name not in self.found:
                self.found[name] = reason
                logger.warning("broken image replaced by another: %s: %s", name, reason)
        if len(self.found) > self.allowed * self.size:
            shown = "\n".join(f"  {name}: {reason}" for name, reason in self.found.items())
            raise UserError(
                f"{len(self.found)} broken images are more than the allowed share "
                f"{self.allowed:g} of {self.size}; fix or remove them, or raise max_broken:\n{shown}"
            )


def to_device(value: Any, device: torch.device) -> Any:
    """Return nested tensors on the device, copied without waiting."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_device(item, device) for item in value]
    return value
