"""Two configurations field by field, with what is known about the effect of each difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.benchmarks.manifest import Effect, Manifest
from mimbench.results.record import Result


@dataclass(frozen=True)
class Difference:
    """One field in which two protocols differ, with what is known about its effect."""

    field: str
    a: Any
    b: Any
    known: tuple[str, ...]


def group_of(protocol: str, manifest: Manifest) -> str:
    """Return the group of a protocol id, also of one that no benchmark implements."""
    if protocol in manifest.benchmarks:
        return manifest.benchmarks[protocol].group
    known = manifest.protocols.get(protocol)
    return known.group if known else ""


def flatten(config: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return nested fields as dotted names."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{at}{key}"
        out |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out


def differences(
    a: Mapping[str, Any], b: Mapping[str, Any], group: str, effects: Sequence[Effect]
) -> list[Difference]:
    """Return just the fields in which two resolved configurations differ."""
    flat_a, flat_b = flatten(a), flatten(b)
    names = [n for n in {**flat_a, **flat_b} if flat_a.get(n, "-") != flat_b.get(n, "-")]
    return [
        Difference(n, flat_a.get(n, "-"), flat_b.get(n, "-"), known_effects(n, group, effects))
        for n in names
    ]


def known_effects(field: str, group: str, effects: Sequence[Effect]) -> tuple[str, ...]:
    """Return what is known about a field's effect in a group of benchmarks, with the source."""
    words = {field, *field.split(".")}
    return tuple(
        f"{e.known} [{e.source}]"
        for e in effects
        if words & set(e.fields) and (not e.groups or group in e.groups)
    )


def resolved(result: Result) -> Mapping[str, Any]:
    """Return a run's configuration with what depends on the model's size filled in."""
    return {**result.config, **result.resolved}


def show(found: Sequence[Difference]) -> list[str]:
    """Return differences as indented lines."""
    lines = []
    for d in found:
        lines.append(f"    {d.field}: {d.a} | {d.b}")
        lines += [f"      known: {text}" for text in d.known] or ["      known effect: not found"]
    return lines
