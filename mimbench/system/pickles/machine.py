"""The state of a pickle that is being read as data: its stack, its memory, and what it has cost."""

import struct
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from mimbench.system.errors import UserError
from mimbench.system.pickles import limits


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle mentions: its name and nothing else."""

    text: str


class Inert:
    """An object whose content no weights depend on: it takes everything and keeps nothing."""


class Attributes(dict[Any, Any]):
    """An object whose attributes are its content, as a mapping (argparse's Namespace)."""


class Filled:
    """A stand-in that is made empty and filled by the state that follows."""

    def fill(self, state: Any) -> None:
        """Take the state, or refuse it."""
        raise NotImplementedError


class Mark:
    """Where a group of values begins on the stack."""


MARK = Mark()


class RefusedError(UserError):
    """A pickle asks for something that is not plain data."""

    def __init__(self, name: str) -> None:
        super().__init__(f"reading it would need '{name[:100]}', which is not plain data")


class PickleMachine:
    """Stack and memory of the pickles in some bytes; `opcodes` moves it on.

    Args:
        data: The bytes; reading begins at their first.
        calls: Full name -> the stand-in that is called instead of it.
        persistent: Makes a value of a persistent identifier (of a storage).
    """

    def __init__(
        self,
        data: memoryview,
        calls: Mapping[str, Callable[..., Any]],
        persistent: Callable[[Any], Any],
    ) -> None:
        self.data, self.calls, self.persistent = data, calls, persistent
        self.position = self.operations = self.text_bytes = self.odd_keys = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> memoryview:
        """Return the next bytes."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise UserError(f"truncated or damaged: it ends inside a value at byte {start:,}")
        return self.data[start : self.position]

    def number(self, kind: struct.Struct) -> Any:
        """Return the next number."""
        return kind.unpack(self.take(kind.size))[0]

    def string(self, count: int) -> bytes:
        """Return the next bytes as an object of their own, which is counted."""
        self.text_bytes += count
        if self.text_bytes > limits.PICKLE_BYTES:
            raise UserError(f"more than {limits.PICKLE_BYTES:,} bytes of text: no checkpoint")
        return bytes(self.take(count))

    def line(self) -> str:
        """Return the next line, as GLOBAL writes names."""
        start = self.position
        end = bytes(self.data[start : start + limits.NAME_LENGTH]).find(b"\n")
        if end < 0:
            raise UserError(f"damaged: a name without an end at byte {start:,}")
        return self.string(end + 1)[:-1].decode()

    def group(self) -> list[Any]:
        """Return what was pushed since the last mark."""
        start = len(self.stack) - 1
        while self.stack[start] is not MARK:
            start -= 1
            if start < 0:
                raise LookupError("a group without a beginning")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def key(self, value: Any) -> Hashable:
        """Return a mapping's key if it is plain; keys whose hash a file can choose are counted."""
        parts = value if isinstance(value, tuple) and len(value) <= 16 else (value,)
        if not all(isinstance(part, (str, int, float, bytes, Name, type(None))) for part in parts):
            raise UserError(f"a mapping has a key of type {type(value).__name__}")
        free = isinstance(value, (str, bytes, Name)) or value is None
        if not free and not (isinstance(value, int) and abs(value) < 1 << 60):
            self.odd_keys += 1
        if self.odd_keys > limits.ODD_KEYS:
            raise UserError(f"more than {limits.ODD_KEYS:,} keys that are neither text nor counts")
        return value

    def store(self, target: Any, values: list[Any]) -> None:
        """Store keys and values, which alternate; no writer stores one key twice."""
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict) or len(values) % 2:
            raise TypeError("items for something that is no mapping")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if self.key(key) in target:
                raise UserError("damaged: a mapping has one key twice")
            target[key] = value

    def extend(self, target: Any, values: list[Any]) -> None:
        """Append values to a list, or add them to a set."""
        if isinstance(target, list):
            target += values
        elif isinstance(target, set):
            target.update(map(self.key, values))
        elif not isinstance(target, Inert):
            raise TypeError("items for something that is no list")

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what a stand-in makes of the arguments."""
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is no name")
        known = self.calls.get(function.text)
        if known is None:
            raise RefusedError(function.text)
        try:
            return known(*arguments)
        except (TypeError, ValueError, LookupError, OverflowError, RuntimeError) as error:
            raise UserError(f"damaged: {function.text} with arguments that do not fit") from error

    def build(self, target: Any, state: Any) -> None:
        """Give an object its state, where it has one that matters."""
        if isinstance(target, Filled):
            target.fill(state)
        elif isinstance(target, Attributes):
            for part in state if isinstance(state, tuple) else (state,):
                target.update(part or {})
        elif not isinstance(target, (Inert, dict)):
            raise TypeError("a state for something that has none")
