"""From checkpoints to the table: read, check, run, show."""

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from mimbench.benchmarks.preflight import child_environment
from mimbench.benchmarks.run_config import safe_name
from mimbench.checkpoints.files import read_weights, write_weights
from mimbench.checkpoints.names.located import require_all
from mimbench.networks.kinds import random_twin
from mimbench.suite.costs.footprint import check_room
from mimbench.suite.costs.forecast_log import FORECAST, ForecastLog
from mimbench.suite.costs.planning import PATIENCE, longest_first, plan_text
from mimbench.suite.running.canary_check import check_checkpoints
from mimbench.suite.running.cluster import Cluster, submit_cells
from mimbench.suite.running.gaps import measure_gaps
from mimbench.suite.running.launch import Slot, gpu_slot, hidden_gpus, make_slots
from mimbench.suite.running.runner import FinishedCell, run_cells
from mimbench.suite.tracking.session import TRACKING_LOG, tracked, tracked_cell
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode
from mimbench.system.files import value_digest, write_text
from mimbench.system.lock import folder_lock
from mimbench.system.signals import Interrupts
from mimbench.tables.formats import FORMATS, SUFFIXES, on_screen
from mimbench.tables.paper_view import as_text, view_of
from mimbench.tables.papers import load_papers
from mimbench.tables.table import TWIN, Table, make_table, read_results

logger = logging.getLogger(__name__)


def run_suite(
    manifest: Manifest,
    checkpoints: Sequence[tuple[str, Path]],
    request: Request,
    cluster: Cluster | None = None,
) -> int:
    """Evaluate the checkpoints; return 0 only if every requested cell has a number.

    Args:
        manifest: The benchmarks.
        checkpoints: (row name or '', path).
        request: What is to be run, and how.
        cluster: Where; None for this machine.
    """
    out, device = request.out, request.device
    with Interrupts(), folder_lock(out, f"another run is using {out}"):
        candidates = read_candidates(checkpoints, request)
        cells = make_cells(manifest, candidates, request)
        slots = [Slot()] if cluster else _slots(request)
        if request.dry_run:
            sys.stdout.write(plan_text(cells, out, slots=slots, device=device))
            if request.gap:
                count = sum(cell.nearby and not cell.problem for cell in cells)
                sys.stdout.write(f"then, not in this forecast: the recipe gap of {count} cells\n")
            return 1 if any(cell.problem for cell in cells) else 0
        if request.room and cluster is None:
            # slots with GPUs of their own share no memory
            at_once = 1 if slots[0].gpus else len(slots)
            check_room(cells, out, side_by_side=at_once, device=device)
        if request.canary:
            check_checkpoints(cells, device, request.unasked)
        try:
            with tracked(request.track, [tracked_cell(c) for c in cells], out / TRACKING_LOG):
                ended = _run(cells, slots, request, cluster)
            if request.gap:
                measure_gaps(cells, slots)
        finally:
            table = write_tables(out, manifest, request.choice)
    _report(request)
    sys.stdout.write(_printed(table, manifest, request))
    return _verdict(cells, ended)


def _printed(table: Table, manifest: Manifest, request: Request) -> str:
    """Return what goes to stdout: the table of all results, or a paper's table filled with them."""
    if not request.paper_table:
        return on_screen(table)
    found = load_papers(manifest).find(request.paper_table)
    results = read_results(request.out)
    return as_text(view_of(request.paper_table, found, results, manifest, request.choice))


def read_candidates(checkpoints: Sequence[tuple[str, Path]], request: Request) -> list[Candidate]:
    """Read the checkpoints, and make a random-weight twin for each where asked."""
    require_all([path for _, path in checkpoints])
    candidates = [
        read_candidate(path, which=request.which, num_heads=request.num_heads, name=name)
        for name, path in checkpoints
    ]
    if request.twin:
        twins = [_twin(who, request.out / "twins") for who in candidates]
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


def _run(
    cells: Sequence[Cell], slots: Sequence[Slot], request: Request, cluster: Cluster | None
) -> list[FinishedCell]:
    forecasts = ForecastLog(request.out / FORECAST, cells)
    if cluster is None:
        if len(slots) > 1:
            cells = longest_first(cells)
        ended = run_cells(cells, slots, fresh=request.fresh, monitor=forecasts)
    else:
        for cell in cells:
            if request.fresh or not (cell.problem or finished(cell)):
                forecasts.begin(cell)
        ended = submit_cells(cells, cluster, fresh=request.fresh)
        for cell in [e.cell for e in ended if e.status == "done"]:
            if result := finished(cell):
                # jobs start out of our sight: what the task itself took is all that is known
                forecasts.end(cell, result.provenance.seconds)
    if said := forecasts.summary([e.cell.label for e in ended if e.status == "done"]):
        logger.info("%s", said)
    return ended


def show_plan(
    manifest: Manifest,
    checkpoints: Sequence[tuple[str, Path]],
    request: Request,
    patience: float = PATIENCE,
) -> str:
    """Return the plan of a run, from short measurements."""
    out = request.out
    with folder_lock(out, f"another run is using {out}"):
        cells = make_cells(manifest, read_candidates(checkpoints, request), request)
        slots = _slots(request)
        return plan_text(cells, out, patience=patience, slots=slots, device=request.device)


def _slots(request: Request) -> list[Slot]:
    gpus, found = request.gpus, torch.cuda.device_count()
    device, side_by_side = request.device, request.side_by_side
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
    per_task = request.per_task or gpus
    if gpus and not 1 <= per_task <= gpus:
        raise UserError(f"--per-task {per_task} does not fit --gpus {gpus}")
    return make_slots(gpus, per_task, side_by_side)


def _report(request: Request) -> None:
    """Write the report in a child process: it may use the GPU and libraries that we must not load."""
    command = [sys.executable, "-m", "mimbench", "report", str(request.out)]
    command += ["--benchmarks", str(request.manifest)] if request.manifest else []
    command += [] if request.twin else ["--no-compute"]
    for name, row in request.choice.items():
        command += ["--reference", f"{name}={row}"]
    done = subprocess.run(command, env=child_environment(), stdout=2, check=False)
    if done.returncode:
        logger.warning(
            "no report: the command above ended with %d; repeat: %s",
            done.returncode,
            " ".join(command[1:]),
        )


def _verdict(cells: Sequence[Cell], ended: Sequence[FinishedCell]) -> int:
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
