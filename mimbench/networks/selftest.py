"""The registration test of a checkpoint: its wiring, and a doubt about its trained weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.model import Weights, strides
from mimbench.networks.kinds import build_network
from mimbench.networks.registration import Answer, cooled, examine

SHADES = " .:-=+*#%@"


def wiring(weights: Weights, seed: int = 0) -> list[Answer]:
    """Return what every level answers with weights drawn anew: a failure is a fault of the code."""
    network: Any = build_network(weights)
    return _answers(cooled(network, seed), weights, torch.device("cpu"), seed)


def trained(weights: Weights, device: torch.device, seed: int = 0) -> list[Answer]:
    """Return what every level answers with the weights as they are: a failure is a doubt."""
    network: Any = build_network(weights)
    return _answers(network.to(device), weights, device, seed)


def _answers(network: nn.Module, weights: Weights, device: torch.device, seed: int) -> list[Answer]:
    model: Any = network

    def maps(pictures: Tensor) -> list[Tensor]:
        found = model.maps(model.normalise.inverse(pictures.to(device)))
        return [level.float().cpu() for level in found]

    return examine(maps, strides(weights.spec), seed=seed)


def lines(answers: Sequence[Answer], *, drawn: bool) -> list[str]:
    """Return the answers as text, with a picture of where the first mark answers."""
    out = []
    for answer in answers:
        rows, columns = answer.phase
        verdict = answer.fault or "sound"
        out.append(
            f"stride {answer.stride:2d}: {answer.share:4.0%} of the marks on their cell, "
            f"displaced by {rows:+.2f} rows and {columns:+.2f} columns: {verdict}"
        )
        if drawn:
            out += [f"    |{''.join(_shade(v) for v in row)}|" for row in answer.contrast]
    return out


def _shade(value: float) -> str:
    return SHADES[min(len(SHADES) - 1, int(value * len(SHADES)))]
