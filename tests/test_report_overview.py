"""The picture on top of the report: the table's own values, each benchmark on an axis of its own."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

import pytest

from mimbench.suite.report.overview import overview, sentences, strips_of
from mimbench.suite.report.scales import Scale
from mimbench.suite.report.strips import draw, plot
from mimbench.system.errors import printable
from mimbench.tables.rows import Column, Row, Table, Value

HOSTILE = [
    '<script>alert("1")</script>',
    "a' onload='x",
    'a" onload="x',
    "\u202egnp.exe\u202c",
    "\u200fright to left\u200e",
    "bell\x07 escape\x1b[31m",
    "<!-- --> &amp; ]]>",
    "\udc80 lone",
]


def column(name: str = "in-knn", *, lower: bool = False) -> Column:
    return Column(name, "paper", "abcdef0123", name, "top1", True, lower=lower)


def row(label: str, values: Mapping[Column, Any], **more: Any) -> Row:
    found = {
        c: Value(value=v, interval=1.0) if isinstance(v, float) else v for c, v in values.items()
    }
    return Row(label=label, kind=more.pop("kind", "measured"), values=found, **more)


def places(svg: str) -> list[float]:
    """Where the symbols lie, in percent, in the order of the lanes' heights."""
    found = re.findall(r'<svg x="([\d.-]+)%" y="(\d+)" overflow', svg)
    return [float(x) for x, _ in sorted(found, key=lambda pair: int(pair[1]))]


def test_right_is_better_on_every_axis() -> None:
    up, down = column("up"), column("down", lower=True)
    good = row("good", {up: 80.0, down: 20.0}, model="B/16")
    twin = row("random-B-16", {up: 20.0, down: 80.0}, model="B/16", twin=True)
    for strip in strips_of(Table([up, down], [good, twin])):
        mine, theirs = places(plot(strip))
        assert mine > 90 > 10 > theirs
    words = draw(strips_of(Table([down], [good, twin]))[0])
    assert "lower is better, axis reversed" in words
    assert "higher is better" not in words


def test_verdicts_are_the_tables_own() -> None:
    a, b, c, d, e = (column(name) for name in "abcde")
    twin = {a: 50.0, b: 50.0, c: 50.0, d: Value(value=50.0), e: 50.0}
    mine = {a: 60.0, b: 50.5, c: 40.0, d: Value(value=90.0)}
    rows = [row("x", mine, model="m"), row("random-m", twin, model="m", twin=True)]
    table = Table([a, b, c, d, e], rows)
    found = [strip.lanes[0].verdict for strip in strips_of(table)]
    assert found == ["better", "cannot tell", "worse", "", ""]
    assert sentences(table) == [
        "x: better than random weights in 1 of 3 benchmarks with intervals, worse in 1, cannot tell in 1."
    ]


def test_a_twin_of_another_shape_is_no_measure() -> None:
    c = column()
    rows = [row("x", {c: 60.0}, model="B/16"), row("random", {c: 5.0}, model="L/16", twin=True)]
    assert strips_of(Table([c], rows))[0].lanes[0].verdict == ""
    assert "no random twin" in sentences(Table([c], rows))[0]


def test_the_published_row_that_was_subtracted_comes_first() -> None:
    c = column()
    mine = row("x", {c: Value(value=82.0, interval=0.3, difference=-1.0, against="HPM B/16")})
    others = [
        row(name, {c: Value(value=v)}, kind="published", source="paper")
        for name, v in (("MAE B/16", 82.9), ("HPM B/16", 83.0))
    ]
    lane = strips_of(Table([c], [mine, *others]))[0].lanes[-1]
    assert lane.kind == "published"
    assert [dot.label for dot in lane.dots] == ["HPM B/16 [paper]", "MAE B/16 [paper]"]
    assert lane.words == "83.00 HPM B/16, 1 more"
    assert [dot.matched for dot in lane.dots] == [True, False]
    shown = plot(strips_of(Table([c], [mine, *others]))[0])
    assert shown.count('class="full" d="M0,-6') == shown.count('class="hollow" d="M0,-6') == 1
    alone = row("x", {c: Value(value=82.0, interval=0.3)})
    lane = strips_of(Table([c], [alone, *others]))[0].lanes[-1]
    assert lane.words == "82.90 to 83.00, 2 rows"
    assert not any(dot.matched for dot in lane.dots)


def test_the_recipes_gap_is_a_band_of_its_own() -> None:
    c = column()
    value = Value(value=50.0, interval=1.0, gap={"resolution": 40.0, "pooling": 53.0})
    strip = strips_of(Table([c], [row("x", {c: value})]))[0]
    assert strip.lanes[0].dots[0].recipe == (40.0, 53.0)
    scale = strip.scale()
    assert scale is not None
    assert scale.low < 40.0
    assert scale.high > 53.0
    assert plot(strip).count('class="recipe"') == 1


def test_failed_and_missing_cells_are_said() -> None:
    a, b = column("a"), column("b")
    rows = [row("x", {a: Value(value=None, error="out of memory")}), row("y", {a: 3.0, b: 4.0})]
    first, second = strips_of(Table([a, b], rows))
    assert [lane.words for lane in first.lanes] == ["failed", "3.00 ±1.00"]
    assert [lane.words for lane in second.lanes] == ["not run", "4.00 ±1.00"]
    assert plot(strips_of(Table([a], rows[:1]))[0]).count("<svg") == 1, "no value: no axis"


class Inventory(HTMLParser):
    """What a browser makes of the source: elements and their attributes, texts."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.values: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.values.append(data)


ELEMENTS = set(re.findall(r"\S+", "p b div span svg line path g ul li title text code"))
SHAPES = set(
    re.findall(r"\S+", "width height viewbox x y x1 x2 y1 y2 d overflow opacity text-anchor")
)
ATTRIBUTES = {"class", "style", "title", "role", "aria-label", "aria-hidden", *SHAPES}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str) -> None:
    c = Column(name, "paper", "abcdef0123", name, name, True, ran=name)
    table = Table([c], [row(name, {c: 3.0}), row(name, {c: 4.0}, kind="published", source=name)])
    html = "".join(overview(table))
    found = Inventory()
    found.feed(html)
    assert found.elements <= ELEMENTS
    assert found.attributes <= ATTRIBUTES
    shown = "\n".join(printable(line) for line in name.split("\n"))
    assert sum(shown in value for value in found.values) > 3
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]", html)
    html.encode("utf-8")


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([25.0, 62.8], [30, 40, 50, 60]), ([5.0, 5.0], [5]), ([0.0, 0.0], [0]), ([1e6, 2e6], [1e6])],
)
def test_ticks_are_round_and_inside(values: list[float], ticks: list[float]) -> None:
    scale = Scale.around(values)
    found = scale.ticks()
    assert set(ticks) <= {round(x, 9) for x in found}
    assert 2 <= len(found) <= 5
    assert all(scale.low <= x <= scale.high for x in found)
    assert all(0 <= scale.place(x) <= 1 for x in [*values, *found])
