"""Pickles as data: every opcode makes a plain value or is refused, and nothing of Python's is called.

A name (GLOBAL) stays a name; what it would call is looked up in a table of stand-ins, and a name
outside that table is a refusal. Operations, text and keys are counted, so that reading ends soon
whatever the bytes are.
"""

import struct
from collections.abc import Callable
from typing import Any

from mimbench.system.errors import UserError
from mimbench.system.pickles import limits
from mimbench.system.pickles.machine import MARK, Name, PickleMachine


def load(machine: PickleMachine) -> Any:
    """Return the value of the pickle at the machine's position, and move behind it."""
    machine.stack, machine.memo = [], {}
    try:
        while (opcode := machine.take(1)[0]) != STOP:
            machine.operations += 1
            if machine.operations > limits.OPERATIONS:
                raise UserError(f"more than {limits.OPERATIONS:,} values: no checkpoint")
            step = STEPS.get(opcode)
            if step is None:
                raise UserError(f"damaged, or not plain data: pickle opcode {opcode:#04x}")
            step(machine)
        (value,) = machine.stack
    except (LookupError, ValueError, TypeError) as error:
        raise UserError(f"truncated or damaged at byte {machine.position:,}") from error
    return value


STOP = ord(".")
_SMALL, _SHORT, _INT, _WORD, _LONG, _REAL = map(struct.Struct, ("<B", "<H", "<i", "<I", "<Q", ">d"))
Step = Callable[[PickleMachine], Any]


def _pushes(make: Callable[[PickleMachine], Any]) -> Step:
    return lambda m: m.stack.append(make(m))


def _integer(m: PickleMachine) -> int:
    count = m.number(_SMALL)
    if count > limits.INTEGER_BYTES:
        raise UserError(f"damaged: a number of {count} bytes")
    return int.from_bytes(m.take(count), "little", signed=True)


def _old_text(m: PickleMachine, size: struct.Struct) -> str | bytes:
    content = m.string(m.number(size))  # Python 2 wrote text and bytes alike
    return content.decode() if content.isascii() else content


def _tuple(count: int) -> Step:
    def step(m: PickleMachine) -> None:
        values = m.stack[-count:]
        if len(values) != count or any(value is MARK for value in values):
            raise LookupError("too few values for a tuple")
        m.stack[-count:] = [tuple(values)]

    return step


def _name(module: str, name: str) -> Name:
    return Name(f"{'builtins' if module == '__builtin__' else module}.{name}")


def _stacked_name(m: PickleMachine) -> Name:
    name, module = m.stack.pop(), m.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError("a name that is no text")
    return _name(module, name[: limits.NAME_LENGTH])


def _call(m: PickleMachine) -> Any:
    arguments = m.stack.pop()
    return m.call(m.stack.pop(), arguments)


def _text(size: struct.Struct) -> Step:
    return _pushes(lambda m: str(m.string(m.number(size)), "utf-8", "surrogatepass"))


def _bytes(size: struct.Struct) -> Step:
    return _pushes(lambda m: m.string(m.number(size)))


def _many(apply: Callable[[PickleMachine, Any, list[Any]], None]) -> Step:
    def step(m: PickleMachine) -> None:
        values = m.group()
        apply(m, m.stack[-1], values)

    return step


def _few(apply: Callable[[PickleMachine, Any, list[Any]], None], count: int) -> Step:
    def step(m: PickleMachine) -> None:
        values = m.stack[-count:]
        del m.stack[-count:]
        apply(m, m.stack[-1], values)

    return step


def _remember(index: Callable[[PickleMachine], int]) -> Step:
    return lambda m: m.memo.__setitem__(index(m), m.stack[-1])


def _recall(size: struct.Struct) -> Step:
    return _pushes(lambda m: m.memo[m.number(size)])


_STEPS: dict[bytes, Step] = {
    b"\x80": lambda m: m.number(_SMALL),  # protocol
    b"\x95": lambda m: m.number(_LONG),  # frame
    b"(": _pushes(lambda _: MARK),
    b"N": _pushes(lambda _: None),
    b"\x88": _pushes(lambda _: True),
    b"\x89": _pushes(lambda _: False),
    b")": _pushes(lambda _: ()),
    b"]": _pushes(lambda _: []),
    b"}": _pushes(lambda _: {}),
    b"\x8f": _pushes(lambda _: set()),
    b"K": _pushes(lambda m: m.number(_SMALL)),
    b"M": _pushes(lambda m: m.number(_SHORT)),
    b"J": _pushes(lambda m: m.number(_INT)),
    b"\x8a": _pushes(_integer),
    b"G": _pushes(lambda m: m.number(_REAL)),
    b"X": _text(_WORD),
    b"\x8c": _text(_SMALL),
    b"\x8d": _text(_LONG),
    b"B": _bytes(_WORD),
    b"C": _bytes(_SMALL),
    b"\x8e": _bytes(_LONG),
    b"T": _pushes(lambda m: _old_text(m, _WORD)),
    b"U": _pushes(lambda m: _old_text(m, _SMALL)),
    b"t": _pushes(lambda m: tuple(m.group())),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"\x91": _pushes(lambda m: frozenset(map(m.key, m.group()))),
    b"a": _few(PickleMachine.extend, 1),
    b"e": _many(PickleMachine.extend),
    b"\x90": _many(PickleMachine.extend),
    b"s": _few(PickleMachine.store, 2),
    b"u": _many(PickleMachine.store),
    b"q": _remember(lambda m: m.number(_SMALL)),
    b"r": _remember(lambda m: m.number(_WORD)),
    b"\x94": _remember(lambda m: len(m.memo)),
    b"h": _recall(_SMALL),
    b"j": _recall(_WORD),
    b"c": _pushes(lambda m: _name(m.line(), m.line())),
    b"\x93": _pushes(_stacked_name),
    b"Q": _pushes(lambda m: m.persistent(m.stack.pop())),
    b"R": _pushes(_call),
    b"\x81": _pushes(_call),
    b"b": _few(lambda m, target, state: m.build(target, state[0]), 1),
}
STEPS = {key[0]: step for key, step in _STEPS.items()}
