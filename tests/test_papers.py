"""Tables of papers as objects: they point somewhere, and say what was measured beside what was published."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mimbench.benchmarks.manifest import load_manifest
from mimbench.commands import run as command
from mimbench.commands import table as table_command
from mimbench.results.record import Result, write_result
from mimbench.system.errors import UserError
from mimbench.system.options import Parser
from mimbench.tables.paper_view import PaperCell, as_markdown, as_text, view_of
from mimbench.tables.papers import PAPERS, load_papers, published
from mimbench.tables.reproducing import list_of_tables, page
from pretrain.objectives.recipes import read_recipe
from tests.test_table import result

ROOT = Path(__file__).parents[1]
MANIFEST = load_manifest()
SHELF = load_papers(MANIFEST)
ARMS = sorted(
    {
        (row.pretrain, row.set)
        for t in SHELF.tables.values()
        for row in t.rows.values()
        if row.pretrain
    }
)


def test_every_table_that_the_facts_name_is_there() -> None:
    wanted = {
        "hpm.main", "hpm.strategies", "hpm.targets", "hpm.predictor", "hpm.frozen",
        "attmask.strategies", "attmask.dino", "attmask.full", "attmask.few-labels",
        "attmask.backgrounds", "attmask.transfer", "attmask.retrieval", "attmask.dense", "attmask.ablations",
        "automae.main", "automae.labels", "automae.generator", "automae.object-prior", "automae.dense",
    }  # fmt: skip
    assert wanted <= SHELF.tables.keys()


@pytest.mark.parametrize(("config", "changes"), ARMS, ids=lambda x: str(x)[-60:])
def test_every_rows_pretraining_is_one(config: str, changes: tuple[str, ...]) -> None:
    read_recipe(str(ROOT / config), list(changes))


def test_no_two_rows_of_a_table_are_made_by_one_pretraining() -> None:
    for name, table in SHELF.tables.items():
        commands = [row.command for row in table.rows.values() if row.command]
        assert len(set(commands)) == len(commands), name


def test_published_cells_are_the_reference_files_rows() -> None:
    def value(name: str, row: str, column: str) -> float | None:
        found = published(SHELF.find(name), row, column, MANIFEST)
        return found.value if found else None

    assert value("hpm.main", "hpm-b-800", "ft") == 84.2
    assert value("hpm.main", "hpm-b-200", "ade") == 42.1
    assert value("attmask.strategies", "high", "lin") == 57.9
    assert value("attmask.backgrounds", "high", "mr") == 62.3
    assert value("attmask.transfer", "attmask", "cifar10") == 98.8
    assert value("automae.main", "automae", "lin") == 66.7
    # the paper's own baseline, where others state another number of the same name
    assert value("automae.main", "mae", "lin") == 63.7
    # another length of pretraining is another number; not found stays empty
    assert value("hpm.main", "hpm-b-200", "box") is None
    assert value("attmask.strategies", "low", "knn") is None
    assert value("attmask.backgrounds", "hint", "mr") is None
    assert value("automae.labels", "automae", "tenth") is None


def test_page_is_current() -> None:
    written = (ROOT / "docs" / "howto" / "reproducing.md").read_text(encoding="utf-8")
    assert written == page(SHELF, MANIFEST), (
        "run: python -m mimbench tables --page > docs/howto/reproducing.md"
    )


def test_list_says_cost_and_what_is_published() -> None:
    text = list_of_tables(SHELF, MANIFEST)
    for name, table in SHELF.tables.items():
        [line] = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert f"{table.known(MANIFEST)} of {len(table.rows) * len(table.columns)} cells" in line
    assert "about 124 A100-hours" in text


# what was measured


def measured(value: float, name: str, benchmark: str = "in-ft-hpm", **changes: Any) -> Result:
    return result(benchmark, value, name, **{"intervals": {"top1": 0.4}, **changes})


def cell(name: str, results: list[Result], row: str, column: str, **choice: str) -> PaperCell:
    view = view_of(name, SHELF.find(name), results, MANIFEST, choice)
    return view.cells[row, column]


def test_a_checkpoint_stands_in_its_row_with_the_difference() -> None:
    mine = [measured(84.3, "hpm_0799")]
    found = cell("hpm.main", mine, "hpm-b-800", "ft")
    assert found.difference == pytest.approx(0.1)
    view = view_of("hpm.main", SHELF.find("hpm.main"), mine, MANIFEST)
    line = next(line for line in as_text(view).splitlines() if "hpm_0799" in line)
    assert line.split()[:7] == ["HPM", "B/16,", "800", "ep:", "hpm_0799", "84.30", "±0.40"]
    assert "84.2 R  +0.10" in line
    assert view.labels["hpm-b-200"] == "HPM B/16, 200 ep"


def test_a_row_can_be_named_by_the_user() -> None:
    own = [measured(82.0, "mine")]
    assert cell("hpm.strategies", own, "hardest", "ft", mine="hardest").difference == pytest.approx(
        0.6
    )
    assert cell("hpm.main", own, "hpm-b-200", "ft", mine="HPM 200").difference == pytest.approx(
        -1.0
    )
    named = [measured(82.0, "hard-to-easy")]
    assert cell("hpm.strategies", named, "hard-to-easy", "ft").difference == pytest.approx(0.29)


def test_an_unknown_checkpoint_gets_a_row_of_its_own_and_no_difference() -> None:
    view = view_of("hpm.main", SHELF.find("hpm.main"), [measured(80.0, "whatever")], MANIFEST)
    [row] = [key for key, label in view.labels.items() if "no row of this table" in label]
    assert view.cells[row, "ft"].measured == 80.0
    assert view.cells[row, "ft"].difference is None


def test_another_recipes_number_is_marked_where_nothing_is_published_too() -> None:
    other = [measured(80.0, "whatever", profile="demo")]
    view = view_of("hpm.main", SHELF.find("hpm.main"), other, MANIFEST)
    [line] = [line for line in as_text(view).splitlines() if line.startswith("whatever")]
    assert line.split()[6:10] == ["80.00", "±0.40", "·", "[1]"]
    assert "[1] the demo recipe, not the published one" in as_text(view)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"profile": "quick"}, "the quick recipe, not the published one"),
        ({"overrides": {"in-ft-hpm": {"epochs": 1}}}, "the recipe was changed"),
        ({"ran": {"images": 100}}, "run with images 100"),
        ({"config": {"dataset": "own-imagenet-abc"}}, "data of one's own"),
    ],
)
def test_what_is_not_comparable_says_why(changes: dict[str, Any], reason: str) -> None:
    mine = [measured(84.3, "hpm_0799", **changes)]
    found = cell("hpm.main", mine, "hpm-b-800", "ft")
    assert found.difference is None
    assert any(reason in why for why in found.apart)
    text = as_markdown(view_of("hpm.main", SHELF.find("hpm.main"), mine, MANIFEST))
    assert "| [1] |" in text
    assert f"- [1] {found.apart[0]}" in text


def test_a_value_of_another_protocol_is_shown_and_not_subtracted() -> None:
    mine = [
        measured(42.0, "hpm-b-200", "ade-upernet-160", main_metric="miou", metrics={"miou": 42.0})
    ]
    found = cell("hpm.main", mine, "hpm-b-200", "ade")
    assert found.reference is not None
    assert found.reference.value == 42.1
    assert found.apart == (
        "published under another protocol: ADE20K, UPerNet, schedule not stated",
    )


# strictness


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("benchmark: in-ft-hpm, metric: top1, also", "benchmark: in-ft-hmp, metric: top1, also", "hpm.yaml.main: no benchmark 'in-ft-hmp'.*in-ft-hpm"),
        ("also: [in-ft-unstated]", "also: [in-ft-unsaid]", "hpm.yaml.main.ft: no protocol 'in-ft-unsaid'"),
        ("configs/hpm_vit_large_16.yaml", "configs/hpm_vit_huge_16.yaml", "no pretraining config .*hpm_vit_huge_16.yaml"),
        ("place: README;", "plcae: README;", "plcae"),
    ],
)  # fmt: skip
def test_names_that_point_nowhere_are_refused(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    shutil.copy(PAPERS / "hpm.yaml", tmp_path)
    path = tmp_path / "hpm.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        load_papers(MANIFEST, tmp_path)


def test_a_method_nobody_published_has_to_be_said_unknown(tmp_path: Path) -> None:
    text = (PAPERS / "hpm.yaml").read_text().replace("method: HPM,", "method: HMP,")
    lines = [line for line in text.splitlines() if not line.strip().startswith("unknown:")]
    (tmp_path / "hpm.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="nothing is published of 'HMP'.*HPM.*say so in `unknown`"):
        load_papers(MANIFEST, tmp_path)


def test_an_unknown_table_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no table 'hpm.mian'.*hpm.main.*mimbench tables"):
        SHELF.find("hpm.mian")


def request(*arguments: str) -> Any:
    parser = Parser(prog="run")
    command.add_arguments(parser)
    return command.request_of(parser.parse_args(["ckpt.pth", *arguments]), MANIFEST)


def test_run_takes_a_tables_benchmarks() -> None:
    found = request("--table", "attmask.backgrounds")
    assert set(found.benchmarks) == {"in-lin-dino", "rob-in9-lin"}
    assert found.paper_table == "attmask.backgrounds"
    with pytest.raises(UserError, match="leave --only and sets out"):
        request("--table", "hpm.main", "--only", "in-knn")


def test_the_verb_prints_the_papers_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(tmp_path / "a" / "b" / "result.json", measured(84.3, "hpm_0799"))
    args = SimpleNamespace(
        results=tmp_path, format="markdown", benchmarks=ROOT / "benchmarks.yaml", reference=[], table="hpm.main", imported=[]
    )  # fmt: skip
    assert table_command.main(args) == 0  # pyright: ignore[reportArgumentType]
    assert (
        "| HPM B/16, 800 ep: hpm_0799 | 84.30 ±0.40 | 84.2 R | +0.10 |" in capsys.readouterr().out
    )
    args.format = "latex"
    with pytest.raises(UserError, match="written as terminal or markdown, not latex"):
        table_command.main(args)  # pyright: ignore[reportArgumentType]
