"""What modules and tasks declare and no recipe needs to name: constants, defaults, traits."""

import json
import re
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Any

from bench.mutation import subjects
from mimbench.benchmarks.manifest import load_manifest
from mimbench.system.config import to_mapping
from mimbench.tables.differences import flatten
from mimbench.task import load_task, traits_of

AT_A_TIME = re.compile("BYTES|QUERIES|PIECE|CHUNK|CPU|GPU|AT_ONCE|SHOWN|CHECKED|ROTATE_UP_TO")
"""Constants that say how much is held or shown at a time."""
Declared = dict[str, dict[str, Any]]
"""Of what -> name -> value, as JSON carries it."""


def task_traits() -> Declared:
    """What each task declares of itself: whether it trains, what stands beside it, what it needs."""
    found: Declared = {}
    for task in sorted({benchmark.task for benchmark in load_manifest().benchmarks.values()}):
        traits = vars(traits_of(load_task(task)))
        found[f"traits of {task}"] = {
            name: True
            if callable(value)
            else sorted(value)
            if isinstance(value, frozenset)
            else value
            for name, value in traits.items()
        }
    return {name: json.loads(json.dumps(flatten(traits))) for name, traits in found.items()}


def constants() -> Declared:
    """What no recipe needs to name: numbers in capitals and defaults, where numbers come from."""
    found: Declared = {}
    for name in subjects.modules():
        module = vars(import_module(name))
        held = {
            key: value
            for key, value in module.items()
            if key.isupper() and not AT_A_TIME.search(key) and _is_number(value)
        }
        for kind in module.values():
            if is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == name:
                held |= _defaults(kind)
        if held:
            found[f"constants {name}"] = json.loads(json.dumps(held))
    return found


def _defaults(kind: type) -> dict[str, Any]:
    """The values that a class has without being asked."""
    found = {}
    for one in fields(kind):
        if one.default is not MISSING or one.default_factory is not MISSING:
            value = one.default if one.default is not MISSING else one.default_factory()  # pyright: ignore[reportCallIssue]
            found[f"{kind.__name__}.{one.name}"] = (
                to_mapping(value) if is_dataclass(value) else value
            )
    return {key: value for key, value in found.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def _is_number(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(map(_is_number, value.values()))
    if isinstance(value, tuple):
        return bool(value) and all(one is None or _is_number(one) for one in value)
    return isinstance(value, int | float) and not isinstance(value, bool)
