"""Layer decay as published, and the variant that spares tokens and tables from weight decay."""

from typing import Any

from torch import nn
from typing_extensions import override

from transfer.segmentation.framework import (
    OPTIM_WRAPPER_CONSTRUCTORS,
    LearningRateDecayOptimizerConstructor,
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class EmbeddingAwareLayerDecay(LearningRateDecayOptimizerConstructor):
    """mmseg's layer decay that knows registers and, if asked, spares tokens and tables.

    Registers and a norm before the blocks move to the lowest level, beside the class token.
    With `spare_tables` in `paramwise_cfg` tokens and tables get no weight decay. That is what
    mmseg means to do, but it looks for 'pos_embed' and 'cls_token' where parameters are called
    'backbone.pos_embed', so the published runs decay position tables, class tokens and relative
    bias tables.
    """

    @override
    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **options: Any) -> None:
        """Append the parameter groups."""
        groups: list[dict[str, Any]] = []
        super().add_params(groups, module, **options)
        spare = self.paramwise_cfg["spare_tables"]
        lowest = self.paramwise_cfg["decay_rate"] ** (self.paramwise_cfg["num_layers"] + 1)
        sorted_groups: dict[tuple[float, float], dict[str, Any]] = {}
        for group in groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                scale = lowest if is_embedding(name) else group["lr_scale"]
                decay = 0.0 if spare and is_exempt(name) else group["weight_decay"]
                new = sorted_groups.setdefault(
                    (scale, decay), {"weight_decay": decay, "params": [], "param_names": []}
                )
                new["lr_scale"], new["lr"] = scale, scale * self.base_lr
                new["group_name"] = f"scale_{scale:.6g}_decay_{decay:g}"
                new["params"].append(parameter)
                new["param_names"].append(name)
        params.extend(sorted_groups.values())


def is_embedding(name: str) -> bool:
    """Tell whether a parameter belongs before the first block."""
    return name.startswith(
        (
            "backbone.cls_token",
            "backbone.reg_token",
            "backbone.pos_embed",
            "backbone.norm_pre",
            "backbone.patch_embed",
        )
    )


def is_exempt(name: str) -> bool:
    """Tell whether a parameter is a token or a table, which weight decay should leave alone."""
    return name.endswith(("cls_token", "reg_token", "pos_embed", "relative_position_bias_table"))
