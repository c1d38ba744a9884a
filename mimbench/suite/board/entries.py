"""What a board is made of: bundles that verify, opened; and why others are refused."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE, Manifest, load_manifest
from mimbench.results.record import Result, Run
from mimbench.suite.sharing.verifying import BENCHMARKS, SIGNATURE, Verification, opened_bundle
from mimbench.system.errors import UserError, printable
from mimbench.tables.table import read_results_with_folders

OTHER_RECIPE = "other recipe"
"""Stands for the profile of a run whose bundle means something else by the benchmark than we do."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One bundle on the board."""

    letter: str
    """What it is called on the page; letters, since digits in a row's name would be read as epochs."""
    file: str
    verification: Verification
    signed: bool
    runs: tuple[Run, ...]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A bundle that is not on the board, and why."""

    file: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a bundle must be beside consistent."""

    digests: frozenset[str] = frozenset()
    """It has one of these, if there are any."""
    signers: Path | None = None
    strict: bool = False
    """Every number in it follows from outcomes."""


def letter(index: int) -> str:
    """Return A to Z, then AA, AB and so on."""
    return ("" if index < 26 else letter(index // 26 - 1)) + chr(ord("A") + index % 26)


def open_bundles(
    paths: Sequence[Path],
    stack: ExitStack,
    *,
    benchmarks: Path = DEFAULT_FILE,
    demands: Demands | None = None,
) -> tuple[list[Entry], list[Refusal]]:
    """Verify bundles and keep them open; return those that are what they say, and the others.

    Args:
        paths: The archives.
        stack: Closes them.
        benchmarks: The reader's own manifest.
        demands: What else they must be.
    """
    demands, own = demands or Demands(), load_manifest(benchmarks)
    entries: list[Entry] = []
    refusals: list[Refusal] = []
    seen: dict[str, str] = {}
    for path in paths:
        file = printable(path.name)
        try:
            root, found = stack.enter_context(
                opened_bundle(path, benchmarks=benchmarks, signers=demands.signers)
            )
        except UserError as error:
            # where the reader keeps the bundle is nobody's business on a public page
            reason = str(error).replace(str(path), path.name)
            refusals.append(Refusal(file=file, reasons=(printable(reason, 300),)))
            continue
        if reasons := _reasons(found, demands, seen):
            refusals.append(Refusal(file=file, reasons=reasons))
            continue
        seen[found.digest] = file
        entries.append(
            Entry(
                letter=letter(len(entries)),
                file=file,
                verification=found,
                signed=(root / SIGNATURE).is_file(),
                runs=tuple(_runs(root, own)),
            )
        )
    return entries, refusals


def _reasons(found: Verification, demands: Demands, seen: dict[str, str]) -> tuple[str, ...]:
    reasons = list(found.faults)
    if demands.strict:
        reasons += [f"not proven: {what}" for what in found.unproven]
    if demands.digests and found.digest not in demands.digests:
        reasons.append(f"its digest {found.digest} is none of those that were published")
    if not reasons and found.digest in seen:
        reasons.append(f"the same bundle as {seen[found.digest]}")
    return tuple(printable(reason, 300) for reason in reasons)


def _runs(root: Path, own: Manifest) -> Iterator[Run]:
    """Yield a bundle's runs; what it calls by one of our names and runs otherwise is marked."""
    theirs = load_manifest(root / BENCHMARKS)
    for folder, result in read_results_with_folders(root / "runs"):
        if _same_recipe(result, theirs, own):
            yield folder, result
        else:
            yield folder, replace(result, profile=OTHER_RECIPE)


def _same_recipe(result: Result, theirs: Manifest, own: Manifest) -> bool:
    name = result.benchmark
    if name not in own.benchmarks or name not in theirs.benchmarks:
        return name in own.benchmarks
    ours, other = own.benchmarks[name], theirs.benchmarks[name]
    if result.profile not in ours.profiles or result.profile not in other.profiles:
        return False
    profile = own.recipes_of(result.profile)
    return ours.task == other.task and own.recipe(name, profile) == theirs.recipe(name, profile)


def named_apart(entries: Sequence[Entry]) -> list[Run]:
    """Return all runs, every result once, rows of one name in several bundles with the letter of theirs."""
    runs: list[tuple[str, Run]] = []
    known: set[str] = set()
    for entry in entries:
        for folder, result in entry.runs:
            if result.checksum and result.checksum in known:
                continue
            known.add(result.checksum)
            runs.append((entry.letter, (folder, result)))
    places = Counter(name for name, _ in {(r.weights["name"], at) for at, (_, r) in runs})
    return [(folder, _renamed(r, at, places)) for at, (folder, r) in runs]


def _renamed(result: Result, at: str, places: Counter[str]) -> Result:
    name = str(result.weights["name"])
    if places[name] == 1:
        return result
    return replace(result, weights={**result.weights, "name": f"{name} (bundle {at})"})


def letters_of(entries: Collection[Entry], name: str, digest: str) -> str:
    """Return the letters of the bundles that hold a row's weights, as the row is called."""
    plain, _, rest = name.rpartition(" (bundle ")
    wanted = rest.rstrip(")") if plain else ""
    found = [
        e.letter
        for e in entries
        if any(
            r.weights["digest"] == digest and r.weights["name"] in (name, plain) for _, r in e.runs
        )
    ]
    return wanted if wanted in found else ", ".join(found)
