"""Names: our student and teacher in the layouts of MAE's and HPM's released code, and back.

HPM's released predictor gives as many outputs as a patch has pixel values and averages them; ours
gives the average. Reading folds those outputs, writing repeats the one: the function stays.
"""

from collections.abc import Mapping

from torch import Tensor

from mimbench.system.errors import UserError

PARTS = (
    ("encoder.", ""),
    ("neck.embed.", "decoder_embed."),
    ("neck.mask_token", "mask_token"),
    ("neck.pos_embed", "decoder_pos_embed"),
    ("generator.net.", "scorer_pred.main."),
)
DECODERS = (("reconstructor.", ""), ("predictor.", "_losspred"))
HEAD = "predictor.pred."


def to_official(state: Mapping[str, Tensor], *, pixels: int) -> dict[str, Tensor]:
    """Return a state dict under the released code's names.

    Args:
        state: Tensors under our names: a student's, or a teacher's.
        pixels: Values of one patch: outputs of the released predictor's head.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(HEAD):
            tensor = tensor.expand(pixels, *tensor.shape[1:]).clone()
        out[_official_name(name)] = tensor
    return out


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an HPM or MAE state dict under our names, with `module.` taken off and heads folded."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = _our_name(name.removeprefix("module."))
        if ours.startswith(HEAD):
            tensor = tensor.float().mean(dim=0, keepdim=True)
        out[ours] = tensor
    return out


def _official_name(name: str) -> str:
    for ours, theirs in PARTS:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    for ours, suffix in DECODERS:
        if name.startswith(ours):
            kind, _, rest = name[len(ours) :].partition(".")
            return f"decoder_{kind}{suffix}.{rest}"
    raise UserError(f"'{name}' is no tensor of a student or teacher")


def _our_name(name: str) -> str:
    for ours, theirs in PARTS[1:]:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    if name.startswith("decoder_"):
        kind, _, rest = name.removeprefix("decoder_").partition(".")
        if kind.endswith("_losspred"):
            return f"predictor.{kind.removesuffix('_losspred')}.{rest}"
        return f"reconstructor.{kind}.{rest}"
    return f"encoder.{name}"
