"""Whose folder it is: what a training run is, kept beside its states and asked before they are used."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mimbench.model import Weights
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest, write_json
from mimbench.system.listing import first_few

RUN_FILE = "run.json"
WHERE = ("data", "machine")
"""Fields of a configuration that say where a run is: they may change between its parts."""


def run_digest(
    weights: Weights,
    config: object,
    *,
    version: int,
    data: Sequence[str] = (),
    free: Collection[str] = (),
) -> str:
    """Return what the states of a run carry: another run's are never continued.

    Args:
        weights: The checkpoint.
        config: The task's configuration.
        version: The task's version.
        data: Digests of the lists of images, where the task has them.
        free: Fields of the configuration that move no number (`Traits.free_fields`).
    """
    fields = {k: v for k, v in _moving(to_mapping(config)).items() if k not in free}
    return value_digest([version, weights.digest, weights.spec.to_json(), *data, fields])


def run_identity(task: str, version: int, weights: Weights, config: object) -> dict[str, Any]:
    """Return what a run is, as its folder holds it, with a digest over all that may move its numbers."""
    fields = to_mapping(config)
    own = {"task": task, "version": version, "config": _moving(fields), "weights": weights.digest}
    return {
        "task": task,
        "version": version,
        "digest": value_digest(own),
        "config": fields,
        "spec": weights.spec.to_json(),
        "weights": {"name": weights.name, "digest": weights.digest, "format": weights.format},
    }


def claim(out: Path, identity: dict[str, Any], *, main: bool) -> None:
    """Write down whose folder this is, or refuse a folder that holds another run."""
    if (out / RUN_FILE).is_file():
        _refuse(out, _differing(read_identity(out), identity))
    if main:
        write_json(out / RUN_FILE, identity)


def read_identity(out: Path) -> dict[str, Any]:
    """Return what `claim` wrote."""
    try:
        found = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out} is not the folder of a run: its {RUN_FILE} cannot be read ({error})"
        ) from error
    if isinstance(found["weights"], str):
        # as detection wrote it until now
        found["weights"] = {"name": found["name"], "digest": found["weights"]}
    return found


def check_state(out: Path, theirs: str, mine: str) -> None:
    """Raise `UserError` if a state was saved under another digest than the run's that finds it."""
    _refuse(out, [] if theirs == mine else ["its configuration, its data or its checkpoint"])


def _refuse(out: Path, differing: Sequence[str]) -> None:
    if differing:
        raise UserError(
            f"{out} holds a run of another configuration or checkpoint: it differs in "
            f"{first_few(differing)}; choose another folder, or start afresh (--fresh, or delete it)"
        )


def _moving(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in WHERE}


def _differing(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    out = [k for k in ("task", "version") if theirs.get(k, mine[k]) != mine[k]]
    out += ["weights"] if theirs["weights"]["digest"] != mine["weights"]["digest"] else []
    known, own = _moving(theirs["config"]), _moving(mine["config"])
    return out + [k for k in {**own, **known} if known.get(k) != own.get(k)]
