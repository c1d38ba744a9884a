"""What `bench.pretrain_step` found, for people and for files."""

from typing import Any

from bench.stopwatch import Spread

PARTS = (
    "teacher",
    "masks",
    "encoder",
    "decoders",
    "losses",
    "clip",
    "optimizer",
    "average",
    "rest",
)


def table(size: str, found: dict[str, Any]) -> str:
    """Return one size's results for people."""
    lines = [f"ViT-{size}"]
    if "plain" in found:
        lines.append(f"  {'part':<12}{'ours, s':>10}{'plain, s':>10}{'ratio':>8}")
        for part in PARTS:
            own, other = (
                Spread(tuple(t.get(part, 0.0) for t in found[k])).median for k in ("ours", "plain")
            )
            ratio = f"{own / other:>8.2f}" if other > 1e-3 else f"{'':>8}"
            lines.append(f"  {part:<12}{own:>10.3f}{other:>10.3f}{ratio}")
    for name, value in found.items():
        if name not in {"ours", "plain"}:
            lines.append(f"  {name}: {_shown(value)}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " ".join(_shown(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plain_data(value: Any) -> Any:
    """Return results as JSON holds them."""
    if isinstance(value, dict):
        return {k: plain_data(v) for k, v in value.items()}
    if isinstance(value, Spread):
        return list(value.values)
    return value
