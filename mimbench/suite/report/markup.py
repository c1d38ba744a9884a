"""HTML by hand, with one rule: every text passes through `text`."""

import base64
import html
import io
from collections.abc import Iterable

from PIL import Image

from mimbench.suite.report.colours import colour
from mimbench.system.errors import printable

SMALL = 96
"""Pictures below this size are shown with sharp pixels."""


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


def picture(image: Image.Image, caption: str = "", *, side: int = 512) -> str:
    """Return an embedded picture with a caption."""
    image = image.convert("RGB")
    image.thumbnail((side, side))
    file = io.BytesIO()
    small, broad = max(image.size) <= SMALL, image.width > 2 * image.height
    image.save(file, format="PNG" if small else "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    kind = "png" if small else "jpeg"
    mark = ' class="small"' if small else ""
    words = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    place = ' class="broad"' if broad else ""
    return f'<figure{place}><img{mark} alt="{text(caption)}" src="data:image/{kind};base64,{data}">{words}</figure>'


def bar(label: str, value: float, largest: float, index: int) -> str:
    """Return one labelled bar."""
    width = 100 * value / largest if largest else 0
    return (
        f'<div class="bar"><span title="{text(label)}">{text(label)}</span>'
        f'<span><i style="width:{width:.1f}%;background:{colour(index)}"></i></span><span>{value:.1f}</span></div>'
    )


def legend(names: Iterable[str]) -> str:
    """Return the key of the rows' colours."""
    keys = [
        f'<span class="key"><i style="background:{colour(i)}"></i>{text(n)}</span>'
        for i, n in enumerate(names)
    ]
    return f'<p class="soft">{"".join(keys)}</p>' if len(keys) > 1 else ""
