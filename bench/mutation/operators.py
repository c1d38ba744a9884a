"""The small faults: for one node of a syntax tree, every changed node that could stand in its place.

Operators change what is computed: comparisons, arithmetic, constants, conditions, arguments, slices,
calls and statements left out. What only a reader sees (messages, annotations, logs) is left alone.
"""

import ast
import copy
from collections.abc import Iterator
from typing import Any

Fault = tuple[str, ast.AST]
"""(operator, the node that replaces the given one)."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
NO_VALUE_MOVED = frozenset(
    {"contiguous", "cpu", "cuda", "to", "detach", "requires_grad_", "pin_memory", "view_as", "copy"}
)
"""Calls that place or wrap a value; without them the number is the same on one device."""
CASTS = frozenset(
    {"isinstance", "super", "float", "str", "bool", "list", "tuple", "Path", "iter", "repr"}
)
UNORDERED = frozenset({"isinstance", "getattr", "hasattr", "max", "min", "maximum", "minimum"})
"""Functions whose arguments may change places, or must not."""
NO_VALUE_KEYWORDS = frozenset(
    {
        "strict",
        "non_blocking",
        "device",
        "pin_memory",
        "num_workers",
        "daemon",
        "encoding",
        "copy",
        "fused",
    }
    | {"kw_only", "frozen", "repr", "maxsize", "newline", "prefetch_factor", "mode_of_progress"}
)
"""Keywords about places, speed and declarations (and zip's `strict`, an assertion of ours)."""


def compare(node: ast.Compare) -> Iterator[Fault]:
    """`<` becomes `<=` and `>=`, `==` becomes `!=`, `in` becomes `not in`."""
    for i, op in enumerate(node.ops):
        for other in COMPARISONS[type(op)]:
            changed = copy.deepcopy(node)
            changed.ops[i] = other()
            yield "comparison", changed


def arithmetic(node: ast.BinOp) -> Iterator[Fault]:
    """`+` becomes `-`, `*` becomes `/`; the sides of a matrix product change places."""
    changed = copy.deepcopy(node)
    if isinstance(node.op, ast.MatMult):
        changed.left, changed.right = changed.right, changed.left
    elif isinstance(node.op, ast.BitOr) and is_a_type(node):
        return
    else:
        changed.op = ARITHMETIC[type(node.op)]()
    yield "arithmetic", changed


def is_a_type(node: ast.AST) -> bool:
    """Whether `a | b` reads as a union of types."""
    names = [leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name)]
    return any(name[0].isupper() or name in {"int", "str", "float", "bool"} for name in names)


def augmented(node: ast.AugAssign) -> Iterator[Fault]:
    """`+=` becomes `-=`."""
    changed = copy.deepcopy(node)
    if type(node.op) in ARITHMETIC:
        changed.op = ARITHMETIC[type(node.op)]()
        yield "arithmetic", changed


def constant(node: ast.Constant) -> Iterator[Fault]:
    """Integers grow by one, other numbers by a tenth, and truth is turned."""
    value: Any = node.value
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int):
        yield "constant", ast.Constant(value + 1)
    elif isinstance(value, float):
        yield "constant", ast.Constant(value * 1.1 if value else 0.1)


def condition(node: ast.If | ast.IfExp | ast.While) -> Iterator[Fault]:
    """The condition is turned."""
    changed = copy.deepcopy(node)
    changed.test = ast.UnaryOp(ast.Not(), changed.test)
    yield "condition", changed


def boolean(node: ast.BoolOp) -> Iterator[Fault]:
    """`and` becomes `or`, and each term is left out once."""
    changed = copy.deepcopy(node)
    changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield "boolean", changed
    for i in range(len(node.values)):
        rest = copy.deepcopy(node.values[:i] + node.values[i + 1 :])
        yield "boolean", rest[0] if len(rest) == 1 else ast.BoolOp(copy.deepcopy(node.op), rest)


def unary(node: ast.UnaryOp) -> Iterator[Fault]:
    """`-x` and `not x` become `x`."""
    if isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield "sign", copy.deepcopy(node.operand)


def call(node: ast.Call) -> Iterator[Fault]:
    """Left out around its argument, with its first two arguments changed over, without a keyword."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    if isinstance(node.func, ast.Attribute) and name not in NO_VALUE_MOVED and not names_a_module(node.func.value):  # fmt: skip
        yield "call left out", copy.deepcopy(node.func.value)
    elif len(node.args) == 1 and not node.keywords and name not in CASTS and not starred(node):
        yield "call left out", copy.deepcopy(node.args[0])
    if len(node.args) >= 2 and name not in UNORDERED:
        changed = copy.deepcopy(node)
        changed.args[0], changed.args[1] = changed.args[1], changed.args[0]
        yield "arguments swapped", changed
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in NO_VALUE_KEYWORDS:
            changed = copy.deepcopy(node)
            del changed.keywords[i]
            yield "keyword left out", changed


def starred(node: ast.Call) -> bool:
    """Whether its first argument is `*several`."""
    return isinstance(node.args[0], ast.Starred)


def names_a_module(node: ast.AST) -> bool:
    """Whether `x.f()` reads as a function of a module or class, not a method of a value."""
    if isinstance(node, ast.Attribute):
        return names_a_module(node.value)
    return isinstance(node, ast.Name) and (
        node.id[0].isupper() or node.id in {"torch", "np", "F", "nn", "math", "functional", "json"}
    )


def slices(node: ast.Slice) -> Iterator[Fault]:
    """Either end moves by one."""
    for end in ("lower", "upper"):
        value = getattr(node, end)
        if value is not None and not isinstance(value, ast.Constant):
            changed = copy.deepcopy(node)
            setattr(changed, end, ast.BinOp(copy.deepcopy(value), ast.Add(), ast.Constant(1)))
            yield "off by one", changed


def statement(node: ast.AST) -> Iterator[Fault]:
    """A call for its effect, an update or a refusal is left out; loops end early or go on."""
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if isinstance(node, ast.Expr) and moves_no_value(node.value):
        return
    stored = isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple)
    if called or stored or isinstance(node, ast.Raise | ast.AugAssign):
        yield "statement left out", ast.Pass()
    elif isinstance(node, ast.Break):
        yield "loop", ast.Continue()
    elif isinstance(node, ast.Continue):
        yield "loop", ast.Break()
    elif isinstance(node, ast.Return) and not gives_nothing(node):
        yield "returned value", ast.Return(ast.Constant(None))


def moves_no_value(node: ast.expr) -> bool:
    """Whether a call only says where a value lies: `network.to(device)`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return node.func.attr in NO_VALUE_MOVED


def gives_nothing(node: ast.Return) -> bool:
    """Whether it returns None already."""
    return node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None)


KINDS: tuple[tuple[type[ast.AST], Any], ...] = (
    (ast.Compare, compare),
    (ast.BinOp, arithmetic),
    (ast.AugAssign, augmented),
    (ast.Constant, constant),
    (ast.If, condition),
    (ast.IfExp, condition),
    (ast.While, condition),
    (ast.BoolOp, boolean),
    (ast.UnaryOp, unary),
    (ast.Call, call),
    (ast.Slice, slices),
    (ast.stmt, statement),
)


def changes(node: ast.AST) -> Iterator[Fault]:
    """Yield every fault this node can have."""
    for kind, operator in KINDS:
        if isinstance(node, kind):
            yield from operator(node)
