"""Edits of a bundle: everything that somebody may change in one, by kind, and how it is sealed again."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mimbench.benchmarks.manifest import load_manifest
from mimbench.results.record import checksum, protocol_digest, read_result
from mimbench.suite.sharing.verifying import BENCHMARKS, HEAD, TABLE
from mimbench.system.errors import UserError
from mimbench.tables.formats import as_json
from mimbench.tables.table import make_table

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Edit:
    """One change, and whether content alone can tell."""

    name: str
    change: Change
    beyond: bool = False
    """Nothing in a bundle contradicts it once everything is sealed again: only its digest or signature."""


def run(root: Path, name: str = "good", benchmark: str = "in-knn") -> Path:
    """Return a run's folder."""
    return next((root / "runs").glob(f"*-{name}")) / benchmark


def result(change: Callable[[dict[str, Any]], object], name: str = "good") -> Change:
    """Return what changes a result.json."""

    def edit(root: Path) -> None:
        path = run(root, name) / "result.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value, indent=2))

    return edit


def run_config(change: Callable[[dict[str, Any]], object], name: str = "good") -> Change:
    """Return what changes a run's config.yaml."""

    def edit(root: Path) -> None:
        path = run(root, name) / "config.yaml"
        value = yaml.safe_load(path.read_text())
        change(value)
        path.write_text(yaml.safe_dump(value))

    return edit


def outcomes(change: Callable[[dict[str, Any]], object]) -> Change:
    """Return what changes a run's outcomes."""

    def edit(root: Path) -> None:
        path = run(root) / "outcomes.0.npz"
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path, **arrays)

    return edit


def text(name: str, old: str, new: str) -> Change:
    """Return what replaces text in a file."""

    def edit(root: Path) -> None:
        found = (root / name).read_text()
        assert old in found
        (root / name).write_text(found.replace(old, new))

    return edit


def head(change: Callable[[dict[str, Any]], object]) -> Change:
    """Return what changes the list of files."""

    def edit(root: Path) -> None:
        value = json.loads((root / HEAD).read_text())
        change(value)
        (root / HEAD).write_text(json.dumps(value))

    return edit


def both(*changes: Change) -> Change:
    """Return several changes as one."""
    return lambda root: [change(root) for change in changes]


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets a nested field."""

    def change(found: dict[str, Any]) -> None:
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value

    return change


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    """Return what deletes a nested field."""

    def change(found: dict[str, Any]) -> None:
        for key in path[:-1]:
            found = found[key]
        del found[path[-1]]

    return change


def edits() -> Iterator[Edit]:
    """Yield every edit."""
    yield from _numbers()
    yield from _meaning()
    yield from _origin()
    yield from _outcomes()
    yield from _runs()
    yield from _beside()


def _numbers() -> Iterator[Edit]:
    for value in (99.0, 0.0, -1.0, 1e300, 79.9):
        yield Edit(f"metric {value}", result(put("metrics", "top1", value=value)))
    for value in (0.0, 0.01, 50.0):
        yield Edit(f"interval {value}", result(put("intervals", "top1", value=value)))
    yield Edit("interval removed", result(drop("intervals", "top1")))
    yield Edit("intervals removed", result(put("intervals", value={})))
    yield Edit("interval invented", result(put("intervals", "top3", value=0.1)))
    yield Edit("metric invented", result(put("metrics", "top3", value=99.0)))
    for value in (99.5, 0.0, 100.0):
        yield Edit(f"second metric {value}", result(put("metrics", "top5", value=value)))
    yield Edit("second metric removed", result(drop("metrics", "top5")))
    yield Edit("interval of the second metric", result(put("intervals", "top5", value=0.01)))
    yield Edit("interval of the second metric removed", result(drop("intervals", "top5")))
    yield Edit("metric removed", result(drop("metrics", "top1")))
    yield Edit("metrics removed", result(put("metrics", value={})))
    yield Edit(
        "metric renamed", result(lambda r: r["metrics"].update(acc=r["metrics"].pop("top1")))
    )
    yield Edit(
        "main metric",
        both(result(put("main_metric", value="top5")), result(put("metrics", "top5", value=99.0))),
    )
    for value in ("99", None, [99.0], {"a": 1}, True):
        yield Edit(
            f"metric of kind {type(value).__name__}", result(put("metrics", "top1", value=value))
        )
    yield Edit("table value", text(TABLE, "in-knn", "in-nn"))
    yield Edit("draws", result(put("draws", value=5)), beyond=True)
    yield Edit("lower is better", result(put("lower_is_better", value=True)), beyond=True)


def _meaning() -> Iterator[Edit]:
    fields = {
        "benchmark": "in-ft-hpm",
        "task": "other_task",
        "version": 2,
        "profile": "demo",
        "protocol": "0" * 10,
    }
    for key, value in fields.items():
        yield Edit(f"result {key}", result(put(key, value=value)))
    for key in ("benchmark", "task", "profile"):
        yield Edit(f"config.yaml {key}", run_config(put(key, value=fields[key])))
        yield Edit(
            f"config.yaml and result {key}",
            both(run_config(put(key, value=fields[key])), result(put(key, value=fields[key]))),
        )
    for key, value in {
        "k": 10,
        "temperature": 0.1,
        "dataset": "sample-classification",
        "crop": 384,
    }.items():
        yield Edit(f"config {key}", result(put("config", key, value=value)))
        yield Edit(f"config {key} and protocol", _redigested(put(key, value=value)))
    for key, value in {"k": 10, "temperature": 0.1}.items():
        yield Edit(f"config.yaml config {key}", run_config(put("config", key, value=value)))
        yield Edit(
            f"order, config and protocol {key}",
            both(run_config(put("config", key, value=value)), _redigested(put(key, value=value))),
        )
    yield Edit("config.yaml data set", run_config(put("dataset", value="sample-classification")))
    yield Edit(
        "data set everywhere",
        both(
            run_config(put("dataset", value="sample-classification")),
            _redigested(put("dataset", value="sample-classification")),
        ),
    )
    yield Edit("config emptied", result(put("config", value={})))
    yield Edit("config.yaml config emptied", run_config(put("config", value={})))
    yield Edit("status", result(put("status", value="failed")))
    yield Edit(
        "failed without metrics",
        result(lambda r: r.update(status="failed", metrics={}, intervals={}, error="x")),
        beyond=True,
    )
    yield Edit(
        "overrides of config.yaml", run_config(put("overrides", value={"in-knn": {"k": 10}}))
    )
    yield Edit("manifest title", text(BENCHMARKS, "title: k-NN", "title: Linear"))
    yield Edit(
        "manifest data set", text(BENCHMARKS, "dataset: imagenet", "dataset: sample-classification")
    )
    yield Edit("manifest recipe", text(BENCHMARKS, "k: 20", "k: 10"))
    yield Edit("manifest task", text(BENCHMARKS, "task: toy_task", "task: other_task"))
    yield Edit("manifest benchmark renamed", text(BENCHMARKS, "  in-knn:", "  in-nn:"))
    yield Edit("published value", text("reference.yaml", "value: 76.1", "value: 50.1"))
    yield Edit("published method", text("reference.yaml", "method: DINO", "method: iBOT"))
    yield Edit("published source", text("reference.yaml", "DINO README", "nobody"))
    yield Edit(
        "published rows removed",
        text(
            "reference.yaml",
            "  - {method: DINO, model: B/16, protocol: in-knn, metric: top1, value: 76.1, source: DINO README, grade: R}\n",
            "",
        ),
        beyond=True,
    )


def _redigested(change: Callable[[dict[str, Any]], None]) -> Change:
    def edit(found: dict[str, Any]) -> None:
        change(found["config"])
        found["protocol"] = protocol_digest(found["task"], found["version"], found["config"])

    return result(edit)


def _origin() -> Iterator[Edit]:
    for key, value in {"digest": "f" * 64, "name": "other", "which": "teacher"}.items():
        yield Edit(
            f"weights {key}", result(put("weights", key, value=value)), beyond=key == "which"
        )
    for key, value in {"format": "mae", "model": "L/16"}.items():
        yield Edit(f"weights {key}", result(put("weights", key, value=value)), beyond=True)
    for key, value in {"weights_digest": "f" * 64, "name": "other", "which": "teacher"}.items():
        yield Edit(f"config.yaml {key}", run_config(put(key, value=value)))
    yield Edit("weights removed", result(put("weights", value={})))
    yield Edit(
        "digest everywhere but the folder",
        both(
            run_config(put("weights_digest", value="f" * 64)),
            result(put("weights", "digest", value="f" * 64)),
        ),
    )
    yield Edit("seed of the result", result(put("provenance", "seed", value=3)))
    yield Edit("seed of config.yaml", run_config(put("config", "seed", value=3)))
    yield Edit(
        "seed of both",
        both(
            result(put("provenance", "seed", value=3)), run_config(put("config", "seed", value=3))
        ),
    )
    said = {"commit": "dead", "dirty": True, "python": "2.7", "device": "H100", "host_cores": 1, "seconds": 1.0,
            "peak_memory_mb": 1.0, "argv": ["x"], "libraries": {}}  # fmt: skip
    for key, value in said.items():
        yield Edit(f"provenance {key}", result(put("provenance", key, value=value)), beyond=True)
    for key, value in {
        "notes": {"a": 1},
        "data": "elsewhere",
        "error": "x",
        "overrides": {"in-knn": {"k": 1}},
    }.items():
        yield Edit(f"result {key}", result(put(key, value=value)), beyond=key != "overrides")
    yield Edit(
        "config.yaml checkpoint", run_config(put("checkpoint", value="/other.pth")), beyond=True
    )
    yield Edit("config.yaml heads", run_config(put("num_heads", value=3)), beyond=True)


def _outcomes() -> Iterator[Edit]:
    yield Edit("labels flipped", outcomes(lambda a: a["labels"].__setitem__(slice(0, 100), 3)))
    yield Edit(
        "predictions improved",
        outcomes(lambda a: a["top5"].__setitem__((slice(None), 0), a["labels"])),
    )
    yield Edit(
        "half of the images", outcomes(lambda a: a.update({k: v[:500] for k, v in a.items()}))
    )
    yield Edit(
        "images twice",
        outcomes(lambda a: a.update({k: np.concatenate([v, v]) for k, v in a.items()})),
    )
    yield Edit("no images", outcomes(lambda a: a.update({k: v[:0] for k, v in a.items()})))
    yield Edit("one image", outcomes(lambda a: a.update({k: v[:1] for k, v in a.items()})))
    for key in ("images", "labels", "top5"):
        yield Edit(f"outcomes without {key}", outcomes(lambda a, k=key: a.pop(k)))
        yield Edit(
            f"{key} of another shape", outcomes(lambda a, k=key: a.update({k: a[k][..., None]}))
        )
        yield Edit(
            f"{key} as text",
            outcomes(lambda a, k=key: a.update({k: a[k].astype(str)})),
            beyond=key == "images",
        )
        yield Edit(
            f"{key} as objects", outcomes(lambda a, k=key: a.update({k: a[k].astype(object)}))
        )
        yield Edit(f"{key} huge", outcomes(lambda a, k=key: a.update({k: np.zeros((1, 1))})))
    yield Edit(
        "images renamed",
        outcomes(lambda a: a.update(images=np.char.add(a["images"], "x"))),
        beyond=True,
    )
    yield Edit("outcomes forgotten", result(put("outcomes", value=[])))
    yield Edit(
        "outcomes of no kind",
        result(lambda r: r["outcomes"][0].update(kind="mimbench.scores.hits:Nothing")),
    )
    yield Edit(
        "outcomes of a class of Python", result(lambda r: r["outcomes"][0].update(kind="os:system"))
    )
    yield Edit(
        "outcomes of another file",
        result(lambda r: r["outcomes"][0].update(file="../../in-ft-hpm/outcomes.0.npz")),
    )
    yield Edit(
        "outcomes of an absolute file",
        result(lambda r: r["outcomes"][0].update(file="/etc/passwd")),
    )
    yield Edit("outcomes deleted", lambda root: (run(root) / "outcomes.0.npz").unlink())
    yield Edit("outcomes emptied", lambda root: (run(root) / "outcomes.0.npz").write_bytes(b""))
    yield Edit(
        "outcomes of the other run",
        lambda root: shutil.copy(run(root, "bad") / "outcomes.0.npz", run(root)),
    )


def _runs() -> Iterator[Edit]:
    yield Edit("run removed", lambda root: shutil.rmtree(run(root).parent), beyond=True)
    yield Edit(
        "cell removed", lambda root: shutil.rmtree(run(root, benchmark="in-ft-hpm")), beyond=True
    )
    yield Edit("every run removed", lambda root: shutil.rmtree(root / "runs"))
    yield Edit(
        "run renamed", lambda root: run(root).parent.rename(root / "runs" / "0123456789ab-good")
    )
    yield Edit("cell renamed", lambda root: run(root).rename(run(root).with_name("in-nn")))
    yield Edit(
        "run copied",
        lambda root: shutil.copytree(run(root).parent, root / "runs" / "0123456789ab-better"),
    )
    yield Edit(
        "cell copied to another benchmark",
        lambda root: shutil.copytree(run(root), run(root).with_name("in-cp")),
    )
    yield Edit(
        "cell copied as a seed",
        lambda root: shutil.copytree(run(root), run(root).with_name("in-knn.seed1")),
    )
    yield Edit(
        "runs exchanged",
        lambda root: _exchange(run(root) / "result.json", run(root, "bad") / "result.json"),
    )
    yield Edit("checkpoints exchanged", lambda root: _exchange(run(root), run(root, "bad")))
    yield Edit(
        "config.yaml exchanged",
        lambda root: _exchange(run(root) / "config.yaml", run(root, "bad") / "config.yaml"),
    )
    yield Edit("config.yaml deleted", lambda root: (run(root) / "config.yaml").unlink())
    yield Edit("result deleted", lambda root: (run(root) / "result.json").unlink())
    yield Edit("result deep", lambda root: (run(root) / "result.json").write_text("[" * 100_000))
    yield Edit("result incomplete", result(drop("weights")))
    yield Edit("result no object", lambda root: (run(root) / "result.json").write_text("[]"))
    yield Edit(
        "config.yaml a bomb",
        lambda root: (run(root) / "config.yaml").write_text(
            "a: &a [1]\n" + "".join(f"b{i}: &a [*a, *a, *a, *a]\n" for i in range(30))
        ),
    )
    yield Edit(
        "log changed", lambda root: (run(root) / "metrics.jsonl").write_text("{}\n"), beyond=True
    )


def _exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _beside() -> Iterator[Edit]:
    yield Edit("file added", lambda root: (root / "more.txt").write_text("x"))
    yield Edit("file added to a run", lambda root: (run(root) / "more.txt").write_text("x"))
    yield Edit(
        "folder added",
        lambda root: shutil.copytree(run(root), root / "runs" / "deep" / "er" / "in-knn"),
    )
    yield Edit("table removed", lambda root: (root / TABLE).unlink())
    yield Edit("table emptied", lambda root: (root / TABLE).write_text(""))
    yield Edit("manifest removed", lambda root: (root / BENCHMARKS).unlink())
    yield Edit("manifest emptied", lambda root: (root / BENCHMARKS).write_text(""))
    yield Edit("reference removed", lambda root: (root / "reference.yaml").unlink())
    for name in ("/etc/passwd", "../reference.yaml", "runs/x.yaml", "nothing.yaml", 3, ["a"]):
        yield Edit(
            f"reference file {name}",
            text(
                BENCHMARKS, "reference_file: reference.yaml", f"reference_file: {json.dumps(name)}"
            ),
        )
    yield Edit("environment", head(put("environment", "commit", value="dead")), beyond=True)
    yield Edit("version", head(put("version", value=3)))
    yield Edit("list emptied", head(put("files", value={})))
    yield Edit("list no mapping", head(put("files", value=["a"])))


def seal(root: Path, *, whole: bool) -> None:
    """Make a changed bundle look as if it was packed like this.

    Args:
        root: The unpacked bundle.
        whole: Also give results their checksums and write the table that now follows.
    """
    if whole:
        _reseal(root)
    files = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    value = json.loads((root / HEAD).read_text())
    if isinstance(value.get("files"), dict) and value["files"]:
        value["files"] = {
            n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items() if n != HEAD
        }
        (root / HEAD).write_text(json.dumps(value))


def _reseal(root: Path) -> None:
    results = []
    try:
        for path in sorted((root / "runs").glob("*/*/result.json")):
            value = json.loads(path.read_text())
            value["checksum"] = checksum(value)
            path.write_text(json.dumps(value, indent=2))
            results.append(read_result(path))
        table = as_json(make_table(results, load_manifest(root / BENCHMARKS)))
        if (root / TABLE).is_file():
            (root / TABLE).write_text(table)
    except (UserError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return
