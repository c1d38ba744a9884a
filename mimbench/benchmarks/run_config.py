"""The configuration of a run: everything one evaluation needs, as the file config.yaml that can be run again."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from mimbench.data.digest import DataDigest
from mimbench.results.record import protocol_digest
from mimbench.system.config import from_mapping, load_yaml, to_mapping
from mimbench.system.files import write_text
from mimbench.task import Traits

if TYPE_CHECKING:
    from mimbench.model import Spec

USUAL = Traits()
NOTHING: Mapping[str, Any] = MappingProxyType({})
NOT_PROTOCOL = frozenset({"data", "seed", "machine"})
CONFIG_FILE, RESULT_FILE, LOG_FILE = "config.yaml", "result.json", "log.txt"
LEFT_FILE = ".interrupted"
"""Written by a process that a signal stopped: torchrun's own exit code does not say so."""
STALE = ".stale-"
"""Marks the folder of an earlier run that another recipe or `--fresh` replaced."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One benchmark on one checkpoint with one seed."""

    benchmark: str
    task: str
    profile: str
    dataset: str
    checkpoint: Path
    config: Mapping[str, Any]
    """The task's whole configuration, data, seed and machine included."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """What the user changed in the recipe; published rows stand beside unchanged ones only."""
    name: str = ""
    """Row label; by default the checkpoint's own name."""
    which: str | None = None
    num_heads: int | None = None
    weights_digest: str = ""
    """What the checkpoint held when the configuration was written; empty: whatever it holds now."""
    data_digest: DataDigest = field(default_factory=DataDigest)
    """What the data held when the configuration was written."""
    beside: Path | None = None
    """Where the other runs of the checkpoint lie, for one that is measured in a scratch folder."""


def safe_name(text: str) -> str:
    """Return text that is safe as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:40] or "checkpoint"


def write_run_config(path: Path, run: RunConfig) -> None:
    """Write a run's configuration as YAML, atomically."""
    text = yaml.safe_dump(to_mapping(run), sort_keys=False, allow_unicode=True)
    write_text(path, f"# run again: python -m mimbench eval {path.name}\n{text}")


def read_run_config(path: Path) -> RunConfig:
    """Read a run's configuration strictly."""
    return from_mapping(RunConfig, load_yaml(path), str(path))


def changed(run: RunConfig) -> dict[str, Any]:
    """Return what a result remembers of the user's changes: the machine moves no number."""
    return to_mapping(
        {
            name: recipe
            for name, change in run.overrides.items()
            if (recipe := {k: v for k, v in change.items() if k != "machine"})
        }
    )


def protocol_config(
    dataset: str,
    config: Any,
    traits: Traits = USUAL,
    spec: "Spec | None" = None,
    overrides: Mapping[str, Mapping[str, Any]] = NOTHING,
) -> dict[str, Any]:
    """Return the part of a task's configuration that may move its number, and the data's name.

    Args:
        dataset: The data's name.
        config: The task's configuration.
        traits: What the task declares: which fields move nothing, what else is only beside the number.
        spec: The architecture, where it is known.
        overrides: The user's changes: one that says what this size gets anyway changes nothing. (A
            recipe's own values stay: it says them for every size.)
    """
    config = traits.canonical(config) if traits.canonical else config
    if spec is not None and traits.resolved:
        said = {field for change in overrides.values() for field in change}
        config = unspoken(config, partial(traits.resolved, spec), said)
    plain = to_mapping(config)
    kept = {k: v for k, v in plain.items() if k not in NOT_PROTOCOL | traits.free_fields}
    return {"dataset": dataset} | kept


def unspoken(
    config: Any, resolved: Callable[[Any], Mapping[str, Any]], said: Collection[str]
) -> Any:
    """Return the configuration with each value left out that was said and that the size decides alike.

    Args:
        config: The task's configuration.
        resolved: Fills in what a configuration leaves to the model's size.
        said: The fields in query.
    """
    usual = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    for name in sorted(resolved(config).keys() & usual.keys() & set(said)):
        left_out = replace(config, **{name: usual[name]})
        if resolved(left_out) == resolved(config):
            config = left_out
    return config


def task_protocol(
    task: str,
    version: int,
    dataset: str,
    config: Any,
    traits: Traits = USUAL,
    spec: "Spec | None" = None,
    overrides: Mapping[str, Mapping[str, Any]] = NOTHING,
) -> str:
    """Return the digest of what `protocol_config` returns, with the task's name and version."""
    counted = protocol_config(dataset, config, traits, spec, overrides)
    return protocol_digest(task, version, counted)
