"""Files that no format reads: what each of them *is*, and what to do with it."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mimbench.checkpoints.reading.layout import Raw
from mimbench.system.errors import printable
from mimbench.system.listing import first_few

PYTHON = (
    "build it with its own code and call `mimbench.evaluate(model, ..., vector=...)` from Python "
    "(docs/python.ipynb)"
)
NAME_IT = (
    "if timm has this network, give it by name (timm:NAME), or put it as pytorch_model.bin into a folder "
    'with a config.json that says {"architecture": "NAME"}'
)


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A kind of file that is known and not read."""

    what: str
    todo: str
    names: str = ""
    """A pattern that a tensor's whole name matches."""
    without: str = ""
    """A pattern that none matches."""
    when: Callable[[Raw], bool] = lambda _: True

    def fits(self, raw: Raw, names: Iterable[str]) -> bool:
        """Return whether the file is of this kind."""
        if self.names and not _any(self.names, names):
            return False
        return not (self.without and _any(self.without, names)) and self.when(raw)


def _any(pattern: str, names: Iterable[str]) -> bool:
    match = re.compile(pattern).fullmatch
    return any(match(name) for name in names)


def _says(kind: str) -> Callable[[Raw], bool]:
    match = re.compile(kind).fullmatch
    return lambda raw: bool(match(str(raw.config.get("model_type", ""))))


P = r"(?:.*\.)?"
STRANGERS = (
    Stranger(
        what="a data2vec 2.0 checkpoint: its blocks norm after each addition, so that loading it into a "
        "plain ViT fits every tensor and gives wrong features",
        todo=PYTHON,
        names=P + r"modality_encoders\.IMAGE\..*",
    ),
    Stranger(
        what="an AIM v1 checkpoint (positions are computed, probes read earlier blocks)",
        todo=PYTHON,
        names=P + r"trunk\.post_trunk_norm\..*",
        without=P + r"mlp\.fc3\..*",
    ),
    Stranger(
        what="a RADIO checkpoint (one 128 x 128 position table, cropped after resizing; a class token for "
        "each teacher)",
        todo="C-RADIO v3 and v4 are read by timm's names (timm:vit_base_patch16_radio_v3.c_radio); for "
        f"others {PYTHON}",
        names=P + r"(patch_generator|input_conditioner)\..*",
    ),
    Stranger(
        what="a hybrid ViT of timm's: a convolutional network in place of the patches' projection, whose "
        "shape the tensors alone do not say",
        todo=NAME_IT,
        names=P + r"patch_embed\.backbone\..*",
    ),
    Stranger(
        what="a ViT with a convolutional stem",
        todo=NAME_IT,
        names=P + r"patch_embed\.(proj\.0|conv1|stem\.0)\.weight",
    ),
    Stranger(
        what="a PVT, as UM-MAE trains it",
        todo=PYTHON,
        names=P + r"block1\.0\.attn\.(q|kv)\.weight",
    ),
    Stranger(
        what="Hugging Face's layout of a network with levels (ConvNeXt, Swin, Hiera, ResNet)",
        todo="timm has the same weights under its own names (timm:NAME); or " + PYTHON,
        names=P + r"encoder\.(stages|layers)\.\d+\.(layers|blocks)\.\d+\..*",
    ),
    Stranger(
        what="Hugging Face's BEiT or data2vec",
        todo="give the authors' file or timm's (timm:beitv2_base_patch16_224.in1k_ft_in1k)",
        names=P
        + r"encoder\.layer\.\d+\.lambda_1|.*relative_position_bias\.relative_position_bias_table",
    ),
    Stranger(
        what="an adapter (LoRA), not a network",
        todo="merge it into its network first (PEFT: `merge_and_unload()`) and save that",
        names=r".*lora_[AB].*",
    ),
    Stranger(
        what="a language model",
        todo="give the checkpoint of a vision backbone",
        names=r"(.*\.)?layers\.\d+\.self_attn\.q_proj\.weight|(.*\.)?(wte|embed_tokens)\.weight",
        without=r".*patch_embed.*|.*vision.*",
    ),
    Stranger(
        what="the state of an optimizer, without a network",
        todo="give the file that holds the model's weights",
        when=lambda raw: {"state", "param_groups"} <= raw.top.keys() and len(raw.top) <= 3,
    ),
    Stranger(
        what="a classifier's head alone",
        todo="give the backbone's file; heads are trained by the benchmarks",
        when=lambda raw: (
            0 < len(raw.names) <= 4
            and all(n.rpartition(".")[2] in ("weight", "bias") for n in raw.names)
        ),
    ),
    Stranger(
        what="a network of Hugging Face's that mimbench has no format for",
        todo=PYTHON,
        when=_says(r".+"),
    ),
)


def unread(raw: Raw, formats: Mapping[str, object]) -> str:
    """Return what a file is that no format claims, and what to do; failing that, what was looked for."""
    names = raw.names
    known = next((s for s in STRANGERS if s.fits(raw, names)), None)
    if known is not None:
        kind = printable(str(raw.config.get("model_type", "")), 40)
        said = f" (model_type {kind})" if kind and known is STRANGERS[-1] else ""
        return f"this is {known.what}{said}: {known.todo}"
    return (
        f"no known format; looked for {', '.join(formats)}; the file's first tensors are "
        f"{first_few(sorted(names))}; {NAME_IT}"
    )
