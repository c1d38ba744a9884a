"""What reaches the user: lack of memory, or a loss that is no number, becomes advice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mimbench.system.errors import UserError
from mimbench.system.memory import memory_advice

REMEDY = (
    "lower max_batch (the effective batch stays: more micro-steps make it up), pass --recompute, or "
    "set attention: fused or precision: bf16; then run again: training goes on from the last saved "
    "state"
)


@contextmanager
def advice(device: torch.device) -> Iterator[None]:
    """Turn what stops a training for lack of memory or sense into advice."""
    with memory_advice(f"on {device}", REMEDY):
        try:
            yield
        except FloatingPointError as error:
            raise UserError(
                f"{error}\nthe weights saved last are still sound; train with precision: bf16, or "
                "with a lower learning_rate"
            ) from error
