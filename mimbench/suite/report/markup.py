"""HTML by hand, with one rule: every text passes through `text`."""

import base64
import html
import io
from collections.abc import Iterable

from PIL import Image

from mimbench.suite.report.colours import RowLook, dashes, symbol
from mimbench.system.errors import printable

SMALL = 96
"""Pictures below this size are shown with sharp pixels."""
BROAD = 660
"""Pictures broader than this are shown in their own size."""


def text(value: object) -> str:
    """Return a value as escaped text.

    Control characters and marks that turn the direction of writing are written out: a name changes
    nothing around it.
    """
    lines = "\n".join(printable(line) for line in str(value).split("\n"))
    return html.escape(lines, quote=True)


def section(anchor: str, title: str, parts: Iterable[str]) -> str:
    """Return a section, nothing if it has no content."""
    content = "\n".join(part for part in parts if part)
    return f'<section id="{anchor}"><h2>{text(title)}</h2>\n{content}</section>' if content else ""


def picture(image: Image.Image, caption: str = "", *, side: int = 512, density: float = 1.0) -> str:
    """Return an embedded picture with a caption.

    A broad one is shown at its own size and scrolls, so that words in it stay legible.

    Args:
        image: The picture.
        caption: Words below it, and for those who do not see it.
        side: Its most pixels along a side; more are left out.
        density: Its pixels for each pixel of the page.
    """
    image = image.convert("RGB")
    image.thumbnail((side, side))
    file = io.BytesIO()
    small = max(image.size) <= SMALL
    image.save(file, format="PNG" if small else "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    width, height = (round(x / density) for x in image.size)
    place = ' class="broad" tabindex="0"' if width > BROAD else ""
    mark = ' class="small"' if small else ""
    words = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure{place}><img{mark} width="{width}" height="{height}" '
        f'alt="{text(caption or "picture")}" src="data:image/{"png" if small else "jpeg"};base64,{data}">'
        f"{words}</figure>"
    )


def row_key(looks: Iterable[RowLook]) -> str:
    """Return what the rows' symbols mean."""
    return _key(
        (look, f'<path class="{look.fill}" d="{symbol(look.index)}"/>', 14) for look in looks
    )


def line_key(looks: Iterable[RowLook]) -> str:
    """Return what the rows' lines mean."""
    return _key(
        (
            look,
            f'<path class="curve" stroke="{look.tone}" d="M-6,0H27" '
            f'stroke-dasharray="{dashes(look.index) or "none"}"/>',
            34,
        )
        for look in looks
    )


def _key(entries: Iterable[tuple[RowLook, str, int]]) -> str:
    shown = "".join(
        f'<span class="key" style="--tone:{look.tone}"><svg width="{width}" height="14" '
        f'viewBox="-7 -7 {width} 14" aria-hidden="true">{drawn}</svg>{text(look.label)}</span>'
        for look, drawn, width in entries
    )
    return f'<p class="legend">{shown}</p>'
