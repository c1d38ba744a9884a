"""bfloat16 training on any device; float16 is mmengine's own wrapper, which needs a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn
from typing_extensions import override

from mimbench.system.runtime import autocast


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """mmengine's optimiser wrapper with the forward pass in bfloat16.

    mmengine's AmpOptimWrapper refuses CPUs because it scales the loss; bfloat16 has float32's range
    and nothing to scale.
    """

    @contextmanager
    @override
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Cast what runs inside; gradients are synchronised as mmengine decides."""
        device = next(model.parameters()).device
        with super().optim_context(model), autocast(device, "bf16"):
            yield
