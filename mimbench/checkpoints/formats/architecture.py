"""Any network of timm's whose architecture is said: by a folder's `config.json`, or by a name of timm's."""

from typing import Any

import timm
import torch
from torch import Tensor

from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    choose,
    container_extras,
)
from mimbench.checkpoints.reading.plain import EMA
from mimbench.networks.levels import OPTIONS, LevelSpec, build_levels, check_levels
from mimbench.system.errors import UserError, did_you_mean, printable
from mimbench.system.listing import first_few

NAME = "timm-architecture"


def claims(raw: Raw) -> bool:
    """Return whether the configuration names an architecture; formats that know the file go first."""
    return isinstance(raw.config.get("architecture"), str)


def convert(raw: Raw, options: Options) -> Converted:
    """Return the network under timm's names; names of before are renamed by timm itself."""
    spec = _spec(raw)
    which, state, networks = choose(raw, {"ema": EMA, "student": PLAIN}, options.which)
    wanted, head = spec.shapes(), _head(spec, raw)
    tensors = {n: t for n, t in state.items() if isinstance(t, Tensor)}
    if not wanted.keys() <= tensors.keys():
        tensors = _renamed(spec, raw, tensors)
    groups = {"classifier head": 0, "step counts and indices": 0}
    for name in [n for n in tensors if n not in wanted]:
        if name in head:
            groups["classifier head"] += 1
        elif tensors[name].is_floating_point():
            continue  # nobody knows it: a fault
        else:
            groups["step counts and indices"] += 1
        del tensors[name]
    return Converted(
        spec=spec,
        tensors=tensors,
        extras={g: n for g, n in groups.items() if n} | container_extras(raw, [*EMA, *PLAIN]),
        notes=(f"read as timm's {spec.architecture}, because its name says so",),
        which=which,
        networks=networks,
    )


def _spec(raw: Raw) -> LevelSpec:
    name = raw.config["architecture"]
    if not timm.is_model(name):
        near = did_you_mean(printable(name, 60), timm.list_models())
        hint = near if "did you mean" in near else ""
        raise UserError(f"config.json: timm has no architecture '{printable(name, 60)}'{hint}")
    said = raw.config.get("pretrained_cfg")
    size = said.get("input_size") if isinstance(said, dict) else None
    whole = isinstance(size, list) and len(size) == 3 and all(type(v) is int for v in size)
    spec = LevelSpec(
        architecture=name,
        options=_options(raw),
        image_size=(size[1], size[2]) if isinstance(size, list) and whole else (224, 224),
    )
    check_levels(spec)
    return spec


def _options(raw: Raw) -> dict[str, Any]:
    """Return the constructor's arguments that the configuration gives."""
    given = raw.config.get("model_args") or {}
    if not isinstance(given, dict):
        raise UserError("config.json: model_args is not an object")
    free = {"num_classes", "global_pool"}
    if unknown := sorted(given.keys() - OPTIONS - free):
        raise UserError(
            f"config.json: model_args says {first_few(unknown)}; of a network's constructor only "
            f"{', '.join(sorted(OPTIONS))} are read"
        )
    return {k: v for k, v in given.items() if k not in free}


def _classes(raw: Raw) -> int:
    classes = raw.config.get("num_classes")
    return classes if type(classes) is int and 0 <= classes <= 100_000 else 1000


def _head(spec: LevelSpec, raw: Raw) -> set[str]:
    """Return the names that only a classifier has."""
    with torch.device("meta"):
        whole, bare = (build_levels(spec, num_classes=n) for n in (max(1, _classes(raw)), 0))
    return set(whole.state_dict()) - set(bare.state_dict())


def _renamed(spec: LevelSpec, raw: Raw, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under today's names: timm's own converter knows those of before."""
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in spec.options.items()
    }
    given |= {"pretrained_cfg_overlay": {"state_dict": tensors, "num_classes": _classes(raw)}}
    try:
        model = timm.create_model(
            spec.architecture, pretrained=True, num_classes=_classes(raw), **given
        )
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"the tensors are not those of timm's {spec.architecture}: "
            f"{printable(str(error).replace(chr(10), ' '), 300)}"
        ) from error
    return dict(model.state_dict())
