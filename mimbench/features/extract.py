"""One pass over an image list fills a bank: shard by shard, on as many processes as run."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from mimbench.data.lists import ImageList
from mimbench.data.preprocess import Decoded, Pixels
from mimbench.features.bank import DTYPES, BankSpec, FeatureBank, open_bank
from mimbench.model import Network, Weights
from mimbench.networks.kinds import build_network
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, write_json
from mimbench.system.memory import Halving
from mimbench.system.progress import Progress
from mimbench.system.runtime import Precision, Ranks, autocast, pick_device
from mimbench.system.signals import leave_signals_to_parent
from mimbench.task import Machine


class ExtractionRecipe(Protocol):
    """How a bank's images are read and computed."""

    @property
    def preprocess(self) -> Pixels:
        """From an image to pixels."""
        ...

    @property
    def precision(self) -> Precision:
        """Of the forward pass."""
        ...

    @property
    def storage(self) -> str:
        """A key of `DTYPES`."""
        ...


class Bank(Protocol):
    """Shards of what a network makes of each image of a list."""

    @property
    def folder(self) -> Path:
        """Where the shards are."""
        ...

    @property
    def images(self) -> ImageList:
        """The list."""
        ...

    @property
    def spec(self) -> ExtractionRecipe:
        """How it is computed and kept."""
        ...

    @property
    def exact_step(self) -> int:
        """Of every so many images a half-precision bank also keeps exact values."""
        ...

    def rows(self, shard: int) -> range:
        """Return the image indices of a shard."""
        ...

    def path(self, shard: int) -> Path:
        """Return a shard's file."""
        ...

    def missing(self) -> list[int]:
        """Return the shards that are still to be computed."""
        ...

    def compute(self, network: Any, images: Tensor, rows: Sequence[int], /) -> dict[str, Tensor]:
        """Return named values, one row for each image, from images in [0, 1]."""
        ...


def extract(
    weights: Weights,
    images: ImageList,
    spec: BankSpec,
    machine: Machine,
    *,
    ranks: Ranks | None = None,
    root: Path | None = None,
) -> FeatureBank:
    """Return the complete bank, computing only the shards that are not there yet."""
    bank = open_bank(weights, images, spec, root=root)
    fill(bank, spec.key(weights, images), weights, machine, ranks or Ranks())
    return bank


def fill(bank: Bank, key: dict[str, Any], weights: Weights, machine: Machine, ranks: Ranks) -> None:
    """Compute the shards that a bank lacks.

    Under torchrun each process takes every world-th shard; shards do not depend on how many
    processes there are, and no process returns before all shards exist.
    """
    if ranks.main:
        _claim(bank, key)
    if ranks.world > 1:
        dist.barrier()
    missing = bank.missing()
    if ranks.world > 1:
        # every process has listed the shards before the first one writes another
        dist.barrier()
    mine = missing[ranks.rank :: ranks.world]
    if mine:
        _compute(bank, mine, build_network(weights), machine, ranks)
    if ranks.world > 1:
        dist.barrier()


def _claim(bank: Bank, key: dict[str, Any]) -> None:
    """Write the key beside the shards, or refuse a folder that holds another key's."""
    path = bank.folder / "bank.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); remove {bank.folder}") from error
        if found != json.loads(json.dumps(key)):
            raise UserError(f"{bank.folder} holds the features of another key; remove it")
        return
    write_json(path, key)


def _compute(
    bank: Bank, shards: list[int], network: Network, machine: Machine, ranks: Ranks
) -> None:
    device = pick_device(machine.device, ranks.local)
    network.to(device)
    fit = Halving(size=machine.max_batch)
    total = sum(len(bank.rows(s)) for s in shards)
    bar = Progress(f"features of {bank.images.where}", total) if ranks.main else None
    rows = {shard: list(bank.rows(shard)) for shard in shards}
    batches = _batches(bank, rows, machine)
    for shard in shards:
        parts: list[dict[str, Tensor]] = []
        for _ in range(-(-len(rows[shard]) // machine.max_batch)):
            at, pixels = next(batches)
            found = compute_in_pieces(
                network, pixels, partial(_part, bank, network, at), bank.spec.precision, fit
            )
            parts.append({name: v.cpu() for name, v in found.items()})
            if bar is not None:
                bar.step(len(pixels))
        _write(bank, shard, {name: torch.cat([p[name] for p in parts]) for name in parts[0]})
    if bar is not None:
        bar.close()


def _batches(
    bank: Bank, rows: dict[int, list[int]], machine: Machine
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield image indices and uint8 images, none of which span two shards."""
    size = machine.max_batch
    plan = [r[i : i + size] for r in rows.values() for i in range(0, len(r), size)]
    loader: DataLoader[Any] = DataLoader(
        Decoded(bank.images, bank.spec.preprocess),
        batch_sampler=plan,
        num_workers=machine.workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_signals_to_parent,
    )
    for (at, pixels), planned in zip(loader, plan, strict=True):
        assert at.tolist() == planned
        yield planned, pixels


def _part(
    bank: Bank, network: Network, at: list[int], images: Tensor, done: int
) -> dict[str, Tensor]:
    return bank.compute(network, images, at[done : done + len(images)])


def forward_in_pieces(
    network: Network, pixels: Tensor, blocks: int, precision: Precision, fit: Halving
) -> dict[str, Tensor]:
    """Return the vectors of uint8 images, computed in as many pieces as memory asks for."""

    def compute(images: Tensor, done: int) -> dict[str, Tensor]:
        del done
        return network.vectors(images, blocks)

    return compute_in_pieces(network, pixels, compute, precision, fit)


@torch.no_grad()
def compute_in_pieces(
    network: Network,
    pixels: Tensor,
    compute: Callable[[Tensor, int], dict[str, Tensor]],
    precision: Precision,
    fit: Halving,
) -> dict[str, Tensor]:
    """Return named float32 values of uint8 images, one row for each.

    Args:
        network: Tells the device.
        pixels: (b, 3, H, W)
        compute: Images in [0, 1] and how many came before them -> named values.
        precision: Of the forward pass.
        fit: How many images at a time; out of memory halves it.
    """
    out: list[dict[str, Tensor]] = []
    device = network.normalise.mean.device
    done = 0

    def piece(size: int) -> dict[str, Tensor]:
        images = pixels[done : done + size].to(device, non_blocking=True).float() / 255
        with autocast(device, precision):
            values = compute(images, done)
        return {name: v.float() for name, v in values.items()}

    while done < len(pixels):
        out.append(fit.attempt(piece))
        done += len(next(iter(out[-1].values())))
    return {name: torch.cat([part[name] for part in out]) for name in out[0]}


def _write(bank: Bank, shard: int, vectors: dict[str, Tensor]) -> None:
    dtype = DTYPES[bank.spec.storage]
    for name, value in vectors.items():
        if not torch.isfinite(value.to(dtype)).all():
            raise UserError(
                f"features {name} of shard {shard} are not finite in {bank.spec.storage} "
                f"(largest {value.abs().max():.3g}); use fp32, or check the checkpoint"
            )
    stored = {name: value.to(dtype).contiguous() for name, value in vectors.items()}
    rows, step = bank.rows(shard), bank.exact_step
    at = [i - rows.start for i in rows if i % step == 0]
    if bank.spec.storage != "fp32":
        stored |= {f"exact.{name}": value[at].contiguous() for name, value in vectors.items()}
    with atomic_path(bank.path(shard)) as part:
        save_file(stored, part)
