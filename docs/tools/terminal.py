"""A terminal's output as SVG: text stays text, every character in its cell, the colours of ANSI codes."""

import re
from html import escape

CELL, LINE, SIZE = 8.4, 19.0, 14
"""Width of a character and height of a line in pixels, and the size of the letters."""
PAD, BAR = 18.0, 34.0
BACK, FRAME, FRONT = "#0d1117", "#30363d", "#e6edf3"
COLOURS = ("#8b949e", "#ff7b72", "#3fb950", "#d29922", "#79c0ff", "#d2a8ff", "#56d4dd", "#e6edf3")
"""ANSI's eight: black is drawn grey, so that it can be read."""
CODE = re.compile(r"\x1b\[([\d;]*)m|\x1b\[[\d;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def pieces(line: str) -> list[tuple[int, str, tuple[str, ...]]]:
    """Return (column, text, attributes) for the stretches of a line that look alike."""
    found: list[tuple[int, str, tuple[str, ...]]] = []
    style: dict[str, str] = {}
    column, at = 0, 0
    for match in [*CODE.finditer(line), None]:
        text = line[at : match.start() if match else len(line)]
        if text:
            found.append((column, text, tuple(style.values())))
            column += len(text)
        if match:
            at = match.end()
            for number in (
                (int(n or 0) for n in (match[1] or "").split(";")) if match[1] is not None else ()
            ):
                _apply(style, number)
    return found


def _apply(style: dict[str, str], code: int) -> None:
    """Change a style as one number of an SGR sequence says; what is not drawn is left out."""
    if code == 0:
        style.clear()
    elif code == 1:
        style["weight"] = 'font-weight="bold"'
    elif code == 2:
        style["dim"] = 'opacity="0.65"'
    elif 30 <= code <= 37 or 90 <= code <= 97:
        style["fill"] = f'fill="{COLOURS[code % 10]}"'
    elif code == 39:
        style.pop("fill", None)
    elif code == 22:
        style.pop("weight", None)
        style.pop("dim", None)


def wrapped(text: str, columns: int) -> list[str]:
    """Return the lines of plain or coloured text as a terminal of a width breaks them."""
    lines = []
    for line in text.rstrip("\n").split("\n"):
        row, used = "", 0
        for token in re.split(r"(\x1b\[[\d;]*m)", line):
            if token.startswith("\x1b"):
                row += token
                continue
            while used + len(token) > columns:
                cut = columns - used
                lines.append(row + token[:cut])
                row, used, token = "", 0, token[cut:]
            row, used = row + token, used + len(token)
        lines.append(row)
    return lines


def draw(command: str, output: str, *, columns: int = 100, title: str = "") -> str:
    """Return an SVG of a terminal in which a command was typed and its output shown.

    Args:
        command: What stands behind the prompt.
        output: What the command wrote, with its colours.
        columns: Width of the terminal.
        title: What a screen reader reads.
    """
    lines = [f"\x1b[32m$\x1b[0m \x1b[1m{command}\x1b[0m", *wrapped(output, columns)]
    width = columns * CELL + 2 * PAD
    height = BAR + len(lines) * LINE + PAD
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
        f"<title>{escape(title or command)}</title>",
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="9" fill="{BACK}" stroke="{FRAME}"/>',
        *(
            f'<circle cx="{PAD + 4 + 19 * i:g}" cy="17" r="5.5" fill="{colour}"/>'
            for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
        f"<g font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\" "
        f'font-size="{SIZE}" fill="{FRONT}" xml:space="preserve">',
    ]
    for number, line in enumerate(lines):
        base = BAR + number * LINE + SIZE
        for column, text, style in pieces(line):
            if not text.strip():
                continue
            # the width is given, so that columns stand under each other in any font
            shown = text.strip(" ")
            start = column + len(text) - len(text.lstrip(" "))
            drawn.append(
                f'<text x="{PAD + start * CELL:g}" y="{base:g}" textLength="{len(shown) * CELL:g}" '
                f'lengthAdjust="spacingAndGlyphs" {" ".join(style)}>{escape(shown).replace(" ", chr(0xA0))}</text>'.replace(
                    " >", ">"
                )
            )
    return "\n".join([*drawn, "</g>", "</svg>"]) + "\n"
