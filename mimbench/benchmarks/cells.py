"""Cells of the table to come: benchmark x checkpoint x seed, each with a folder of its own."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mimbench.benchmarks.evaluation import describe_weights
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

    def __post_init__(self) -> None:
        """Refuse a batch of nothing."""
        if self.max_batch is not None and self.max_batch < 1:
            raise UserError(f"--max-batch is {self.max_batch}, expected 1 or more")


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
    footprint: Footprint = field(default_factory=Footprint)
    """What the run takes at least."""

    @property
    def label(self) -> str:
        """How messages name the cell."""
        seed = self.run.config.get("seed", 0)
        return f"{self.run.benchmark} · {self.candidate.weights['name']}" + (
            f" · seed {seed}" if seed else ""
        )


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
    wanted = {name for names in suited.values() for name in names}
    request = replace(request, benchmarks=[n for n in manifest.benchmarks if n in wanted])
    reports = _ask(manifest, request, specs)
    cells = [
        replace(
            _cell(manifest, who, name, reports[name], seed, request),
            footprint=_footprint(reports[name], specs, who.spec),
        )
        for who in candidates
        for name in request.benchmarks
        if name in suited[who.folder]
        for seed in range(request.first_seed, request.first_seed + request.seeds)
    ]
    folders = [cell.folder for cell in cells]
    if len(set(folders)) < len(folders):
        raise UserError("the same checkpoint is named twice; name each once")
    return cells


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


def _footprint(report: RecipeReport, specs: Sequence[Spec], spec: Spec | None) -> Footprint:
    if spec is None or not report.footprints:
        return Footprint()
    return report.footprints[specs.index(spec)]


def _ask(manifest: Manifest, request: Request, specs: Sequence[Spec]) -> dict[str, RecipeReport]:
    queries = []
    for name in request.benchmarks:
        dataset, config = manifest.recipe(name, request.profile, request.overrides)
        queries.append(
            RecipeQuery(
                benchmark=name,
                task=manifest.benchmarks[name].task,
                dataset=dataset,
                config={**config, "machine": _machine(manifest, request, name, config)},
            )
        )
    found = preflight(queries, request.data, own=request.own_data, specs=specs)
    return dict(zip(request.benchmarks, found, strict=True))


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
    manifest: Manifest, who: Candidate, name: str, report: RecipeReport, seed: int, request: Request
) -> Cell:
    benchmark = manifest.benchmarks[name]
    dataset, _ = manifest.recipe(name, request.profile)
    overrides = {k: v for k, v in request.overrides.items() if k in (name, benchmark.group)}
    parts = [name]
    parts += [request.profile] if request.profile != "paper" else []
    # the machine moves no number: the run goes on in the same folder
    recipe_changed = any(set(change) - {"machine"} for change in overrides.values())
    parts += [report.protocol[:6] or "changed"] if recipe_changed else []
    parts += [f"seed{seed}"] if seed else []
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
        protocol=report.protocol,
        problem=report.problem,
        rehearsal={**report.rehearsal, "seed": seed} if report.rehearsal else {},
        effort=report.effort,
        labelled_images=report.labelled_images,
        free_fields=frozenset(report.free_fields),
    )
