"""How many FLOPs a pretraining step needs by its method, and how many it executes.

One multiplication with its addition counts as two; what is not a matrix product is left out.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mimbench.vit.weights import VitSpec
from pretrain.models.autoencoder import DecoderConfig


def block(tokens: int, width: int, queries: int | None = None) -> int:
    """Return the FLOPs of a transformer block that answers for `queries` of its tokens."""
    queries = tokens if queries is None else queries
    linear = 4 * tokens + 4 * queries + 16 * queries
    return linear * width**2 + 4 * queries * tokens * width


def encoder(spec: VitSpec, patches: int) -> tuple[int, int]:
    """Return the FLOPs of the patch embedding and of the blocks, for so many patches."""
    embedding = 2 * patches * 3 * spec.patch_size**2 * spec.embed_dim
    return embedding, spec.depth * block(patches + spec.class_tokens, spec.embed_dim)


def decoder(config: DecoderConfig, patches: int, answers: int, outputs: int) -> int:
    """Return the FLOPs of a decoder that sees all patches and answers for some."""
    whole = (config.depth - 1) * block(patches + 1, config.width)
    return whole + block(patches + 1, config.width, answers) + 2 * answers * config.width * outputs


def necessary(
    spec: VitSpec, config: DecoderConfig, hidden: int, *, predictor: bool, teacher: bool
) -> dict[str, int]:
    """Return the FLOPs of one image by part: forward once for the teacher, thrice for what learns.

    Forward, and gradients of inputs and of weights; the images need no gradient.
    """
    n, pixels = spec.grid[0] * spec.grid[1], 3 * spec.patch_size**2
    neck = 2 * spec.embed_dim * config.width
    embedding, blocks = encoder(spec, n - hidden)
    decoders = neck * (n - hidden + 1) + decoder(config, n, hidden, pixels)
    if predictor:
        decoders += decoder(config, n, hidden, 1)
    parts = {"encoder": 2 * embedding + 3 * blocks, "decoders": 3 * decoders}
    if teacher:
        parts["teacher"] = sum(encoder(spec, n)) + neck * (n + 1) + decoder(config, n, n, 1)
    return parts


def _forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _product(rows: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(rows) * weight[0]


def executed(step: Callable[[], object]) -> int:
    """Return the FLOPs that PyTorch executes in `step`, recomputation included."""
    aten = torch.ops.aten
    # PyTorch's counter knows the fused attention of GPUs only, and no oneDNN
    further = {
        torch.ops.mkldnn._linear_pointwise: _product,
        aten._scaled_dot_product_flash_attention_for_cpu: _forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    }
    with FlopCounterMode(display=False, custom_mapping=further) as counter:
        step()
    return counter.get_total_flops()
