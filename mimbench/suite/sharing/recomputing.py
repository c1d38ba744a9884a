"""One run of a bundle, recomputed: every number from its outcomes, every field from its config.yaml."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench.benchmarks.manifest import Manifest
from mimbench.benchmarks.records import outcomes_of
from mimbench.benchmarks.run_config import (
    CONFIG_FILE,
    NOT_PROTOCOL,
    RunConfig,
    changed,
    protocol_config,
    read_run_config,
    safe_name,
)
from mimbench.results import legacy
from mimbench.results.record import Result, protocol_digest
from mimbench.scores.outcomes import TOLERANCE, Statistic
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError, printable
from mimbench.system.listing import first_few
from mimbench.task import load_task, traits_of

UNFIT = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, MemoryError)
"""What arrays of wrong shapes and kinds raise on their way to a metric."""


@dataclass(kw_only=True)
class Checked:
    """What checking found."""

    faults: list[str] = field(default_factory=list)
    """What contradicts itself."""
    unproven: list[str] = field(default_factory=list)
    """Numbers that nothing in the bundle determines."""

    def expect(self, same: bool, fault: str) -> None:  # noqa: FBT001 (a condition)
        """Note a fault unless the condition holds."""
        if not same:
            self.faults.append(printable(fault, 300))

    def lacks(self, metric: str, result: Result, what: str) -> None:
        """Note that a result lacks a number: of the table's own a fault, of others it may be older."""
        kind = self.faults if metric == result.main_metric else self.unproven
        kind.append(printable(f"{metric} {what}", 300))

    def add(self, where: str, other: "Checked") -> None:
        """Take over what was found in one run."""
        self.faults += [f"{where}: {fault}" for fault in other.faults]
        self.unproven += [f"{where}: {what}" for what in other.unproven]


def check_run(folder: Path, result: Result, manifest: Manifest, tasks: Collection[str]) -> Checked:
    """Return what in a result does not follow from its config.yaml and outcomes.

    Args:
        folder: The run's folder.
        result: Its result.
        manifest: The bundle's own.
        tasks: Tasks whose own kinds of outcomes may be imported: the reader's.
    """
    found = Checked()
    run = read_run_config(folder / CONFIG_FILE)
    _check_config(found, run, result, tasks)
    _check_place(found, folder, run, result)
    _check_recipe(found, run, manifest)
    if result.status == "done":
        found.expect(result.main_metric in result.metrics, f"lacks its metric {result.main_metric}")
        _check_numbers(found, result, statistics(folder, result, tasks, found))
    else:
        found.expect(not result.metrics, "failed, and has metrics all the same")
    return found


def statistics(
    folder: Path, result: Result, tasks: Collection[str], found: Checked
) -> dict[str, Statistic]:
    """Return every metric that the outcomes determine, whether or not the result agrees."""
    try:
        kept = outcomes_of(folder, result, tasks)
        return {s.metric: s for outcomes in kept for s in outcomes.statistics()}
    except UserError as error:
        found.faults.append(str(error).replace(f"{folder}/", ""))
    except UNFIT as error:
        found.faults.append(f"the outcomes are damaged: {type(error).__name__}: {error}"[:300])
    return {}


def _check_numbers(found: Checked, result: Result, offered: Mapping[str, Statistic]) -> None:
    for metric, statistic in offered.items():
        stored = result.metrics.get(metric)
        if stored is None:
            found.lacks(metric, result, "is missing, the outcomes give it")
            continue
        try:
            _check_metric(found, result, metric, statistic)
        except UNFIT as error:
            found.faults.append(f"the outcomes of {metric} are damaged: {error}"[:300])
    if alone := sorted(result.metrics.keys() - offered.keys()):
        found.unproven.append(f"no outcomes were kept that determine {first_few(alone, 40)}")
    for metric in result.intervals.keys() - offered.keys():
        found.faults.append(f"{metric} has an interval, and no outcomes that it could come from")


def _check_metric(found: Checked, result: Result, metric: str, statistic: Statistic) -> None:
    stored, whole = result.metrics[metric], statistic.whole()
    stated = result.intervals.get(metric)
    # NaN is close to nothing
    if not abs(stored - whole) <= TOLERANCE:
        shown = f"{metric} is stored as {stored:.4f}, the outcomes give {whole:.4f}"
        # a mean over draws or classes that single images do not determine has no interval
        (
            found.faults if stated is not None or metric == result.main_metric else found.unproven
        ).append(shown)
        return
    half = statistic.interval().half
    if stated is None:
        found.lacks(metric, result, f"has no interval, the outcomes give ±{half:.4f}")
    elif not abs(stated - half) <= TOLERANCE:
        # results of the first format were resampled by an earlier method
        older = result.format == legacy.FORMAT
        shown = f"{metric} is stored with ±{stated:.4f}, the outcomes give ±{half:.4f}"
        (found.unproven if older else found.faults).append(shown)


def _counted(run: RunConfig, tasks: Collection[str], model: str) -> Mapping[str, Any]:
    """Return the run's recipe as a result keeps it: without what cannot move the number.

    Args:
        run: The run.
        tasks: Whose code may be asked.
        model: The architecture's name; a plain ViT's tells which values it gets anyway.
    """
    try:
        task = load_task(run.task) if run.task in tasks else None
    except UserError:
        task = None
    if task is None:
        return run.config
    config = from_mapping(task.Config, run.config, "config.yaml")
    from mimbench.vit.named import spec_named  # noqa: PLC0415 - needs torch

    return protocol_config(run.dataset, config, traits_of(task), spec_named(model), run.overrides)


def _check_config(found: Checked, run: RunConfig, result: Result, tasks: Collection[str]) -> None:
    asked_for = (
        run.config
        if result.format == legacy.FORMAT
        else _counted(run, tasks, result.weights.get("model", ""))
    )
    config = {k: v for k, v in result.config.items() if k != "dataset"}
    found.expect(
        protocol_digest(result.task, result.version, result.config) == result.protocol,
        "the protocol digest does not belong to the configuration",
    )
    for name in ("benchmark", "task", "profile"):
        asked, got = getattr(run, name), getattr(result, name)
        found.expect(asked == got, f"config.yaml says {name} {asked}, the result {got}")
    data = result.config.get("dataset")
    found.expect(run.dataset == data, f"config.yaml says data set {run.dataset}, the result {data}")
    found.expect(
        run.weights_digest == result.weights.get("digest", ""),
        "config.yaml names other weights than the result",
    )
    found.expect(
        not run.name or run.name == result.weights.get("name"),
        "config.yaml names another checkpoint than the result",
    )
    found.expect(
        run.which in (None, result.weights.get("which")), "config.yaml names another network"
    )
    found.expect(
        int(run.config.get("seed", 0)) == result.provenance.seed, "config.yaml names another seed"
    )
    same = alike(changed(run), result.overrides) and alike(result.overrides, changed(run))
    found.expect(same, "config.yaml and the result differ in what was changed")
    for key, value in config.items():
        if key in asked_for and alike(value, asked_for[key]):
            continue
        if key in result.resolved and alike(result.resolved[key], asked_for.get(key)):
            # spelled out, and said to be what this architecture gets anyway
            model = result.weights.get("model")
            found.unproven.append(f"{key} of config.yaml is said to be that of every {model}")
            continue
        found.faults.append(f"config.yaml and the result differ in {key}")


def _check_place(found: Checked, folder: Path, run: RunConfig, result: Result) -> None:
    """A run's folder is named for what it holds: a copy elsewhere is another claim."""
    weights = result.weights
    candidate = f"{weights.get('digest', '')[:12]}-{safe_name(weights.get('name', ''))}"
    found.expect(folder.parent.name == candidate, f"belongs into the folder {candidate}")
    profile = [] if run.profile == "paper" else [run.profile]
    seed = int(run.config.get("seed", 0))
    recipe = [result.protocol[:6]] if changed(run) else []
    cell = ".".join([run.benchmark, *profile, *recipe, *([f"seed{seed}"] if seed else [])])
    found.expect(folder.name == cell, f"belongs into a folder named {cell}")


def _check_recipe(found: Checked, run: RunConfig, manifest: Manifest) -> None:
    """config.yaml must be what the manifest's recipe and the user's changes give."""
    known = manifest.benchmarks.get(run.benchmark)
    if known is None:
        found.faults.append(f"benchmarks.yaml has no benchmark {run.benchmark}")
        return
    found.expect(known.task == run.task, f"benchmarks.yaml gives {run.benchmark} another task")
    profile: Any = run.profile
    try:
        dataset, config = manifest.recipe(run.benchmark, profile, run.overrides)
    except UserError as error:
        found.faults.append(str(error))
        return
    own = run.dataset.startswith("own-")
    found.expect(
        own or run.dataset == dataset,
        f"profile {run.profile} uses {dataset}, config.yaml says {run.dataset}",
    )
    for key, value in config.items():
        if key in NOT_PROTOCOL:
            continue
        found.expect(
            key in run.config and alike(value, run.config[key]),
            f"{key} in config.yaml is not that of {run.benchmark} in profile {run.profile}",
        )


def alike(asked: Any, got: Any) -> bool:
    """Return whether a value is what was asked for, in whatever plain form both are written."""
    if isinstance(asked, Mapping):
        return isinstance(got, Mapping) and all(
            key in got and alike(value, got[key]) for key, value in asked.items()
        )
    if isinstance(asked, (list, tuple)):
        return (
            isinstance(got, (list, tuple))
            and len(asked) == len(got)
            and all(alike(a, b) for a, b in zip(asked, got, strict=True))
        )
    if isinstance(asked, bool) or isinstance(got, bool) or asked is None or got is None:
        return asked is got
    try:
        return float(asked) == float(got)  # YAML reads 1e-4 as text
    except (TypeError, ValueError, OverflowError):
        return str(asked) == str(got)
