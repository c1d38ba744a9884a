"""The page of results: a table by module, survivors and judged equivalents by name."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.mutation.places import Mutant
from bench.mutation.trials import Verdict

ALIVE = frozenset({"survived", "not reached", "undecided"})


@dataclass(frozen=True)
class JudgedMutant:
    """A mutant with its verdict, and why it changes nothing where a person found so."""

    mutant: Mutant
    subject: str
    of: int
    """All mutants of its module."""
    verdict: Verdict
    equivalent: str = ""

    @property
    def counts(self) -> bool:
        """Whether it belongs into the rate: not if it changes nothing that can be seen."""
        return not self.equivalent

    @property
    def alive(self) -> bool:
        """Whether a fault went unnoticed."""
        return self.counts and self.verdict.outcome in ALIVE


def rate(found: Sequence[JudgedMutant]) -> float:
    """Return the share of noticed faults."""
    counted = [one for one in found if one.counts]
    return sum(not one.alive for one in counted) / max(len(counted), 1)


def cell(text: str) -> str:
    """Code in a table or list of Markdown."""
    return "`" + text.replace("|", "¦").replace("`", "'") + "`"


def table(found: Sequence[JudgedMutant]) -> list[str]:
    """One line for each module."""
    rows: dict[tuple[str, str], list[JudgedMutant]] = defaultdict(list)
    for one in found:
        rows[one.subject, one.mutant.module].append(one)
    lines = ["| subject | module | mutants | drawn | equal | killed | alive |", "|---|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for (subject, module), ones in sorted(rows.items()):
        equal = sum(not one.counts for one in ones)
        alive = sum(one.alive for one in ones)
        killed = len(ones) - equal - alive
        lines.append(f"| {subject} | {cell(module)} | {ones[0].of} | {len(ones)} | {equal} | {killed} | {alive} |")  # fmt: skip
    return lines


def summary(found: Sequence[JudgedMutant]) -> str:
    """The rate in one sentence."""
    counted = [one for one in found if one.counts]
    alive = sum(one.alive for one in counted)
    late = sum(one.verdict.outcome == "timeout" for one in counted)
    return (
        f"{len({one.mutant.module for one in found})} modules: "
        f"{len(counted) - alive} of {len(counted)} mutants killed ({100 * rate(found):.1f} %), "
        f"{late} of them by running out of time; {alive} survived; "
        f"{len(found) - len(counted)} drawn ones change nothing and are not counted."
    )


def survivors(found: Sequence[JudgedMutant]) -> list[str]:
    """One item for each fault that went unnoticed."""
    return [
        f"- {cell(one.mutant.module + ':' + (one.mutant.place or 'top'))} line {one.mutant.line}, "
        f"{one.mutant.operator}: {cell(one.mutant.change)}"
        + (" (no test enters it)" if one.verdict.outcome == "not reached" else "")
        for one in found
        if one.alive
    ]


def page(
    text: str, runs: Mapping[str, Sequence[JudgedMutant]], faults: str, *, commit: str = ""
) -> str:
    """Fill the places between markers of the page; what stands around them is written by hand.

    Args:
        text: The page.
        runs: Name -> what was found. `name` takes rate and survivors, `name: modules` the table.
        faults: The table of planted faults.
        commit: Where the runs were measured.
    """
    parts = {"planted": faults}
    for name, found in runs.items():
        head = f"{summary(found)} Measured at `{commit}`." if commit else summary(found)
        named = survivors(found) or ["- none"]
        parts[name] = "\n".join([head, "", "Survivors:", "", *named])
        parts[f"{name}: modules"] = "\n".join(table(found))
    for name, body in parts.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin in text and body:
            head, _, rest = text.partition(begin)
            text = f"{head}{begin}\n{body}\n{end}{rest.partition(end)[2]}"
    return text
