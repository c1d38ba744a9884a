"""Cells of the table to come: benchmark x checkpoint x seed, each with a folder of its own."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from mimbench.benchmarks.evaluation import describe_weights
from mimbench.benchmarks.locations import OWN
from mimbench.benchmarks.manifest import Manifest, Profile
from mimbench.benchmarks.preflight import RecipeQuery, RecipeReport, preflight
from mimbench.benchmarks.run_config import (
    RunConfig,
    safe_name,
)
from mimbench.checkpoints.files import read_weights
from mimbench.checkpoints.reading.plausibility import doubts
from mimbench.model import Spec
from mimbench.system.config import merge, to_mapping
from mimbench.system.errors import UserError
from mimbench.task import Machine
from mimbench.vit.footprint import Footprint

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One checkpoint that is evaluated: one row of the table."""

    path: Path
    weights: Mapping[str, str]
    """What a result says about the weights: name, digest, format, which, model."""
    which: str | None = None
    num_heads: int | None = None
    twin: bool = False
    """Random on purpose: no canary."""
    spec: Spec | None = None

    @property
    def folder(self) -> str:
        """Name of the row's folder."""
        return f"{self.weights['digest'][:12]}-{safe_name(self.weights['name'])}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for, and how it is to be run: the one form of a command line or a call."""

    profile: Profile = "paper"
    benchmarks: Sequence[str] = ()
    """Ids or groups; empty: those that the profile runs by default."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    first_seed: int = 0
    data: Path | None = None
    more_data: Sequence[Path] = ()
    """Further data sets of the user's own: each gets columns of its own."""
    own_data: bool = False
    out: Path = Path("runs")
    machine: Machine = field(default_factory=Machine)
    max_batch: int | None = None
    """The user's own figure; it wins over those of the benchmarks."""
    which: str | None = None
    """Network in the checkpoints' files."""
    num_heads: int | None = None
    device: str = "auto"
    """Where cells run; `machine` holds what each of them gets."""
    gpus: int | None = None
    per_task: int | None = None
    side_by_side: int = 1
    """Cells that share the cores."""
    fresh: bool = False
    dry_run: bool = False
    canary: bool = True
    unasked: frozenset[str] = frozenset()
    """Checkpoints, by name, that the canary is not asked about."""
    gap: bool = False
    """Measure the recipe gap of cheap cells too."""
    twin: bool = False
    """Evaluate a random-weight twin of each checkpoint too."""
    room: bool = True
    """Refuse to start on a disk that is too small."""
    choice: Mapping[str, str] = field(default_factory=dict)
    """Row name -> published row to compare with."""
    manifest: Path | None = None
    """Where the benchmarks came from, for the report."""
    paper_table: str = ""
    """Print the results in the shape of a paper's table."""
    track: str = ""
    """The client that cells are followed in; empty: none."""

    def __post_init__(self) -> None:
        """Refuse a batch of nothing."""
        if self.max_batch is not None and self.max_batch < 1:
            raise UserError(f"--max-batch is {self.max_batch}, expected 1 or more")
        if self.more_data:
            self._check_several()

    def _check_several(self) -> None:
        """Refuse several data sets that a table could not tell apart."""
        if not self.own_data or self.data is None:
            raise UserError(
                "--more-data is a data set of your own beside the first: say --own-data --data DIR too; "
                "published sets lie side by side in one folder"
            )
        names = [folder.resolve().name for folder in (self.data, *self.more_data)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"two data folders are called '{twice[0]}', and columns are named by the folder; "
                "rename one, or link to it under another name"
            )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run to do, or the reason why it cannot be done."""

    run: RunConfig
    folder: Path
    candidate: Candidate
    after: tuple[str, ...]
    version: int
    main_metric: str
    protocol: str
    problem: str = ""
    rehearsal: Mapping[str, Any] = field(default_factory=dict)
    """The configuration with next to no training; empty if the task offers none."""
    effort: int = 0
    """How heavy the task is; 0 is light."""
    labelled_images: bool = False
    """The data is a folder of images by class, which the canary may use."""
    free_fields: frozenset[str] = frozenset()
    """Fields of the configuration that move no number: a run goes on when they change."""
    nearby: bool = False
    """Its recipe gap can be measured."""
    footprint: Footprint = field(default_factory=Footprint)
    """What the run takes at least."""

    @property
    def label(self) -> str:
        """How messages name the cell."""
        seed = self.run.config.get("seed", 0)
        own = self.run.dataset.startswith(OWN)
        words = [self.run.benchmark, self.candidate.weights["name"]]
        words += [Path(self.run.config["data"]).name] if own else []
        return " · ".join([*words, *([f"seed {seed}"] if seed else [])])


def read_candidate(
    path: Path,
    *,
    which: str | None = None,
    num_heads: int | None = None,
    name: str = "",
    twin: bool = False,
) -> Candidate:
    """Read a checkpoint to learn who it is; say what looks wrong in one that is no random twin."""
    weights = read_weights(path, which=which, num_heads=num_heads)
    spec = weights.spec
    logger.info(
        "%s: %s, %s, image vector of %d, %d tensors used%s",
        path,
        weights.format,
        spec.model,
        spec.embed_dim,
        len(weights.tensors),
        "".join(f", {count} left out ({group})" for group, count in weights.extras.items()),
    )
    for note in weights.notes:
        logger.info("%s: %s", path, note)
    for doubt in () if twin else doubts(spec, weights.tensors, weights.format):
        logger.warning("%s: suspicious: %s", path, doubt)
    return Candidate(
        path=Path(weights.origin or path.resolve()),
        weights=describe_weights(weights, name),
        which=which,
        num_heads=num_heads,
        spec=spec,
        twin=twin,
    )


def make_cells(manifest: Manifest, candidates: Sequence[Candidate], request: Request) -> list[Cell]:
    """Return the cells in running order: checkpoint by checkpoint, benchmarks in the file's order."""
    manifest.check_overrides(request.overrides)
    specs: list[Spec] = []
    for who in candidates:
        # the options of a network with levels have no hash
        if who.spec and who.spec not in specs:
            specs.append(who.spec)
    asked = manifest.choose(request.profile, request.benchmarks)
    suited = {who.folder: _suited(manifest, who, asked, request) for who in candidates}
    # without a candidate the recipes are still looked into
    wanted = {n for names in suited.values() for n in names} if candidates else {*asked}
    request = replace(request, benchmarks=[n for n in manifest.benchmarks if n in wanted])
    reports = _ask(manifest, request, specs)
    cells = [
        _cell(manifest, who, name, report, seed, request, specs)
        for who in candidates
        for name in request.benchmarks
        if name in suited[who.folder]
        for report in reports[name]
        for seed in range(request.first_seed, request.first_seed + request.seeds)
    ]
    folders = [cell.folder for cell in cells]
    if len(set(folders)) < len(folders):
        raise UserError("the same checkpoint is named twice; name each once")
    return cells


def _own(each: Sequence[T], specs: Sequence[Spec], spec: Spec | None, nothing: T) -> T:
    """Return what a report says of one architecture."""
    return each[specs.index(spec)] if spec is not None and each else nothing


def _suited(manifest: Manifest, who: Candidate, asked: Sequence[str], request: Request) -> set[str]:
    """Return the benchmarks that suit a candidate; say where one stands in for what was asked."""
    levels = len(who.spec.levels) if who.spec else 1
    found = set()
    for name in asked:
        suited = manifest.suited(name, levels, request.profile)
        if suited != name:
            logger.info(
                "%s has %d levels: %s runs in place of %s, in a column of its own",
                who.weights["name"],
                levels,
                suited,
                name,
            )
        found.add(suited)
    return found


def _ask(
    manifest: Manifest, request: Request, specs: Sequence[Spec]
) -> dict[str, list[RecipeReport]]:
    """Return for each benchmark a report for each data set that it runs on."""
    queries = []
    for name in request.benchmarks:
        dataset, config = manifest.recipe(name, request.profile, request.overrides)
        queries.append(
            RecipeQuery(
                benchmark=name,
                task=manifest.benchmarks[name].task,
                dataset=dataset,
                config={**config, "machine": _machine(manifest, request, name, config)},
                overrides=_changes(manifest, name, request.overrides),
            )
        )
    places = [request.data, *request.more_data]
    found = [preflight(queries, place, own=request.own_data, specs=specs) for place in places]
    return {
        name: _fitting(name, places, reports)
        for name, *reports in zip(request.benchmarks, *found, strict=True)
    }


def _fitting(
    name: str, places: Sequence[Path | None], reports: Sequence[RecipeReport]
) -> list[RecipeReport]:
    """Return the reports of the data sets that a benchmark can run on; one that says why if none is."""
    fit: dict[str, RecipeReport] = {}
    for place, report in zip(places, reports, strict=True):
        if report.problem and len(reports) > 1:
            logger.info("%s is left out on %s: %s", name, place, report.problem)
        if not report.problem:
            # data that is not the user's own is the same under every folder
            fit.setdefault(report.dataset, report)
    return list(fit.values()) or [reports[0]]


def _changes(manifest: Manifest, name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's changes of one benchmark, by its id or group."""
    group = manifest.benchmarks[name].group
    return {k: v for k, v in overrides.items() if k in (name, group)}


def _machine(
    manifest: Manifest, request: Request, name: str, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the machine for one benchmark: what is said later in this list wins."""
    asked = {} if request.max_batch is None else {"max_batch": request.max_batch}
    machine = to_mapping(request.machine)
    for change in (manifest.limits(name, request.profile), asked, config.get("machine", {})):
        machine = merge(machine, change)
    return machine


def _cell(
    manifest: Manifest,
    who: Candidate,
    name: str,
    report: RecipeReport,
    seed: int,
    request: Request,
    specs: Sequence[Spec],
) -> Cell:
    protocol = _own(report.protocols, specs, who.spec, "")
    benchmark = manifest.benchmarks[name]
    dataset, _ = manifest.recipe(name, request.profile)
    overrides = _changes(manifest, name, request.overrides)
    parts = [name]
    parts += [request.profile] if request.profile != "paper" else []
    # the machine moves no number: the run goes on in the same folder
    recipe_changed = any(set(change) - {"machine"} for change in overrides.values())
    parts += [protocol[:6] or "changed"] if recipe_changed else []
    parts += [f"seed{seed}"] if seed else []
    if request.more_data and report.dataset != dataset:
        parts += [report.dataset]
    run = RunConfig(
        benchmark=name,
        task=benchmark.task,
        profile=request.profile,
        dataset=report.dataset or dataset,
        checkpoint=who.path,
        config={**report.config, "seed": seed},
        overrides=overrides,
        name=who.weights["name"],
        which=who.which,
        num_heads=who.num_heads,
        weights_digest=who.weights["digest"],
        data_digest=report.data_digest,
    )
    return Cell(
        run=run,
        folder=request.out / who.folder / ".".join(parts),
        candidate=who,
        after=tuple(dict.fromkeys((*benchmark.after, *report.uses))),
        version=report.version,
        main_metric=report.main_metric,
        protocol=protocol,
        problem=report.problem,
        rehearsal={**report.rehearsal, "seed": seed} if report.rehearsal else {},
        effort=report.effort,
        labelled_images=report.labelled_images,
        footprint=_own(report.footprints, specs, who.spec, Footprint()),
        free_fields=frozenset(report.free_fields),
        nearby=report.nearby,
    )
