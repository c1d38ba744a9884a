"""`python -m pretrain.timeline RUN`: what a pretraining run's saved states are worth, one after the other.

Each state that the run kept (`training.keep_every`) and its last one is exported and scored: k-NN,
attentive probe, patch k-NN and label-free measures, with the recipes of benchmarks.yaml. timeline.json
holds each state's numbers beside its step, images seen, seconds, loss and what its epoch's masks were
like, so that a curriculum can be watched; timeline.svg draws them against images and seconds. Cells
that are done are kept, so that the command can be interrupted, and repeated while the run goes on.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.benchmarks.manifest import DEFAULT_FILE, PROFILES, Manifest, load_manifest
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.files import value_digest, write_json, write_text
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option
from mimbench.task import Machine
from mimbench.training.curve import read_curve
from pretrain.viewing.timeline_figure import drawing, table

if TYPE_CHECKING:
    from mimbench.benchmarks.cells import Request

logger = logging.getLogger(__name__)

BENCHMARKS = "in-knn,in-attn-ep,ade-patch-knn,in-label-free"


@dataclass(frozen=True, kw_only=True)
class State:
    """A saved state of the run."""

    path: Path
    step: int
    images: int
    """Seen so far."""
    seconds: float
    loss: float | None
    masks: Mapping[str, Any] | None = None
    """What the masks of its epoch were like, see `MaskRecord`; None where it does not say."""

    @property
    def name(self) -> str:
        """What its cells are called; states in the order of their steps sort so."""
        return f"step-{self.step:08d}"


def states_of(run: Path) -> list[State]:
    """Return a run's saved states by step; of several at one step the one that stays."""
    from mimbench.training.learner import LAST  # noqa: PLC0415
    from mimbench.training.snapshots import read_state  # noqa: PLC0415
    from pretrain.objectives.mask_record import summary_of  # noqa: PLC0415

    folder = run / "checkpoints"
    kept = sorted(folder.glob("epoch-*.pt")) + [
        path for path in (folder / LAST, run / LAST) if path.is_file()
    ]
    if not kept:
        raise UserError(
            f"{run} holds no saved state (checkpoints/epoch-*.pt or {LAST}); pretrain with "
            "training.keep_every=N to keep one every N epochs"
        )
    journal = read_journal(run)
    found: dict[int, State] = {}
    for path in kept:
        said = read_state(path, lazily=True)
        step, batch = int(said["step"]), int(said["config"]["training"]["batch"])
        found.setdefault(
            step,
            State(
                path=path,
                step=step,
                images=step * batch,
                seconds=seconds_until(journal, step, batch),
                loss=loss_at(journal, step),
                masks=summary_of(said),
            ),
        )
    return [found[step] for step in sorted(found)]


def read_journal(run: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's curve that say a loss and a speed."""
    return [
        entry
        for entry in read_curve(run)
        if isinstance(entry.get("loss"), float | int) and entry.get("images_per_second")
    ]


def seconds_until(journal: Sequence[Mapping[str, Any]], step: int, batch: int) -> float:
    """Return the seconds of training up to a step, by the journal's own speeds."""
    total, before = 0.0, 0
    for row in journal:
        upto = min(int(row["step"]), step)
        total += max(0, upto - before) * batch / float(row["images_per_second"])
        before = max(before, upto)
    return total


def loss_at(journal: Sequence[Mapping[str, Any]], step: int) -> float | None:
    """Return the loss of the last line up to a step; None before the first."""
    known = [float(row["loss"]) for row in journal if int(row["step"]) <= step]
    return known[-1] if known else None


def export_encoder(state: State, folder: Path, which: str) -> Path:
    """Write the encoder of a state, unless it lies there; return its file."""
    from mimbench.checkpoints.files import write_weights  # noqa: PLC0415
    from mimbench.vit.weights import VitWeights  # noqa: PLC0415
    from pretrain.checkpoints.handover import encoder_tensors  # noqa: PLC0415
    from pretrain.checkpoints.stored import read_model  # noqa: PLC0415

    path = folder / "encoders" / f"{state.name}-{which}.safetensors"
    if path.is_file():
        return path
    stored = read_model(state.path)
    network = stored.student if which == "student" else stored.teacher
    if network is None:
        raise UserError(f"{state.path} holds no {which}; try --which student")
    weights = VitWeights(
        spec=stored.spec,
        tensors={name: t.float() for name, t in encoder_tensors(dict(network)).items()},
        format="mimbench-pretrain",
        digest=value_digest([str(state.path.resolve()), state.step, which]),
        which=which,
    )
    write_weights(path, weights)
    return path


def timeline(run: Path, manifest: Manifest, request: "Request", which: str) -> list[dict[str, Any]]:
    """Return what is known of each state; timeline.json and the picture grow as cells end."""
    from mimbench.benchmarks.cells import make_cells, read_candidate  # noqa: PLC0415
    from mimbench.benchmarks.lifecycle import run_here  # noqa: PLC0415

    states = {state.name: state for state in states_of(run)}
    candidates = [
        read_candidate(export_encoder(state, request.out, which), name=name)
        for name, state in states.items()
    ]
    scores: dict[str, dict[str, float]] = {name: {} for name in states}
    rows: list[dict[str, Any]] = []
    for cell in make_cells(manifest, candidates, request):
        if cell.problem:
            raise UserError(f"{cell.label}: {cell.problem}")
        result = run_here(cell)
        logger.info("%s: %.2f", cell.label, result.metrics[result.main_metric])
        for metric, value in result.metrics.items():
            if metric == result.main_metric or metric in ("lidar", "alpha", "two_nn"):
                scores[cell.run.name][f"{cell.run.benchmark} {metric}"] = value
        rows = [row_of(state, scores[name]) for name, state in states.items()]
        write_json(request.out / "timeline.json", rows)
        write_text(request.out / "timeline.svg", drawing(rows))
    return rows


def row_of(state: State, scores: Mapping[str, float]) -> dict[str, Any]:
    """Return one state's line."""
    return {
        "step": state.step,
        "images": state.images,
        "seconds": round(state.seconds, 1),
        "loss": state.loss,
        "masks": state.masks,
        "scores": dict(scores),
    }


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m pretrain.timeline", description=__doc__)
    out.add_argument("run", type=Path, metavar="RUN", help="a pretraining run's folder")
    add_option(out, "--only", f"default: {BENCHMARKS}", default=BENCHMARKS)
    add_option(out, "--profile", "default: quick", choices=PROFILES, default="quick")
    add_option(
        out, "--which", "default: student", choices=("student", "teacher"), default="student"
    )
    add_option(out, "--data", "holds imagenet/, ade/")
    add_option(out, "--out", "default: RUN/timeline")
    add_option(out, "--benchmarks", default=DEFAULT_FILE)
    add_option(out, "--workers", default=2)
    add_option(out, "--device")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(arguments)
    configure_logging()
    return run_command(_score, args)


def _score(args: argparse.Namespace) -> int:
    # not before the options are read: --help and a wrong option need no torch
    from mimbench.benchmarks.cells import Request  # noqa: PLC0415

    manifest = load_manifest(args.benchmarks)
    request = Request(
        profile=args.profile,
        benchmarks=manifest.choose(args.profile, args.only.split(",")),
        data=args.data,
        out=args.out or args.run / "timeline",
        machine=Machine(device=args.device, workers=args.workers),
    )
    rows = timeline(args.run, manifest, request, args.which)
    sys.stdout.write(table(rows) + "\n")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
