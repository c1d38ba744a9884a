"""Networks inside others' training files: under which prefixes of the names one may stand.

Lightning, wrappers of one's own and self-supervised libraries put a network somewhere below a module
of theirs (`state_dict` -> `model.backbone.vit.`). Each prefix is offered as a file of its own; the
formats say which of them they know.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mimbench.checkpoints.reading.layout import PLAIN, Raw, strip_prefix, strip_wrappers

ROLE = (
    "student|teacher|momentum|online|target|ema|base|query|key|context|image|visual|vision|feature"
)
BODY = "backbone|encoder|network|net|model|module|tower|trunk|vit|extractor|transformer"
COMPONENT = re.compile(
    rf"_orig_mod|{ROLE}|(({ROLE})_)?(({BODY})(_(ema|momentum|teacher|student))?)"
)
"""What a prefix is made of: words for a network or for its part in the training."""
TEACHER = re.compile(r"(^|[._])(teacher|momentum|target|ema|key)([._]|$)")
DEPTH, MOST = 4, 16
"""Longest prefix, and the most that are looked into."""


@dataclass(frozen=True, kw_only=True)
class Inner:
    """One network of a file."""

    raw: Raw
    container: str
    prefix: str
    """Before every name of it, with the dot behind; '' for a whole container."""

    @property
    def label(self) -> str:
        """What the user calls it, with --which."""
        return self.prefix.rstrip(".") or self.container

    @property
    def role(self) -> str:
        """Its part in the training, as its place says."""
        return "teacher" if TEACHER.search(f"{self.container}.{self.label}") else "student"

    @property
    def place(self) -> str:
        """Where it stands, for a note."""
        return ": ".join(filter(None, (self.container, self.prefix)))

    def within(self, other: "Inner") -> bool:
        """Return whether the other holds it."""
        return self.container == other.container and self.prefix.startswith(other.prefix)


def inner_networks(raw: Raw) -> Iterator[Inner]:
    """Yield what could be a network in a file, outer ones first."""
    for container, state in raw.networks.items():
        if container and container not in raw.top:
            continue  # a role that the layout itself found in another container's names
        prefixes = _prefixes(state)
        if container not in PLAIN:
            prefixes = ["", *prefixes]
        for prefix in prefixes:
            inner = strip_wrappers(strip_prefix(state, prefix))
            top = {"state_dict": inner}
            yield Inner(raw=replace(raw, top=top, notes=()), container=container, prefix=prefix)


def _prefixes(state: Mapping[str, Any]) -> list[str]:
    counts: Counter[str] = Counter()
    for name in state:
        prefix = ""
        for part in name.split(".")[:DEPTH]:
            if not COMPONENT.fullmatch(part):
                break
            prefix += f"{part}."
            counts[prefix] += 1
    return sorted((p for p, _ in counts.most_common(MOST)), key=lambda p: (p.count("."), p))


def beside(inner: Inner, raw: Raw) -> dict[str, int]:
    """Return the tensors that stand beside a network: first part of their name -> count."""
    groups: Counter[str] = Counter()
    for container, state in raw.networks.items():
        if container and container not in raw.top:
            continue
        for name, value in state.items():
            mine = container == inner.container and name.startswith(inner.prefix)
            if isinstance(value, Tensor) and not mine:
                groups[container if container not in PLAIN else name.split(".")[0]] += 1
    return dict(groups)
