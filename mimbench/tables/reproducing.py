"""What the paper tables take, for people: a list in the terminal, and the page docs/howto/reproducing.md."""

from mimbench.benchmarks.manifest import Manifest
from mimbench.tables.paper_view import as_markdown, view_of
from mimbench.tables.papers import PaperShelf, PaperTable, cost_of

HEAD = """# Reproducing the papers' tables

This page is written by `python -m mimbench tables --page` from `papers/*.yaml` and `mimbench/reference.yaml`; a test holds it
current. Each table of HPM, AttMask and AutoMAE is one command. `DATA` holds `imagenet/`, `coco/`, `ade/` and the other sets
(`python -m mimbench doctor --data DATA` says what is missing and how to get it).

```
./run_all.sh hpm_vit_base_0799.pth --table hpm.main --data DATA --gpus 8
python -m mimbench tables               # every table with its cost
python -m mimbench table runs --table hpm.main
```

The printed table has the paper's shape: what was measured, what was published with its grade, the difference, and a number
that leads to the reason where the two are not comparable. A checkpoint takes the row that its file and name say; otherwise name it
after the row (`hpm-b-800=ckpt.pth`) or say `--reference "ckpt=hpm-b-800"`. A published cell that nobody could be found to state
stays empty. Grades: P paper, R official repository, C code, I issue thread, S second hand, T third party.

Costs are copied from what was published or derived from it; "not found" means that nobody stated them, and we did not measure
these runs. `python -m mimbench plan CKPT --data DATA` measures on your machine before you spend anything.
"""
TAIL = """## From a clean clone to a table

```
git clone ... mimbench && cd mimbench
./run_all.sh --demo                     # proves that the installation works
./run_all.sh ckpt.pth --table hpm.main --data DATA --dry-run
./run_all.sh ckpt.pth --table hpm.main --data DATA --gpus 8
python -m mimbench bundle runs          # what you would attach to a paper
python -m mimbench verify runs.tar.gz
```
"""


def list_of_tables(papers: PaperShelf, manifest: Manifest) -> str:
    """Return a block for each paper: its tables, what is published of each, what a row costs."""
    lines: list[str] = []
    width = max(len(name) for name in papers.tables)
    for key, paper in papers.papers.items():
        lines += [f"{paper.name}: {paper.source}"]
        for name, table in paper.tables.items():
            count = len(list(table.cells()))
            lines.append(
                f"  {f'{key}.{name}':<{width}}  {table.title}: {len(table.rows)} rows, "
                f"{table.known(manifest)} of {count} cells published"
            )
            lines += [f"  {'':<{width}}    {line}" for line in costs(table)]
        lines.append("")
    return (
        "\n".join([*lines, "one table: ./run_all.sh ckpt.pth --table hpm.main --data DATA"]) + "\n"
    )


def costs(table: PaperTable) -> list[str]:
    """Return a line for each benchmark that one row takes, and one for the pretrainings."""
    lines = [f"{name}: {cost_of(table, name)}" for name in table.benchmarks]
    runs = {row.command for row in table.rows.values() if row.command}
    return [*lines, f"pretraining of every row: {len(runs)} runs"] if runs else lines


def page(papers: PaperShelf, manifest: Manifest) -> str:
    """Return the page."""
    parts = [HEAD]
    for key, paper in papers.papers.items():
        parts.append(f"## {paper.name}\n\n{paper.source}\n")
        parts += [
            _section(f"{key}.{name}", table, manifest) for name, table in paper.tables.items()
        ]
    return "\n".join([*parts, TAIL])


def _section(name: str, table: PaperTable, manifest: Manifest) -> str:
    lines = [f"### {table.title}", "", f"`./run_all.sh CKPT --table {name} --data DATA`", ""]
    lines.append(as_markdown(view_of(name, table, [], manifest)))
    lines += ["| takes | published cost of one cell |", "|---|---|"]
    lines += [f"| `{b}` | {cost_of(table, b)} |" for b in table.benchmarks]
    commands = [(row.label, row.command) for row in table.rows.values()]
    lines += ["", "| row | pretraining |", "|---|---|"]
    lines += [f"| {label} | {f'`{c}`' if c else 'none of ours'} |" for label, c in commands]
    return "\n".join([*lines, ""])
