"""A checkpoint described for people and programs: what `inspect` prints."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mimbench.checkpoints.files import Reading
from mimbench.checkpoints.reading.plausibility import doubts
from mimbench.system.errors import printable
from mimbench.system.listing import and_more

LINE = 400
"""Longest note or fault shown: a file may hold longer ones."""


def describe(reading: Reading) -> dict[str, Any]:
    """Return the description of a file that a format could read."""
    converted = reading.converted
    suspicions = [] if reading.faults else doubts(converted.spec, converted.tensors, reading.format)
    verdict = "refused" if reading.faults else "suspicious" if suspicions else "ok"
    return {
        "file": str(reading.located.path),
        **({"name": reading.located.origin} if reading.located.origin else {}),
        "bytes": _size(reading.located.path),
        "digest": reading.digest,
        "format": reading.format,
        "which": converted.which,
        "networks": list(converted.networks),
        "spec": converted.spec.to_json(),
        "groups": [*_groups(reading), *_left_out(converted.extras)],
        "faults": list(reading.faults),
        "suspicions": suspicions,
        "notes": list(converted.notes),
        "verdict": verdict,
        "reason": "; ".join(reading.faults[:3] or suspicions[:3]),
    }


def refused(path: Path, reason: str) -> dict[str, Any]:
    """Return the description of a file that cannot be read at all."""
    return {"file": str(path), "verdict": "refused", "reason": reason}


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    return sum(file.stat().st_size for file in files)


def _group(name: str) -> str:
    first = name.split(".")[0]
    if first in ("blocks", "stages", "layers", "layer1", "layer2", "layer3", "layer4"):
        return "blocks"
    return "final norm" if first in ("norm", "fc_norm", "head") else "embeddings"


def _groups(reading: Reading) -> list[dict[str, Any]]:
    wanted, held = reading.converted.spec.shapes(), reading.converted.tensors
    rows = []
    for group in ("embeddings", "blocks", "final norm"):
        names = [n for n in wanted if _group(n) == group]
        matched = [n for n in names if n in held and tuple(held[n].shape) == wanted[n]]
        rows.append(_row(group, f"{len(matched)}/{len(names)}", matched, reading, "matched"))
    missing = [n for n in wanted if n not in held]
    unexpected = [n for n in held if n not in wanted]
    wrong = [n for n in wanted if n in held and tuple(held[n].shape) != wanted[n]]
    for status, names in (("missing", missing), ("extra", unexpected), ("wrong shape", wrong)):
        if names:
            rows.append(_row(_listed(names), str(len(names)), names, reading, status))
    return [row for row in rows if row["tensors"] != "0/0"]


def _row(
    group: str, count: str, names: Iterable[str], reading: Reading, status: str
) -> dict[str, Any]:
    held: Mapping[str, Tensor] = reading.converted.tensors
    present = [n for n in names if n in held]
    return {
        "group": group,
        "tensors": count,
        "parameters": sum(held[n].numel() for n in present),
        "dtype": ", ".join(sorted({reading.dtypes[n] for n in present})),
        "status": status,
    }


def _listed(names: list[str]) -> str:
    return names[0] + (" ..." if len(names) > 1 else "")


def _left_out(extras: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"group": group, "tensors": str(n), "parameters": None, "dtype": "", "status": "left out"}
        for group, n in sorted(extras.items())
    ]


def text(description: Mapping[str, Any], *, limit: int) -> str:
    """Return the description as lines for a terminal.

    Args:
        description: What `describe` or `refused` returned.
        limit: How many faults, doubts and notes to list each.
    """
    lines = [("file", _file(description))]
    if "spec" in description:
        lines += _facts(description)
    out = [f"{key:<13}{printable(value)}" for key, value in lines]
    if "groups" in description:
        out += ["", *_table(description["groups"])]
    for title, key in (("faults", "faults"), ("doubts", "suspicions"), ("notes", "notes")):
        items = description.get(key, [])
        if items:
            out += ["", title, *(f"  - {printable(item, LINE)}" for item in items[:limit])]
            if more := and_more(len(items), limit):
                out.append(f"  ... {more} (--all shows them)")
    return "\n".join([*out, "", f"{'verdict':<13}{_verdict(description)}"]) + "\n"


def _file(description: Mapping[str, Any]) -> str:
    size = f"  ({description['bytes'] / 1e6:,.1f} MB)" if "bytes" in description else ""
    return f"{description['file']}{size}"


def _facts(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    spec = description["spec"]
    others = [n for n in description["networks"] if n != description["which"]]
    network = description["which"] + (f" (also: {', '.join(others)})" if others else "")
    numbers = (f"{mean:.4g}/{std:.4g}" for mean, std in zip(spec["mean"], spec["std"], strict=True))
    facts = [
        ("name", description.get("name", "")),
        ("digest", description["digest"]),
        ("format", description["format"]),
        ("network", network),
        *(_level_facts(spec) if spec.get("kind") == "levels" else _vit_facts(spec)),
        ("mean/std", "  ".join(numbers)),
    ]
    return [(key, value) for key, value in facts if value]


def _level_facts(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    height, width = spec["image_size"]
    options = ", ".join(f"{key} {value}" for key, value in spec["options"].items())
    return [
        ("architecture", f"{spec['name'] or spec['architecture']}: {options}"),
        ("image", f"{height}x{width}"),
        ("norm", "before the head" if spec["final_norm"] else "none before the head"),
    ]


def _vit_facts(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    p, grid = spec["patch_size"], spec["grid"]
    tokens = ["class token"] if spec["class_token"] else []
    tokens += [f"{spec['register_tokens']} registers"] if spec["register_tokens"] else []
    shape = Counter({"width": spec["embed_dim"], "blocks": spec["depth"]})
    extra = [k for k in ("layer_scale", "pre_norm") if spec[k]]
    extra += [f"no {k}" for k in ("qkv_bias", "patch_bias") if not spec[k]]
    position = spec["position"] + (
        f" ({spec['position_rule']})" if spec["position"].startswith("absolute") else ""
    )
    return [
        (
            "architecture",
            f"width {shape['width']}, {shape['blocks']} blocks, {spec['num_heads']} heads, "
            f"{spec['mlp']} {spec['mlp_dim']}, {spec['activation']}",
        ),
        ("patches", f"{p} px, grid {grid[0]}x{grid[1]} = image {grid[0] * p}x{grid[1] * p}"),
        ("tokens", ", ".join(tokens) or "patches only"),
        ("positions", position),
        ("norm", f"{spec['final_norm']}, epsilon {spec['norm_eps']:g}; pooling: {spec['pool']}"),
        ("details", ", ".join(extra)),
    ]


def _table(groups: list[dict[str, Any]]) -> list[str]:
    head = ["tensors", "count", "parameters", "stored as", "status"]
    rows = [
        [
            printable(row["group"], 60),
            row["tensors"],
            "" if row["parameters"] is None else f"{row['parameters']:,}",
            row["dtype"],
            row["status"],
        ]
        for row in groups
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * w for w in widths], *rows]:
        cells = [
            cell.rjust(w) if i in (1, 2) else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _verdict(description: Mapping[str, Any]) -> str:
    verdict = description["verdict"]
    if verdict == "ok":
        return "ok: every tensor of the encoder is there, and nothing else is taken"
    if verdict == "suspicious":
        return "suspicious: it can be evaluated, but look at the doubts above first"
    return f"refused: {printable(description['reason'])}"
