"""Names of timm's pretrained networks: which tag, which repository or address, which statistics."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.listing import first_few

PREFIX = "timm:"
UNREADABLE = (".npz", ".npy")
"""Files of JAX at addresses of their own: the hub has the same weights for torch."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """One set of weights that timm names."""

    architecture: str
    tag: str
    repository: str
    """On the hub; '' where it has none."""
    url: str
    """Of a file; '' where there is none that torch reads."""
    license: str
    config: Mapping[str, Any]
    """What the hub's `config.json` says of it, from timm itself."""
    others: tuple[str, ...] = ()
    """The architecture's other tags, where none was said."""

    @property
    def name(self) -> str:
        """The whole name, without a revision."""
        return f"{PREFIX}{self.architecture}.{self.tag}" if self.tag else PREFIX + self.architecture

    @property
    def file(self) -> str:
        """The name under which torch keeps the address's file."""
        return PurePosixPath(urlsplit(self.url).path).name


def look_up(name: str) -> Pretrained:
    """Return what timm knows of `ARCHITECTURE[.TAG]`; without a tag it is timm's default."""
    import timm  # noqa: PLC0415 - seconds of imports that paths do not need
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg  # noqa: PLC0415

    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models(pretrained=True))
        raise UserError(
            f"{PREFIX}{name}: timm {timm.__version__} has no architecture '{architecture}'"
            + (near if "did you mean" in near else "; `timm.list_models()` shows all")
        )
    known = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(architecture)]
    if dot and tag not in known:
        raise UserError(
            f"{PREFIX}{name}: {architecture} has no weights tagged '{tag}'{did_you_mean(tag, known)}"
        )
    found = get_pretrained_cfg(name)
    if found is None or not (found.hf_hub_id or found.url):
        raise UserError(f"{PREFIX}{name}: timm has no pretrained weights for {architecture}")
    taken = found.tag or tag
    return Pretrained(
        architecture=architecture,
        tag=taken,
        repository=found.hf_hub_id or "",
        url=_readable(found.url),
        license=found.license or "",
        config={
            "architecture": architecture,
            "num_classes": found.num_classes,
            "pretrained_cfg": {
                "tag": taken,
                "input_size": list(found.input_size),
                "mean": [float(value) for value in found.mean],
                "std": [float(value) for value in found.std],
            },
        },
        others=() if dot else tuple(t for t in known if t != taken),
    )


def _readable(url: object) -> str:
    return url if isinstance(url, str) and not url.endswith(UNREADABLE) else ""


def fine_tuned(tag: str) -> bool:
    """Return whether a tag says that labels have shaped the weights."""
    return bool(re.search(r"(^|_)ft(_|$)", tag))


def default_tag(known: Pretrained) -> str:
    """Return which weights a name without a tag stands for."""
    shaped = ", which was fine-tuned on labels" if fine_tuned(known.tag) else ""
    return (
        f"{PREFIX}{known.architecture} names no tag: timm's default '{known.tag}' is taken{shaped}; "
        f"others: {first_few(known.others, 12)}"
    )
