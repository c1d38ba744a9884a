"""Ask every task, in a process of its own, what a recipe would run: `python -m mimbench.benchmarks.preflight`.

Tasks import detectron2, mmsegmentation or faiss; the runner must not, so it asks a child once
before anything expensive starts. A missing package or data set becomes the cell's problem.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.benchmarks.locations import count_images, data_name, known_faults, locate
from mimbench.benchmarks.run_config import protocol_config, task_protocol
from mimbench.data.digest import DataDigest, Parts, data_digest, read_parts
from mimbench.system.config import from_mapping, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import write_json
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser
from mimbench.system.source import ROOT
from mimbench.task import Task, load_task, traits_of
from mimbench.vit.footprint import Footprint, trained

if TYPE_CHECKING:
    from mimbench.model import Spec

# what an incompatible binary package raises while it is being imported
IMPORT_FAULTS = (ImportError, OSError, RuntimeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class RecipeQuery:
    """One recipe to check."""

    benchmark: str
    task: str
    dataset: str
    config: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Which of the recipe's values the user said."""
    needs_data: bool = True
    """False: only resolve the recipe, wherever the data may be."""


@dataclass(frozen=True, kw_only=True)
class RecipeReport:
    """What the task says about the recipe."""

    problem: str = ""
    """Why the recipe cannot run here, and how to fix it."""
    version: int = 0
    main_metric: str = ""
    protocols: tuple[str, ...] = ()
    """For each architecture that was asked about: a size's own value may be spelled out or not."""
    canonical: Mapping[str, Any] = field(default_factory=dict)
    """What the protocol is a digest of, as the configuration says it."""
    dataset: str = ""
    """The name under which results remember the data."""
    data_digest: DataDigest = field(default_factory=DataDigest)
    resolved: tuple[Mapping[str, Any], ...] = ()
    """Fields that follow from the model's size, for each architecture that was asked about."""
    config: Mapping[str, Any] = field(default_factory=dict)
    rehearsal: Mapping[str, Any] = field(default_factory=dict)
    """The recipe with next to no training, where the task offers one."""
    effort: int = 0
    """How heavy the task is; 0 is light."""
    uses: tuple[str, ...] = ()
    """Benchmarks whose finished run it takes something from: they come first."""
    labelled_images: bool = False
    """The data is a folder of images by class."""
    free_fields: tuple[str, ...] = ()
    """Fields of the configuration that move no number."""
    nearby: bool = False
    """It declares neighbouring settings: its recipe gap can be measured."""
    footprints: tuple[Footprint, ...] = ()
    """What a run takes at least, for each architecture that was asked about."""


def preflight(
    queries: Sequence[RecipeQuery],
    data: Path | None,
    *,
    own: bool = False,
    specs: "Sequence[Spec]" = (),
    models: Sequence[str] = (),
) -> list[RecipeReport]:
    """Return one report for each query, from a child process.

    Args:
        queries: Recipes to check.
        data: The user's --data.
        specs: Architectures that the recipes will run on.
        models: The same by published names such as `B/16`; others are passed over.
        own: The data is the user's own in a published layout: it is not held against the
            published counts, and its results never stand beside published ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answers = Path(folder) / "queries.json", Path(folder) / "reports.json"
        write_json(
            asked,
            {
                "data": str(data) if data else None,
                "own": own,
                "queries": to_mapping(list(queries)),
                "specs": [spec.to_json() for spec in specs],
                "models": list(models),
            },
        )
        command = [sys.executable, "-m", "mimbench.benchmarks.preflight", str(asked), str(answers)]
        code = subprocess.run(command, env=child_environment(), stdout=2, check=False).returncode
        if code:
            tasks = ", ".join(sorted({q.task for q in queries}))
            raise UserError(
                f"importing the tasks {tasks} broke (exit code {code}); run: python -m mimbench doctor"
            )
        return [from_mapping(RecipeReport, f) for f in json.loads(answers.read_text())]


def child_environment() -> dict[str, str]:
    """Return the environment in which children find this source tree's modules and no others."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # from 3.11 on: no module of the current folder hides one of ours
    safe = {"PYTHONSAFEPATH": "1"}
    return {**os.environ, **safe, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def inspect_recipe(
    query: RecipeQuery,
    data: Path | None,
    *,
    own: bool = False,
    specs: "Sequence[Spec]" = (),
    read: Callable[[Parts], DataDigest] = read_parts,
) -> RecipeReport:
    """Return what the recipe's task says, in this process.

    Args:
        query: The recipe.
        data: The user's --data.
        own: The data is the user's own.
        specs: Architectures that the recipe will run on.
        read: Reads the data for its digest.
    """
    try:
        task = load_task(query.task)
        traits = traits_of(task)
        folder = locate(query.dataset, data) if query.needs_data else Path()
        where = f"{query.benchmark}.config"
        config = from_mapping(task.Config, {**query.config, "data": str(folder)}, where)
        if query.needs_data and not own and (found := known_faults(query.dataset, folder)):
            return RecipeReport(
                problem="; ".join(found) + "; if this is data of your own, say --own-data"
            )
    except UserError as error:
        return RecipeReport(problem=str(error))
    except IMPORT_FAULTS as error:
        return RecipeReport(
            problem=f"task {query.task} cannot be imported ({error}); run: python -m mimbench doctor"
        )
    plain = to_mapping(config)
    found = DataDigest()
    if query.needs_data:
        try:
            found = data_digest(folder, plain, whole=traits.whole_folder, read=read)
        except UserError as error:
            return RecipeReport(problem=str(error))
    dataset = data_name(query.dataset, own=own, digest=found.digest)
    # where every file is data, most files are images
    images = found.files if traits.whole_folder else 0
    if query.needs_data and traits.labelled_images:
        images = count_images(folder)
    try:
        return _report(query, task, config, dataset, specs, found, images)
    except UserError as error:
        # a recipe of one family refuses the others
        return RecipeReport(problem=str(error))


def _report(
    query: RecipeQuery,
    task: Task,
    config: Any,
    dataset: str,
    specs: "Sequence[Spec]",
    found: DataDigest,
    images: int,
) -> RecipeReport:
    """Return what a task says of a configuration that can run."""
    traits = traits_of(task)
    estimate = traits.footprint or trained
    return RecipeReport(
        version=task.VERSION,
        main_metric=task.MAIN_METRIC,
        protocols=tuple(
            task_protocol(query.task, task.VERSION, dataset, config, traits, spec, query.overrides)
            for spec in specs
        ),
        canonical=protocol_config(dataset, config, traits),
        dataset=dataset,
        data_digest=found,
        resolved=tuple(to_mapping(traits.resolved(s, config)) for s in specs)
        if traits.resolved
        else (),
        config=to_mapping(config),
        rehearsal=to_mapping(traits.rehearsal(config)) if traits.rehearsal else {},
        effort=traits.effort,
        uses=traits.uses(config) if traits.uses else (),
        labelled_images=traits.labelled_images,
        free_fields=tuple(sorted(traits.free_fields)),
        nearby=traits.nearby is not None,
        footprints=tuple(estimate(spec, config, images) for spec in specs),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Read queries from one JSON file, write reports to another."""
    parser = Parser(prog="python -m mimbench.benchmarks.preflight")
    parser.add_argument("queries", type=Path, help="JSON file to read")
    parser.add_argument("reports", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    configure_logging()
    asked = json.loads(args.queries.read_text())
    data = Path(asked["data"]) if asked["data"] else None
    queries = [from_mapping(RecipeQuery, q) for q in asked["queries"]]
    # the parent asks without torch
    from mimbench.networks.kinds import spec_from_json  # noqa: PLC0415
    from mimbench.vit.named import published_spec  # noqa: PLC0415

    specs: list[Spec] = [spec_from_json(spec) for spec in asked["specs"]]
    specs += [spec for model in asked["models"] if (spec := published_spec(model))]
    # benchmarks share their data: each part of it is read once
    read = cache(read_parts)
    found = [inspect_recipe(q, data, own=asked["own"], specs=specs, read=read) for q in queries]
    write_json(args.reports, to_mapping(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
