"""The suite from Python: `mimbench.evaluate`, `load`, `table` and `compare`.

Everything runs in the caller's process and leaves what the command line leaves: a folder of results
that tables are made of. Only a frozen module of the user's own has no file that a run could go on from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from mimbench.benchmarks.cells import Candidate, Cell
from mimbench.benchmarks.evaluation import describe_weights
from mimbench.benchmarks.lifecycle import run_here
from mimbench.benchmarks.manifest import Manifest, Profile, load_manifest
from mimbench.benchmarks.nearby import measure_gap
from mimbench.benchmarks.preflight import RecipeQuery, RecipeReport, inspect_recipe
from mimbench.benchmarks.run_config import RunConfig, safe_name
from mimbench.checkpoints.files import read_weights, write_weights
from mimbench.data.digest import DataDigest, Parts, read_parts
from mimbench.model import Spec, Weights
from mimbench.networks.module import ModuleWeights, adapt, as_it_was, home
from mimbench.results.record import Result
from mimbench.system.config import merge, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import callers_tf32
from mimbench.tables.comparison import (
    choose,
    describe_pair,
    describe_published,
    find_published,
    find_row,
)
from mimbench.tables.formats import FORMATS
from mimbench.tables.table import make_table, read_results, read_results_with_folders
from mimbench.task import Machine


class Text(str):
    """Text that a notebook shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the text itself."""
        return str(self)


def load(
    checkpoint: str | Path, *, which: str | None = None, num_heads: int | None = None
) -> Weights:
    """Return the canonical weights in a checkpoint of any known format.

    Args:
        checkpoint: A file, a folder as Hugging Face writes them, or a name (`timm:NAME`, `hf:ORG/NAME`).
        which: The network where a file holds several: student, teacher or ema.
        num_heads: Attention heads, where no published width says.
    """
    return read_weights(checkpoint, which=which, num_heads=num_heads)


def evaluate(  # noqa: PLR0913 - the one call of a notebook
    model: str | Path | Weights | nn.Module,
    benchmarks: Sequence[str],
    *,
    data: str | Path | None = None,
    own_data: bool = False,
    name: str = "",
    out: str | Path = "runs",
    profile: Profile = "paper",
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    workers: int = 0,
    gap: bool = False,
    **declared: Any,
) -> dict[str, Result]:
    """Return benchmark -> result of a model; what is done already under the same recipe is read.

    Args:
        model: A checkpoint, weights that `load` returned, or a module of your own: it comes
            back as it was, and trained tasks train a copy.
        benchmarks: Ids of benchmarks.yaml.
        data: Folder of the data sets; None for the sample data of a demo profile.
        own_data: The data is your own in a published layout: never beside published rows.
        name: Row of the table.
        out: Folder of results.
        profile: paper, quick or demo.
        settings: Changes of the recipe: id or group -> fields.
        device: Where to compute; `auto` is where a module lies, for a checkpoint the GPU if there is one.
        workers: Loader processes.
        gap: Measure the recipe gap of cheap benchmarks too.
        declared: What a module says of itself: see `mimbench.networks.module.adapt`.
    """
    manifest = load_manifest()
    names = manifest.choose(profile, tuple(benchmarks))
    study = Study(
        manifest=manifest,
        profile=profile,
        settings=settings or {},
        data=Path(data) if data else None,
        own=own_data,
        machine=Machine(device=device, workers=workers),
        gap=gap,
    )
    if not isinstance(model, nn.Module) and declared:
        raise UserError(
            f"only a module declares {', '.join(declared)}; a checkpoint says it itself"
        )
    with callers_tf32():
        if isinstance(model, nn.Module):
            if device == "auto":
                machine = replace(study.machine, device=str(home(model)))
                study = replace(study, machine=machine)
            with as_it_was(model):
                return _evaluate(adapt(model, name=name, **declared), names, Path(out), name, study)
        weights = load(model) if isinstance(model, (str, Path)) else model
        return _evaluate(weights, names, Path(out), name, study)


def _evaluate(
    weights: Weights, asked: Sequence[str], root: Path, name: str, study: "Study"
) -> dict[str, Result]:
    manifest, levels = study.manifest, len(weights.spec.levels)
    names = list(dict.fromkeys(manifest.suited(n, levels, study.profile) for n in asked))
    root.mkdir(parents=True, exist_ok=True)
    label = name or weights.name
    row = root / f"{weights.digest[:12]}-{safe_name(label)}"
    read = cache(read_parts)
    found = {b: study.inspect_recipe(b, weights.spec, read) for b in names}
    if problems := [f"{b}: {f.problem}" for b, f in found.items() if f.problem]:
        raise UserError("\n".join(problems))
    return {b: study.run(b, report, weights, label, row) for b, report in found.items()}


def table(out: str | Path = "runs", *, format: str = "terminal") -> Text:  # noqa: A002
    """Return the table of a folder of results."""
    results = read_results(Path(out))
    if not results:
        raise UserError(f"no results in {out}; evaluate something into it first")
    if format not in FORMATS:
        raise UserError(f"format is '{format}', expected one of {', '.join(FORMATS)}")
    return Text(FORMATS[format](make_table(results, load_manifest())))


def compare(a: str, b: str, out: str | Path = "runs") -> Text:
    """Return how two rows of a folder differ, or a row and a published one, with intervals."""
    manifest, results = load_manifest(), read_results_with_folders(Path(out))
    ours = choose(results, a)
    published = find_published(manifest.references, b)
    if find_row(results, b) or not published:
        return Text("\n".join(describe_pair(ours, choose(results, b), manifest)))
    return Text("\n".join(describe_published(ours, published, manifest)))


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked of every benchmark alike."""

    manifest: Manifest
    profile: Profile
    settings: Mapping[str, Any]
    data: Path | None
    own: bool
    machine: Machine
    gap: bool = False

    def inspect_recipe(
        self, benchmark: str, spec: Spec, read: Callable[[Parts], DataDigest]
    ) -> RecipeReport:
        """Return the benchmark's whole configuration for an architecture, or why it cannot run."""
        dataset, config = self.manifest.recipe(benchmark, self.profile, self.settings)
        machine = merge(to_mapping(self.machine), self.manifest.limits(benchmark, self.profile))
        query = RecipeQuery(
            benchmark=benchmark,
            task=self.manifest.benchmarks[benchmark].task,
            dataset=dataset,
            config={**config, "machine": merge(machine, config.get("machine", {}))},
            overrides=self.settings,
        )
        return inspect_recipe(query, self.data, own=self.own, specs=[spec], read=read)

    def run(
        self, benchmark: str, report: RecipeReport, weights: Weights, label: str, row: Path
    ) -> Result:
        """Return the benchmark's result, from its folder if it is there already."""
        [protocol] = report.protocols
        parts = [benchmark] + ([self.profile] if self.profile != "paper" else [])
        folder = row / ".".join([*parts, protocol[:6]] if self.settings else parts)
        row.mkdir(parents=True, exist_ok=True)
        run = RunConfig(
            benchmark=benchmark,
            task=self.manifest.benchmarks[benchmark].task,
            profile=self.profile,
            dataset=report.dataset,
            checkpoint=_kept(weights, row),
            config=report.config,
            overrides=self.settings,
            name=label,
            weights_digest=weights.digest,
            data_digest=report.data_digest,
        )
        cell = Cell(
            run=run,
            folder=folder,
            candidate=Candidate(path=run.checkpoint, weights=describe_weights(weights, label)),
            after=(),
            version=report.version,
            main_metric=report.main_metric,
            protocol=protocol,
        )
        result = run_here(cell, weights=weights)
        if self.gap and report.nearby:
            return replace(result, gap=measure_gap(folder, weights))
        return result


def _kept(weights: Weights, row: Path) -> Path:
    """Return a file that holds the weights, so that the run can be repeated from its folder."""
    if isinstance(weights, ModuleWeights):
        return Path("a module that was evaluated from Python")
    path = row / "weights.safetensors"
    if not path.is_file():
        write_weights(path, weights)
    return path
