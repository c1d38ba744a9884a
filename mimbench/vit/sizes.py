"""The published sizes of ViTs: one table for names, widths, depths and heads."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Size:
    """One column of the table."""

    name: str
    """As configurations and released files spell it."""
    letter: str
    """As papers and tables spell it."""
    embed_dim: int
    depth: int
    num_heads: int


SIZES = {
    size.name: size
    for size in (
        Size(name="tiny", letter="Ti", embed_dim=192, depth=12, num_heads=3),
        Size(name="small", letter="S", embed_dim=384, depth=12, num_heads=6),
        Size(name="base", letter="B", embed_dim=768, depth=12, num_heads=12),
        Size(name="large", letter="L", embed_dim=1024, depth=24, num_heads=16),
        Size(name="huge", letter="H", embed_dim=1280, depth=32, num_heads=16),
    )
}
"""By name, the smallest first."""

HEADS = {size.embed_dim: size.num_heads for size in SIZES.values()}
"""Width -> heads."""


def size_of(embed_dim: int, depth: int) -> Size | None:
    """Return the published size of this shape, if it is one."""
    found = (s for s in SIZES.values() if (s.embed_dim, s.depth) == (embed_dim, depth))
    return next(found, None)


def model_name(embed_dim: int, depth: int, patch_size: int) -> str:
    """Return B/16 for the published shapes, else the plain numbers."""
    size = size_of(embed_dim, depth)
    return f"{size.letter if size else f'{embed_dim}x{depth}'}/{patch_size}"
