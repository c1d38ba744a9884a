"""Initial values: MAE's, from one stream of random numbers or from one for each tensor."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mimbench.system.generators import seeded
from mimbench.system.seeds import derive_seed

Source = Callable[[str], AbstractContextManager[None]]
"""By a tensor's name, where torch's global generator stands while its values are drawn."""


def stream(_name: str) -> AbstractContextManager[None]:
    """Draw all tensors one after the other, from wherever the generator stands."""
    return nullcontext()


def by_name(seed: int) -> Source:
    """Give each tensor a generator of its own, seeded by `seed` and the tensor's name.

    Models that share a tensor then start from equal values, whatever else they hold.
    """
    return lambda name: seeded(derive_seed(seed, *name.encode()))


def fill_linear(model: nn.Module, source: Source, prefix: str = "") -> None:
    """Set MAE's initial values of all linear maps, named after the prefix."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            with source(f"{prefix}{name}"):
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def fill(
    model: nn.Module,
    source: Source,
    *,
    embedding: str,
    tokens: Mapping[str, Tensor],
    folded: Mapping[str, int],
) -> None:
    """Set MAE's initial values.

    Args:
        model: The networks.
        source: Where the random numbers come from.
        embedding: The convolution that embeds patches, by its name.
        tokens: Learned tokens by their names.
        folded: Heads that stand for the mean of so many outputs of the released code.
    """
    fill_linear(model, source)
    weight, bias = (model.get_parameter(f"{embedding}.{part}") for part in ("weight", "bias"))
    with source(embedding):
        nn.init.xavier_uniform_(weight.data.view(len(weight), -1))
        if source is not stream:
            # in the stream it keeps what torch drew when the convolution was built
            bound = weight[0].numel() ** -0.5
            nn.init.uniform_(bias, -bound, bound)
    for name, token in tokens.items():
        with source(name):
            nn.init.normal_(token, std=0.02)
    for name, outputs in folded.items():
        head = model.get_parameter(f"{name}.weight")
        # the released code averages as many outputs as a patch has pixels: the same function here
        wide = torch.empty(outputs, head.shape[1])
        with source(name):
            nn.init.xavier_uniform_(wide)
        head.data.copy_(wide.mean(dim=0, keepdim=True))
