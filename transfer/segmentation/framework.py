"""What we use of mmseg, imported here alone, so that its two remarks on import are silenced once."""

import contextlib
import io
import warnings

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # UperNet needs no compiled operator, and mmseg prints that its vendor's platform is absent
    warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
    from mmseg.datasets import ADE20KDataset
    from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor
    from mmseg.evaluation import IoUMetric
    from mmseg.models import BEiT, EncoderDecoder, SegTTAModel
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.registry import (
        DATASETS,
        LOOPS,
        METRICS,
        MODELS,
        OPTIM_WRAPPER_CONSTRUCTORS,
        TRANSFORMS,
    )
    from mmseg.utils import register_all_modules

__all__ = [
    "DATASETS",
    "LOOPS",
    "METRICS",
    "MODELS",
    "OPTIM_WRAPPER_CONSTRUCTORS",
    "SCOPE",
    "TRANSFORMS",
    "ADE20KDataset",
    "BEiT",
    "BaseDecodeHead",
    "EncoderDecoder",
    "IoUMetric",
    "LearningRateDecayOptimizerConstructor",
    "SegTTAModel",
]

SCOPE = "mmseg"

register_all_modules(init_default_scope=True)
