"""benchmarks.yaml: which benchmarks there are, what each profile changes, what others published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mimbench.system.config import from_mapping, load_yaml, merge
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.source import ROOT

PROFILES = ("paper", "quick", "demo")
Profile = Literal["paper", "quick", "demo"]
DEFAULT_FILE = ROOT / "benchmarks.yaml"


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a profile changes in a benchmark."""

    dataset: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    max_batch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """From which cheap dense benchmarks an expensive one is predicted (`mimbench ladder`)."""

    cheap: tuple[str, ...]
    """Ids, chosen beforehand and never by their fit."""
    top1: str
    """The id that people would look at instead: a ladder has to do better than it alone."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One entry: a task with a recipe, one column of the table."""

    title: str
    group: str
    """Any name: --only and --set take it in place of the ids of all benchmarks that share it."""
    task: str
    """Dotted name of the task's module."""
    dataset: str
    config: Mapping[str, Any] = field(default_factory=dict)
    profiles: Mapping[Profile, Change] = field(default_factory=lambda: {"paper": Change()})
    max_batch: int | None = None
    """Images that fit one process at once, where that is less than the machine's usual figure."""
    after: tuple[str, ...] = ()
    """Benchmarks whose run on the same checkpoint comes first: they leave something to reuse."""
    with_levels: str = ""
    """The benchmark that networks with several levels run in this one's place: a column of its own."""
    ladder: Rungs | None = None
    """What predicts this one, where it is expensive."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One published number."""

    method: str
    model: str
    protocol: str
    metric: str
    value: float
    source: str
    """Who says so: repository, paper or thread."""
    grade: Literal["P", "R", "C", "I", "S", "T"]
    """Paper, official repository, code, issue thread, second hand, third party."""
    epochs: int | None = None
    """Pretraining epochs, where they are stated."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a protocol id means, for people."""

    title: str
    summary: str
    source: str
    group: str = ""
    """The group of the benchmarks whose numbers this protocol's are of a kind with."""
    also: tuple[str, ...] = ()
    """What imported files call it (mimbench.tables.foreign): only their rows may stand in its column."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What is known about the effect of a difference between two protocols."""

    fields: tuple[str, ...]
    """Names of configuration fields; `group:` entries may narrow them."""
    known: str
    source: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A data set as the Hugging Face Hub calls it."""

    id: str
    name: str
    split: str
    """The part that is scored."""


@dataclass(frozen=True, kw_only=True)
class HubMetric:
    """A metric as model cards call it."""

    type: str
    name: str
    task: str
    """The Hub's own name for what the model does."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """What the Hugging Face Hub has a name for; what is not here has none, and none is made up."""

    datasets: Mapping[str, HubDataset] = field(default_factory=dict)
    metrics: Mapping[str, HubMetric] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Published:
    """The reference file."""

    protocols: Mapping[str, Protocol]
    references: tuple[Reference, ...]
    effects: tuple[Effect, ...] = ()
    hub: Hub = field(default_factory=Hub)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole file."""

    defaults: Mapping[Profile, tuple[str, ...]]
    """The benchmarks that a profile runs unless --only names others."""
    benchmarks: Mapping[str, Benchmark]
    reference_file: str | None = None
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Named choices of benchmarks under their published recipes: --profile takes these names too."""
    """A second file, relative to this one, that holds the fields below."""
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    effects: tuple[Effect, ...] = ()
    hub: Hub = field(default_factory=Hub)

    @property
    def tasks(self) -> frozenset[str]:
        """Return the names of all tasks."""
        return frozenset(benchmark.task for benchmark in self.benchmarks.values())

    def recipes_of(self, name: str) -> Profile:
        """Return the profile whose recipes a profile or a set of benchmarks runs."""
        if name in self.sets:
            return "paper"
        for profile in PROFILES:
            if profile == name:
                return profile
        known = [*PROFILES, *self.sets]
        raise UserError(f"no profile '{name}'" + did_you_mean(name, known))

    def choose(self, name: str, only: Sequence[str] = ()) -> list[str]:
        """Return the ids that a run of a profile or set covers, in the file's order.

        Args:
            name: Which profile or set.
            only: Ids, or groups (then its own benchmarks of that group).
        """
        profile = self.recipes_of(name)
        default = list(self.sets.get(name) or self.defaults.get(profile, ()))
        if not only:
            return default
        chosen: set[str] = set()
        for wanted in only:
            members = [i for i in default if self.benchmarks[i].group == wanted]
            if wanted in self.benchmarks:
                self.change(wanted, profile)
                chosen.add(wanted)
            elif members:
                chosen.update(members)
            else:
                known = [*self.benchmarks, *(b.group for b in self.benchmarks.values())]
                raise UserError(
                    f"no benchmark '{wanted}' in profile {name}" + did_you_mean(wanted, set(known))
                )
        return [benchmark for benchmark in self.benchmarks if benchmark in chosen]

    def change(self, name: str, profile: Profile) -> Change:
        """Return what the profile changes; an error if the benchmark has no such profile."""
        benchmark = self.benchmarks[name]
        if profile not in benchmark.profiles:
            known = ", ".join(benchmark.profiles)
            raise UserError(f"benchmark '{name}' has no profile '{profile}', only {known}")
        return benchmark.profiles[profile]

    def recipe(
        self, name: str, profile: Profile, overrides: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Return dataset name and configuration of a benchmark under a profile.

        Args:
            name: Benchmark id.
            profile: Which recipe.
            overrides: Id or group -> changed fields, as `--set ID.FIELD=VALUE` spells it.
        """
        benchmark, change = self.benchmarks[name], self.change(name, profile)
        config = merge(benchmark.config, change.config)
        for key in (benchmark.group, name):
            config = merge(config, (overrides or {}).get(key, {}))
        return change.dataset or benchmark.dataset, config

    def suited(self, name: str, levels: int, profile: Profile) -> str:
        """Return the benchmark that a network with so many levels runs where this one is asked for."""
        other = self.benchmarks[name].with_levels
        return (
            other if levels > 1 and other and profile in self.benchmarks[other].profiles else name
        )

    def limits(self, name: str, profile: Profile) -> dict[str, int]:
        """Return what the benchmark asks of the machine, as fields of `Machine`."""
        limit = self.change(name, profile).max_batch or self.benchmarks[name].max_batch
        return {"max_batch": limit} if limit else {}

    def check_overrides(self, overrides: Mapping[str, Any]) -> None:
        """Refuse overrides that name no benchmark and no group, or no field of one."""
        known = {*self.benchmarks, *(b.group for b in self.benchmarks.values())}
        for key, value in overrides.items():
            if key not in known:
                raise UserError(f"--set {key}: no such benchmark" + did_you_mean(key, known))
            if not isinstance(value, Mapping):
                raise UserError(
                    f"--set {key}={value}: name a field too, for example {key}.batch=64"
                )
            if taken := {"seed", "data"} & value.keys():
                raise UserError(
                    f"--set {key}.{min(taken)} has no effect: seeds come from --seed and --seeds, data "
                    "from --data"
                )


def load_manifest(path: Path = DEFAULT_FILE) -> Manifest:
    """Read benchmarks.yaml, and the reference file that it names, strictly."""
    content = load_yaml(path)
    if name := content.get("reference_file"):
        published = from_mapping(Published, load_yaml(path.parent / str(name)), str(name))
        content |= {f.name: getattr(published, f.name) for f in fields(Published)}
    manifest = from_mapping(Manifest, content, path.name)
    _check(manifest, path)
    return manifest


def _check(manifest: Manifest, path: Path) -> None:
    """Refuse names that point nowhere."""
    for profile, names in manifest.defaults.items():
        for name in names:
            if name not in manifest.benchmarks:
                where = f"{path.name}.defaults.{profile}"
                raise UserError(
                    f"{where}: no benchmark '{name}'" + did_you_mean(name, manifest.benchmarks)
                )
            manifest.change(name, profile)
    for title, names in manifest.sets.items():
        for name in names:
            if name not in manifest.benchmarks:
                raise UserError(
                    f"{path.name}.sets.{title}: no benchmark '{name}'"
                    + did_you_mean(name, manifest.benchmarks)
                )
            manifest.change(name, "paper")
    _check_named(manifest, path)
    _check_published(manifest)


def _check_named(manifest: Manifest, path: Path) -> None:
    """Refuse benchmarks that others name but nobody defines."""
    for name, benchmark in manifest.benchmarks.items():
        named = [("after", other) for other in benchmark.after]
        named += [("with_levels", benchmark.with_levels)] if benchmark.with_levels else []
        if rungs := benchmark.ladder:
            named += [("ladder", other) for other in (*rungs.cheap, rungs.top1)]
        for key, other in named:
            if other not in manifest.benchmarks:
                raise UserError(
                    f"{path.name}.{name}.{key}: no benchmark '{other}'"
                    + did_you_mean(other, manifest.benchmarks)
                )


def _check_published(manifest: Manifest) -> None:
    """Refuse groups and protocols that the published rows and effects name but nobody defines."""
    known = {*(b.group for b in manifest.benchmarks.values())}
    known |= {protocol.group for protocol in manifest.protocols.values()}
    for effect in manifest.effects:
        for group in effect.groups:
            if group not in known:
                raise UserError(
                    f"effect of {', '.join(effect.fields)}: no group '{group}'"
                    + did_you_mean(group, known)
                )
    for reference in manifest.references:
        if reference.protocol not in manifest.protocols:
            where = f"published row {reference.method} {reference.model} {reference.value}"
            raise UserError(
                f"{where}: no protocol '{reference.protocol}'"
                + did_you_mean(reference.protocol, manifest.protocols)
            )
