"""One pass over an image list fills its feature bank: shard by shard, on as many processes as run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from mimbench.data.lists import ImageList
from mimbench.data.preprocess import Decoded
from mimbench.features.bank import (
    DTYPES,
    BankSpec,
    FeatureBank,
    block_vectors,
    check_step,
    open_bank,
)
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, write_json
from mimbench.system.memory import Halving
from mimbench.system.progress import Progress
from mimbench.system.runtime import Precision, Ranks, autocast, pick_device
from mimbench.task import Machine
from mimbench.vit.backbone import Backbone, build_backbone
from mimbench.vit.weights import VitWeights


def extract(
    weights: VitWeights,
    images: ImageList,
    spec: BankSpec,
    machine: Machine,
    *,
    ranks: Ranks | None = None,
    root: Path | None = None,
) -> FeatureBank:
    """Return the complete bank, computing only the shards that are not there yet.

    Under torchrun each process takes every world-th shard; shards do not depend on how many
    processes there are, and no process returns before all shards exist.
    """
    ranks = ranks or Ranks()
    bank = open_bank(weights, images, spec, root=root)
    if ranks.main:
        _claim(bank, spec.key(weights, images))
    if ranks.world > 1:
        dist.barrier()
    missing = bank.missing()
    if ranks.world > 1:
        # every process has listed the shards before the first one writes another
        dist.barrier()
    mine = missing[ranks.rank :: ranks.world]
    if mine:
        _compute(bank, mine, build_backbone(weights), machine, ranks)
    if ranks.world > 1:
        dist.barrier()
    return bank


def _claim(bank: FeatureBank, key: dict[str, Any]) -> None:
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
    bank: FeatureBank, shards: list[int], backbone: Backbone, machine: Machine, ranks: Ranks
) -> None:
    device = pick_device(machine.device, ranks.local)
    backbone.to(device)
    fit = Halving(size=machine.max_batch)
    total = sum(len(bank.rows(s)) for s in shards)
    bar = Progress(f"features of {bank.images.where}", total) if ranks.main else None
    rows = {shard: list(bank.rows(shard)) for shard in shards}
    batches = _batches(bank, rows, machine)
    for shard in shards:
        parts: list[dict[str, Tensor]] = []
        for _ in range(-(-len(rows[shard]) // machine.max_batch)):
            pixels = next(batches)
            found = forward_in_pieces(backbone, pixels, bank.spec.blocks, bank.spec.precision, fit)
            parts.append({name: v.cpu() for name, v in found.items()})
            if bar is not None:
                bar.step(len(pixels))
        _write(bank, shard, {name: torch.cat([p[name] for p in parts]) for name in parts[0]})
    if bar is not None:
        bar.close()


def _batches(bank: FeatureBank, rows: dict[int, list[int]], machine: Machine) -> Iterator[Tensor]:
    """Yield uint8 batches, none of which spans two shards."""
    size = machine.max_batch
    plan = [r[i : i + size] for r in rows.values() for i in range(0, len(r), size)]
    loader: DataLoader[Any] = DataLoader(
        Decoded(bank.images, bank.spec.preprocess),
        batch_sampler=plan,
        num_workers=machine.workers,
        pin_memory=torch.cuda.is_available(),
    )
    for _, pixels in loader:
        yield pixels


@torch.no_grad()
def forward_in_pieces(
    backbone: Backbone, pixels: Tensor, blocks: int, precision: Precision, fit: Halving
) -> dict[str, Tensor]:
    """Return the vectors of uint8 images, computed in as many pieces as memory asks for."""
    out: list[dict[str, Tensor]] = []
    device = backbone.normalise.mean.device
    done = 0

    def piece(size: int) -> dict[str, Tensor]:
        images = pixels[done : done + size].to(device, non_blocking=True).float() / 255
        with autocast(device, precision):
            vectors = block_vectors(backbone, images, blocks)
        return {name: v.float() for name, v in vectors.items()}

    while done < len(pixels):
        out.append(fit.attempt(piece))
        done += len(out[-1]["cls.1"])
    return {name: torch.cat([part[name] for part in out]) for name in out[0]}


def _write(bank: FeatureBank, shard: int, vectors: dict[str, Tensor]) -> None:
    dtype = DTYPES[bank.spec.storage]
    for name, value in vectors.items():
        if not torch.isfinite(value.to(dtype)).all():
            raise UserError(
                f"features {name} of shard {shard} are not finite in {bank.spec.storage} "
                f"(largest {value.abs().max():.3g}); use fp32, or check the checkpoint"
            )
    stored = {name: value.to(dtype).contiguous() for name, value in vectors.items()}
    rows, step = bank.rows(shard), check_step(len(bank.images))
    at = [i - rows.start for i in rows if i % step == 0]
    if bank.spec.storage != "fp32":
        stored |= {f"exact.{name}": value[at].contiguous() for name, value in vectors.items()}
    with atomic_path(bank.path(shard)) as part:
        save_file(stored, part)
