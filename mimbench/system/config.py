"""Configuration: YAML or `key=value` in, a frozen dataclass out; a typo is an error, never a default."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.yaml_limits import FILE_BYTES, check_cost

T = TypeVar("T")
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader; libyaml's reads benchmarks.yaml and the published rows seven times as fast."""


class StrictLoader(LOADER):
    """The safe loader that refuses a key named twice in one mapping, where YAML takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """Return the mapping of a node."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(getattr(key, "value", ""))
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{name}' stands there twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, safely loaded."""
    try:
        text = _text(path)
        check_cost(text, LOADER)
        value = yaml.load(text, Loader=StrictLoader)
    except UserError as error:
        raise UserError(f"{path} is not read: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} should hold a mapping of names to values, found {type(value).__name__}"
        )
    return value


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise UserError("it is no file")
    if path.is_file() and path.stat().st_size > FILE_BYTES:
        raise UserError(f"it has more than {FILE_BYTES:,} bytes")
    return path.read_text(encoding="utf-8")


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `override` laid over it, nested mappings merged key by key."""
    out = dict(base)
    for key, value in override.items():
        old = out.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        out[key] = merge(cast(Mapping[str, Any], old), value) if nested else value
    return out


def parse_overrides(items: Sequence[str], *, layered: bool = False) -> dict[str, Any]:
    """Return the mapping that command-line items such as `mask.ratio=0.6` spell out.

    Args:
        items: What one person said: two values for one key are an error.
        layered: The items come from several layers (an arm's, then the user's): later ones win.
    """
    out: dict[str, Any] = {}
    for item in items:
        path, equals, text = item.partition("=")
        if not equals or not all(path.split(".")):
            raise UserError(f"'{item}' is not of the form key=value (for example mask.ratio=0.6)")
        try:
            value: Any = yaml.load(text, Loader=StrictLoader)
        except yaml.YAMLError as error:
            raise UserError(f"the value of '{item}' is not valid YAML: {error}") from error
        if not layered:
            _refuse_contradiction(out, path, value, items)
        for key in reversed(path.split(".")):
            value = {key: value}
        out = merge(out, value)
    return out


def _refuse_contradiction(
    out: Mapping[str, Any], path: str, value: Any, items: Sequence[str]
) -> None:
    """Raise if something else was said about the same value before."""
    at: Any = out
    for key in path.split("."):
        if not isinstance(at, Mapping):
            break
        if key not in at:
            return
        at = at[key]
    both = isinstance(at, Mapping) and isinstance(value, Mapping)
    if at != value and not (both and not at.keys() & cast(Mapping[str, Any], value).keys()):
        said = ", ".join(
            i for i in items if i.partition("=")[0].split(".")[0] == path.split(".")[0]
        )
        raise UserError(f"{path} is given two values; say it once (given: {said})")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "config") -> T:
    """Return the dataclass that the mapping describes.

    Args:
        cls: A dataclass whose field types say what is allowed.
        mapping: Names to plain values, as YAML gives them.
        where: What the mapping is, for error messages.
    """
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    for key in mapping:
        if key not in fields:
            raise UserError(f"unknown key '{key}' in {where}{did_you_mean(str(key), fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in mapping:
            raise UserError(f"missing key '{name}' in {where}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in mapping.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


LATER = "left out at its default"


def later(default: T) -> T:
    """Return a dataclass field added after release: at its default, mappings do not mention it.

    Digests are taken over mappings: results and features made before the field existed stay valid.
    """
    return dataclasses.field(default=default, metadata={LATER: True})


def to_mapping(value: Any) -> Any:
    """Return a dataclass as plain YAML values; `from_mapping` reads it back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_mapping(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.init and not (LATER in f.metadata and getattr(value, f.name) == f.default)
        }
    if isinstance(value, Mapping):
        return {key: to_mapping(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_mapping(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return _convert_literal(args, value, where)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if dataclasses.is_dataclass(kind):
        whole = type(value) is kind
        return (
            value if whole else from_mapping(cast(type[Any], kind), _mapping(value, where), where)
        )
    if origin is not None and issubclass(origin, Mapping):
        items = _mapping(value, where).items()
        return {_convert(args[0], k, where): _convert(args[1], v, f"{where}.{k}") for k, v in items}
    if origin is not None and issubclass(origin, Sequence):
        return _convert_sequence(origin, args, value, where)
    return _convert_scalar(kind, value, where)


def _convert_literal(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value in args and type(value) in {type(a) for a in args}:
        return value
    hint = did_you_mean(str(value), [str(a) for a in args])
    raise UserError(f"{where} is {value!r}{hint}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, value, "a mapping")
    return value


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    faults = []
    for kind in args:
        if kind is not type(None):
            try:
                return _convert(kind, value, where)
            except UserError as error:
                faults.append(str(error))
    raise UserError(faults[0] if len(faults) == 1 else " or ".join(faults))


def _convert_sequence(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _wrong(where, value, "a list")
    variadic = origin is not tuple or (len(args) == 2 and args[1] is Ellipsis)
    if not variadic and len(value) != len(args):
        raise UserError(f"{where} has {len(value)} items, expected {len(args)}")
    kinds = [args[0]] * len(value) if variadic else list(args)
    items = [
        _convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
    ]
    return items if origin is list else tuple(items)


def _convert_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, str):
        # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            raise _wrong(where, value, "a number") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        Path: "a path",
    }
    raise _wrong(where, value, names.get(kind, getattr(kind, "__name__", str(kind))))


def _wrong(where: str, value: Any, expected: str) -> UserError:
    return UserError(f"{where} is {value!r} ({type(value).__name__}), expected {expected}")
