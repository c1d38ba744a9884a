"""The clients that runs are followed in. Nothing else in the library knows their packages.

Each follows the settings of its own environment: where it writes, and whether it uses the network
(WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_DIR and so on).
"""

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, Protocol

from mimbench.suite.tracking.run import TrackedRun

PROJECT = "mimbench"
Ending = Literal["done", "failed", "left"]
Point = tuple[int, Mapping[str, float]]
"""A step, and the figures that were measured at it."""


class TrackingClient(Protocol):
    """What the follower asks of a client."""

    def open(self, run: TrackedRun, known: str) -> str:
        """Begin a run, or go on with the one that the client knows as `known`; return its id."""
        ...

    def reached(self, run: str) -> int | None:
        """Return the last step that the client has; None if it cannot say."""
        ...

    def log(self, run: str, points: Sequence[Point]) -> None:
        """Send points of the curve."""
        ...

    def finish(self, run: str, step: int, result: Mapping[str, float], ending: Ending) -> None:
        """Send the result, and end the run for now."""
        ...


class WandbClient:
    """Weights & Biases: one open run for each cell; points of an offline run wait for `wandb sync`."""

    def __init__(self) -> None:
        self.wandb: Any = import_module("wandb")
        self.active: dict[str, Any] = {}

    def open(self, run: TrackedRun, known: str) -> str:
        """Begin or resume."""
        name = known or secrets.token_hex(4)
        self.active[name] = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=name,
            name=run.name,
            group=run.group,
            config=dict(run.config),
            resume="allow",
            reinit="create_new",
            settings=self.wandb.Settings(console="off"),
        )
        return name

    def reached(self, run: str) -> int | None:
        """Say it of a run that the server gave back; an offline one has no memory."""
        active = self.active[run]
        return active.step - 1 if active.resumed else None

    def log(self, run: str, points: Sequence[Point]) -> None:
        """Send points."""
        for step, figures in points:
            self.active[run].log(dict(figures), step=step)

    def finish(self, run: str, step: int, result: Mapping[str, float], ending: Ending) -> None:
        """Put the result into the summary."""
        del step
        active = self.active.pop(run)
        active.summary.update(dict(result))
        active.finish(exit_code=0 if ending == "done" else 1)


class MlflowClient:
    """MLflow's tracking: an experiment for all, a tag for the group."""

    STATUS: Mapping[Ending, str] = {"done": "FINISHED", "failed": "FAILED", "left": "KILLED"}
    AT_ONCE = 900
    """Metrics in one request; the server takes 1000."""

    def __init__(self) -> None:
        tracking: Any = import_module("mlflow.tracking")
        self.entities: Any = import_module("mlflow.entities")
        self.store = tracking.MlflowClient()
        self.seen: dict[str, str] = {}

    def open(self, run: TrackedRun, known: str) -> str:
        """Begin or resume."""
        if known:
            self.store.update_run(known, status="RUNNING")
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.store.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.store.create_experiment(name)
        tags = {"mimbench.group": run.group}
        made = self.store.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        said = [self.entities.Param(k[:250], v[:5000]) for k, v in flat(run.config)]
        for first in range(0, len(said), 100):
            self.store.log_batch(made, params=said[first : first + 100])
        return made

    def reached(self, run: str) -> int | None:
        """Ask the store."""
        names = self.store.get_run(run).data.metrics
        curve = [name for name in names if not name.startswith("result/")]
        steps = [m.step for name in curve for m in self.store.get_metric_history(run, name)]
        return max(steps, default=-1)

    def log(self, run: str, points: Sequence[Point]) -> None:
        """Send points; those of one step never go apart."""
        now, batch = int(time.time() * 1000), []
        for step, figures in points:
            named = [(re.sub(r"[^\w\-. :/]", "_", k), v) for k, v in figures.items()]
            made = [self.entities.Metric(k, v, now, step) for k, v in named]
            if len(batch) + len(made) > self.AT_ONCE:
                self.store.log_batch(run, metrics=batch)
                batch = []
            batch += made
        self.store.log_batch(run, metrics=batch)

    def finish(self, run: str, step: int, result: Mapping[str, float], ending: Ending) -> None:
        """Send the result as metrics of the last step."""
        self.log(run, [(max(step, 0), result)])
        self.store.set_terminated(run, self.STATUS[ending])


class TrackioClient:
    """Trackio has one run at a time: each is taken up again for what there is to send."""

    def __init__(self) -> None:
        self.trackio: Any = import_module("trackio")
        self.known: dict[str, TrackedRun] = {}

    def open(self, run: TrackedRun, known: str) -> str:
        """Choose a name that no other run has: it is what Trackio resumes by."""
        name = known or f"{run.name} {secrets.token_hex(3)}"
        self.known[name] = run
        return name

    def reached(self, run: str) -> int | None:
        """Trackio's store has no call for it."""
        del run

    def log(self, run: str, points: Sequence[Point]) -> None:
        """Send points."""
        active = self._with(run)
        for step, figures in points:
            active.log(dict(figures), step=step)
        active.finish()

    def finish(self, run: str, step: int, result: Mapping[str, float], ending: Ending) -> None:
        """Send the result as figures of the last step: Trackio has no other place for it."""
        figures = {**result, "result/failed": 1.0} if ending == "failed" else result
        if figures:
            self.log(run, [(max(step, 0), figures)])

    def _with(self, name: str) -> Any:
        run = self.known[name]
        return self.trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            group=run.group,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )


CLIENTS = {"wandb": WandbClient, "mlflow": MlflowClient, "trackio": TrackioClient}


def flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted name and text of each value of a configuration."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{before}{key}.")
        else:
            yield f"{before}{key}", item if isinstance(item, str) else json.dumps(item)
