"""Text for LaTeX: it compiles with pdflatex as it is and needs no package, whatever it holds."""

import re
import unicodedata

from mimbench.system.errors import printable

SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": "{`}",
    "'": "{'}",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "—": "---",
    "…": r"\dots{}",
    "\N{MICRO SIGN}": r"$\mu$",
    "²": "$^2$",
    "³": "$^3$",
    "°": r"$^\circ$",
    "→": r"$\to$",
    "←": r"$\leftarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "\N{LATIN SMALL LETTER DOTLESS I}": r"\i{}",
}
ACCENTS = {
    "\u0300": r"\`", "\u0301": r"\'", "\u0302": r"\^", "\u0303": r"\~", "\u0304": r"\=",
    "\u0306": r"\u", "\u0307": r"\.", "\u0308": r"\"", "\u030a": r"\r", "\u030b": r"\H",
    "\u030c": r"\v", "\u0327": r"\c",
}  # fmt: skip
GREEK = re.compile(r"GREEK (SMALL|CAPITAL) LETTER (\w+)")
AS_LATIN = frozenset(
    {"OMICRON", "ALPHA", "BETA", "EPSILON", "ZETA", "ETA", "IOTA", "KAPPA", "MU", "NU", "RHO",
     "TAU", "CHI"}
)  # fmt: skip
"""Capitals, and omicron, that have no command: they look like Latin letters."""


def tex(text: str) -> str:
    """Return a text as LaTeX source of one line."""
    # two hyphens would become a dash
    return re.sub(r"-(?=-)", "-{}", "".join(map(_sign, printable(text))))


def _sign(char: str) -> str:
    if char in SIGNS:
        return SIGNS[char]
    if char.isascii():
        return char
    base, *marks = unicodedata.normalize("NFD", char)
    if len(marks) == 1 and base.isascii() and marks[0] in ACCENTS:
        return f"{ACCENTS[marks[0]]}{{{base}}}"
    if found := GREEK.fullmatch(unicodedata.name(char, "")):
        size, name = found.groups()
        plain = name == "OMICRON" or (size == "CAPITAL" and name in AS_LATIN)
        name = name.replace("LAMDA", "LAMBDA")
        if plain:
            return f"{{{name[0] if size == 'CAPITAL' else name[0].lower()}}}"
        if name != "FINAL":
            return f"$\\{name.lower() if size == 'SMALL' else name.capitalize()}$"
    # pdflatex knows no such letter: its number is better than a document that does not compile
    return f"U+{ord(char):04X}"
