"""Networks that make masks, out of a stored model's tensors."""

from collections.abc import Mapping

from torch import Tensor

from mimbench.vit.weights import VitSpec
from pretrain.models.generator import Generator
from pretrain.models.masker import MaskingNetwork


def stored_generator(student: Mapping[str, Tensor]) -> Generator | None:
    """Return AutoMAE's generator, if the model has one."""
    own = {n.removeprefix("generator."): t for n, t in student.items() if n.startswith("generator")}
    if not own:
        return None
    generator = Generator(own["net.0.weight"].shape[1])
    generator.load_state_dict(own)
    return generator.eval().requires_grad_(requires_grad=False)


def stored_masker(student: Mapping[str, Tensor], spec: VitSpec) -> MaskingNetwork | None:
    """Return CL-MAE's masking network, if the model has one."""
    own = {n.removeprefix("masker."): t for n, t in student.items() if n.startswith("masker.")}
    if not own:
        return None
    masker = MaskingNetwork(spec)
    masker.load_state_dict(own)
    return masker.eval().requires_grad_(requires_grad=False)
