"""What a YAML file may cost: nesting and aliases are counted before anything is built."""

from typing import Any

import yaml

from mimbench.system.errors import UserError

FILE_BYTES = 4 << 20
DEPTH = 60
VALUES = 200_000
"""Values with every alias written out: a few lines of aliases can stand for billions."""


def check_cost(text: str, loader: Any) -> None:
    """Refuse text that is nested deeply, or short only because its aliases repeat it.

    Args:
        text: The YAML.
        loader: The loader that will read it.
    """
    if len(text) > FILE_BYTES:
        raise UserError(f"{len(text):,} characters, expected at most {FILE_BYTES:,}")
    cost = _Cost()
    for event in yaml.parse(text, Loader=loader):
        cost.add(event)
        if len(cost.sizes) > DEPTH:
            raise UserError(f"nested more than {DEPTH} deep")
        if sum(cost.sizes) > VALUES:
            raise UserError(f"more than {VALUES:,} values, aliases written out")


class _Cost:
    """Sizes of the collections that are open, and of everything that has an anchor."""

    def __init__(self) -> None:
        self.sizes = [0]
        self.open: list[str | None] = []
        self.anchors: dict[str, int] = {}

    def add(self, event: Any) -> None:
        """Count one event of the parser."""
        if isinstance(event, yaml.CollectionStartEvent):
            self.sizes.append(1)
            self.open.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._count(self.sizes.pop(), self.open.pop())
        elif isinstance(event, yaml.ScalarEvent):
            self._count(1, event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise UserError(f"the alias *{event.anchor} contains itself, or names nothing")
            self._count(self.anchors[event.anchor], None)

    def _count(self, size: int, anchor: str | None) -> None:
        self.sizes[-1] += size
        if anchor is not None:
            self.anchors[anchor] = size
