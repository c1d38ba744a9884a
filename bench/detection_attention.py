"""Fused against stock attention in detectron2's ViT-B blocks: time and memory, as ratios.

Command: python -m bench.detection_attention [--sizes 512 1024] [--repeat 3] [--device cpu]
On a GPU the whole ViT-B is measured, in bf16; on a CPU one windowed and one global block, in fp32.
A ratio below 1 means that the fused attention needs less than detectron2's own. Memory is the peak
on a GPU; on a CPU it is what the forward pass keeps for the backward pass.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.modeling.backbone.vit import Block, ViT
from torch import Tensor, nn

from mimbench.runtime import autocast, configure_logging, pick_device
from transfer.detection.attention import FusedAttention, fuse

logger = logging.getLogger(__name__)

DIM, HEADS, WINDOW, PATCH = 768, 12, 14, 16
GLOBAL = (2, 5, 8, 11)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds and bytes of one pass."""

    forward: float
    backward: float
    memory: float


def build_block(side: int, window: int) -> Block:
    """Return one ViT-B block for a map of `side` x `side` patches."""
    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    return Block(
        DIM, HEADS, norm_layer=norm, use_rel_pos=True, window_size=window, input_size=(side, side)
    )


def build_vit(size: int) -> ViT:
    """Return ViT-B as the official configuration has it."""
    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    return ViT(
        img_size=size,
        window_size=WINDOW,
        window_block_indexes=[i for i in range(12) if i not in GLOBAL],
        use_rel_pos=True,
        drop_path_rate=0.1,
        norm_layer=norm,
    )


def subjects(size: int, device: torch.device) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return what is measured: name -> module and input."""
    if device.type == "cuda":
        return {"ViT-B": (build_vit(size).to(device), torch.randn(1, 3, size, size, device=device))}
    side = size // PATCH
    x = torch.randn(1, side, side, DIM)
    return {
        "windowed block": (build_block(side, WINDOW), x),
        "global block": (build_block(side, 0), x),
    }


def fused_copy(module: nn.Module) -> Callable[[], None]:
    """Switch a module to fused attention; return what switches it back."""
    blocks = module.blocks if isinstance(module, ViT) else [module]
    if isinstance(module, ViT):
        fuse(module)
    attentions = [block.get_submodule("attn") for block in blocks]
    stock = Block(DIM, HEADS).attn.__class__
    for attention in attentions:
        attention.__class__ = FusedAttention

    def back() -> None:
        for attention in attentions:
            attention.__class__ = stock

    return back


def measure(module: nn.Module, x: Tensor, device: torch.device) -> Cost:
    """Return the cost of one forward and backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    start = _now(gpu)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
        autocast(device, "bf16" if gpu else "fp32"),
    ):
        out = module(x)
    out = out["last_feat"] if isinstance(out, dict) else out
    middle = _now(gpu)
    out.float().square().mean().backward()
    end = _now(gpu)
    memory = torch.cuda.max_memory_allocated(device) if gpu else sum(kept.values())
    return Cost(forward=middle - start, backward=end - middle, memory=memory)


def _now(gpu: bool) -> float:  # noqa: FBT001
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(module: nn.Module, x: Tensor, device: torch.device, repeat: int) -> tuple[Cost, Cost]:
    """Return the least cost of stock and fused attention, measured in turns."""
    costs: tuple[list[Cost], list[Cost]] = ([], [])
    for _ in range(repeat + 1):
        costs[0].append(measure(module, x, device))
        back = fused_copy(module)
        costs[1].append(measure(module, x, device))
        back()
    stock, fused = (_least(found[1:]) for found in costs)
    return stock, fused


def _least(found: Sequence[Cost]) -> Cost:
    return Cost(
        forward=min(cost.forward for cost in found),
        backward=min(cost.backward for cost in found),
        memory=min(cost.memory for cost in found),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line of ratios for each size and subject."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    configure_logging()
    device = pick_device(args.device)
    sys.stdout.write("size  subject         forward  backward  memory   (fused / stock)\n")
    for size in args.sizes:
        for name, (module, x) in subjects(size, device).items():
            stock, fused = compare(module, x, device, args.repeat)
            sys.stdout.write(
                f"{size:<5} {name:<15} {fused.forward / stock.forward:>7.2f}"
                f"  {fused.backward / stock.backward:>8.2f}  {fused.memory / stock.memory:>6.2f}"
                f"   stock {stock.forward:.3f} s, {stock.backward:.3f} s,"
                f" {stock.memory / 2**20:.0f} MiB\n"
            )
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
