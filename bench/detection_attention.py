"""Fused against stock attention in detectron2's ViT-B blocks: time and memory, as ratios.

Command: python -m bench.detection_attention [--image-size 512 1024] [--repeat 3] [--device cpu]
On a GPU the whole ViT-B is measured, in bf16; on a CPU one windowed and one global block, in fp32.
A ratio below 1 means that the fused attention needs less than detectron2's own. Both are run in
turns, and ratios are taken pair by pair. Memory is the peak on a GPU; on a CPU it is what the forward
pass keeps for the backward pass, parameters included.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from detectron2.modeling.backbone.vit import Attention, Block, ViT
from torch import Tensor, nn

from bench.stopwatch import Spread, Stopwatch, ratios
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import autocast, configure_logging, pick_device
from transfer.detection.attention import FusedAttention, fuse

logger = logging.getLogger(__name__)

DIM, HEADS, WINDOW, PATCH = 768, 12, 14, 16
GLOBAL = (2, 5, 8, 11)
FIGURES = ("forward", "backward", "both", "memory")


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
    for attention in attentions:
        attention.__class__ = FusedAttention

    def back() -> None:
        for attention in attentions:
            attention.__class__ = Attention

    return back


def measure(module: nn.Module, x: Tensor, device: torch.device) -> dict[str, float]:
    """Return seconds of the forward and the backward pass, and bytes of memory."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    watch = Stopwatch(device)
    watch.start()
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
        autocast(device, "bf16" if gpu else "fp32"),
    ):
        out = module(x)
    out = out["last_feat"] if isinstance(out, dict) else out
    watch.mark("forward")
    out.float().square().mean().backward()
    watch.mark("backward")
    memory = torch.cuda.max_memory_allocated(device) if gpu else sum(kept.values())
    found = watch.read()
    return {**found, "both": found["forward"] + found["backward"], "memory": memory}


def compare(
    module: nn.Module, x: Tensor, device: torch.device, repeat: int
) -> tuple[dict[str, Spread], dict[str, float]]:
    """Return fused / stock for each figure, pair by pair, and stock's own median."""
    found: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for _ in range(repeat + 1):
        found[0].append(measure(module, x, device))
        back = fused_copy(module)
        found[1].append(measure(module, x, device))
        back()
    # the first pair pays for what is set up once
    stock, fused = (costs[1:] for costs in found)
    ratio = {
        name: ratios([cost[name] for cost in fused], [cost[name] for cost in stock])
        for name in FIGURES
    }
    return ratio, {name: median(cost[name] for cost in stock) for name in FIGURES}


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line of ratios for each size and subject."""
    parser = Parser(prog="python -m bench.detection_attention", description=__doc__)
    add_option(parser, "--image-size", "default: 512 1024", nargs="+", default=[512, 1024])
    add_option(parser, "--repeat", "default: 3", default=3)
    add_option(parser, "--device")
    args = parser.parse_args(argv)
    configure_logging()
    device = pick_device(args.device)
    columns = "".join(f"{name:<22}" for name in FIGURES)
    sys.stdout.write(f"{'size':<6}{'subject':<16}{columns}fused / stock: median (range)\n")
    for size in args.image_size:
        for name, (module, x) in subjects(size, device).items():
            ratio, stock = compare(module, x, device, args.repeat)
            cells = "".join(f"{ratio[figure]!s:<22}" for figure in FIGURES)
            sys.stdout.write(
                f"{size:<6}{name:<16}{cells}stock {stock['forward']:.3f} s,"
                f" {stock['backward']:.3f} s, {stock['memory'] / 2**20:.0f} MiB\n"
            )
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
