"""From checkpoints to the table: read, check, run, show."""

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mimbench.benchmarks.cells import (
    Candidate,
    Cell,
    Request,
    make_cells,
    read_candidate,
)
from mimbench.benchmarks.lifecycle import finished
from mimbench.benchmarks.manifest import Manifest
from mimbench.benchmarks.orders import safe_name
from mimbench.benchmarks.survey import child_environment
from mimbench.checkpoints.files import read_weights, write_weights
from mimbench.networks.kinds import random_twin
from mimbench.suite.costs.footprint import check_room
from mimbench.suite.costs.ledger import FORECAST, Ledger
from mimbench.suite.costs.planning import PATIENCE, longest_first, plan_text
from mimbench.suite.running.cluster import Cluster, submit_cells
from mimbench.suite.running.launch import Slot, gpu_slot, hidden_gpus, make_slots
from mimbench.suite.running.runner import Ended, run_cells
from mimbench.suite.running.watchman import watch
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode
from mimbench.system.files import value_digest, write_text
from mimbench.system.lock import folder_lock
from mimbench.system.runtime import usable_cores
from mimbench.system.signals import Interrupts
from mimbench.tables.formats import FORMATS, SUFFIXES
from mimbench.tables.table import TWIN, Table, make_table, read_results
from mimbench.task import Machine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for."""

    profile: str = "paper"
    """A profile, or the name of a set of benchmarks (then their published recipes)."""
    only: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    data: Path | None = None
    own_data: bool = False
    out: Path = Path("runs")
    which: str | None = None
    num_heads: int | None = None
    device: str = "auto"
    workers: int | None = None
    max_batch: int | None = None
    compile: bool = False
    recompute: bool = False
    side_by_side: int = 1
    """Cells that share the cores."""

    def _usual_workers(self) -> int:
        return max(1, min(8, usable_cores() // self.side_by_side))

    def request(self, manifest: Manifest) -> Request:
        """Return the request: ids chosen, machine filled in from what this one has."""
        machine = Machine(
            # a cell sees no other GPU than its own
            device="cuda" if self.device.startswith("cuda:") else self.device,
            workers=self.workers if self.workers is not None else self._usual_workers(),
            compile=self.compile,
            recompute=self.recompute,
        )
        return Request(
            profile=manifest.recipes_of(self.profile),
            benchmarks=manifest.choose(self.profile, self.only),
            overrides=self.overrides,
            seeds=self.seeds,
            data=self.data,
            own_data=self.own_data,
            out=self.out,
            machine=machine,
            max_batch=self.max_batch,
        )


@dataclass(frozen=True, kw_only=True)
class Running:
    """How the cells are run."""

    fresh: bool = False
    dry_run: bool = False
    canary: bool = True
    twin: bool = False
    gpus: int | None = None
    per_task: int | None = None
    room: bool = True
    """Refuse to start on a disk that is too small."""
    choice: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Path | None = None
    """Where the manifest came from, for the report."""
    cluster: Cluster | None = None
    """None: this machine."""


def run_suite(
    manifest: Manifest, checkpoints: Sequence[tuple[str, Path]], options: Options, running: Running
) -> int:
    """Evaluate the checkpoints; return 0 only if every requested cell has a number."""
    with Interrupts(), folder_lock(options.out, f"another run is using {options.out}"):
        candidates = read_candidates(checkpoints, options, twin=running.twin)
        cells = make_cells(manifest, candidates, options.request(manifest))
        slots = [Slot()]
        if running.cluster is None:
            slots = _slots(running, options.side_by_side, options.device)
        if running.dry_run:
            sys.stdout.write(plan_text(cells, options.out, slots=slots, device=options.device))
            return 1 if any(cell.problem for cell in cells) else 0
        if running.room and running.cluster is None:
            # slots with GPUs of their own share no memory
            at_once = 1 if slots[0].gpus else len(slots)
            check_room(cells, options.out, side_by_side=at_once, device=options.device)
        if running.canary:
            watch(cells, options.device)
        try:
            ended = _run(cells, slots, options.out, running)
        finally:
            table = write_tables(options.out, manifest, running.choice)
    _report(options.out, running)
    sys.stdout.write(FORMATS["terminal"](table))
    return _verdict(cells, ended)


def read_candidates(
    checkpoints: Sequence[tuple[str, Path]], options: Options, *, twin: bool = False
) -> list[Candidate]:
    """Read the checkpoints, and make a random-weight twin for each where asked."""
    candidates = []
    for name, path in checkpoints:
        candidates.append(
            read_candidate(path, which=options.which, num_heads=options.num_heads, name=name)
        )
    if twin:
        twins = [_twin(who, options.out / "twins") for who in candidates]
        candidates += list({who.weights["digest"]: who for who in twins}.values())
    return candidates


def _twin(who: Candidate, folder: Path) -> Candidate:
    weights = read_weights(who.path, which=who.which, num_heads=who.num_heads)
    # models of one shape may differ in what their tensors mean: each kind has a file of its own
    name = f"{TWIN}{safe_name(who.weights['model'])}"
    path = folder / f"{name}-{value_digest(weights.spec.to_json())[:6]}.safetensors"
    write_weights(path, random_twin(weights.spec, seed=0))
    return read_candidate(path, name=name, twin=True)


def write_tables(out: Path, manifest: Manifest, choice: Mapping[str, str]) -> Table:
    """Write the table in every format into the output folder."""
    table = make_table(read_results(out), manifest, choice=choice)
    for name, render in FORMATS.items():
        write_text(out / f"table.{SUFFIXES[name]}", render(table))
    return table


def _run(cells: Sequence[Cell], slots: Sequence[Slot], out: Path, running: Running) -> list[Ended]:
    ledger = Ledger(out / FORECAST, cells)
    if running.cluster is None:
        if len(slots) > 1:
            cells = longest_first(cells)
        ended = run_cells(cells, slots, fresh=running.fresh, watcher=ledger)
    else:
        for cell in cells:
            if running.fresh or not (cell.problem or finished(cell)):
                ledger.begin(cell)
        ended = submit_cells(cells, running.cluster, fresh=running.fresh)
        for cell in [e.cell for e in ended if e.status == "done"]:
            if result := finished(cell):
                # jobs start out of our sight: what the task itself took is all that is known
                ledger.end(cell, result.provenance.seconds)
    if said := ledger.summary([e.cell.label for e in ended if e.status == "done"]):
        logger.info("%s", said)
    return ended


def show_plan(
    manifest: Manifest,
    checkpoints: Sequence[tuple[str, Path]],
    options: Options,
    patience: float = PATIENCE,
) -> str:
    """Return the plan of a run, from short measurements."""
    with folder_lock(options.out, f"another run is using {options.out}"):
        candidates = read_candidates(checkpoints, options)
        cells = make_cells(manifest, candidates, options.request(manifest))
        slots = _slots(Running(), options.side_by_side, options.device)
        return plan_text(cells, options.out, patience=patience, slots=slots, device=options.device)


def _slots(running: Running, side_by_side: int, device: str) -> list[Slot]:
    gpus, found = running.gpus, torch.cuda.device_count()
    if device.startswith("cuda:"):
        if gpus is not None:
            raise UserError(
                f"--device {device} is one GPU, --gpus {gpus} a number of them: say one"
            )
        return [gpu_slot([int(device.removeprefix("cuda:"))])]
    if gpus is None:
        gpus = 0 if device == "cpu" else min(1, found)
    if gpus > found:
        raise UserError(f"--gpus {gpus} was asked for, but torch finds {found}")
    if gpus == 0 and found:
        return [hidden_gpus(slot) for slot in make_slots(0, 0, side_by_side)]
    per_task = running.per_task or gpus
    if gpus and not 1 <= per_task <= gpus:
        raise UserError(f"--per-task {per_task} does not fit --gpus {gpus}")
    return make_slots(gpus, per_task, side_by_side)


def _report(out: Path, running: Running) -> None:
    """Write the report in a child process: it may use the GPU and libraries that we must not load."""
    command = [sys.executable, "-m", "mimbench", "report", str(out)]
    command += ["--benchmarks", str(running.benchmarks)] if running.benchmarks else []
    command += [] if running.twin else ["--no-compute"]
    for name, row in running.choice.items():
        command += ["--reference", f"{name}={row}"]
    done = subprocess.run(command, env=child_environment(), stdout=2, check=False)
    if done.returncode:
        logger.warning(
            "no report: the command above ended with %d; repeat: %s",
            done.returncode,
            " ".join(command[1:]),
        )


def _verdict(cells: Sequence[Cell], ended: Sequence[Ended]) -> int:
    if left := [e.cell.label for e in ended if e.status == "interrupted"]:
        logger.warning("interrupted: %s; the same command goes on", ", ".join(left))
    failed = [e.cell for e in ended if e.status == "failed"]
    if failed:
        logger.error(
            "%d of %d cells have no number: %s",
            len(failed),
            len(cells),
            ", ".join(c.label for c in failed),
        )
        return 1
    return ExitCode.PREEMPTED if left else ExitCode.OK
