"""What each tracking client stored offline, read back: the points of a run, in order, with their figures."""

import json
import sqlite3
import struct
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

Points = list[tuple[int, dict[str, float]]]


def in_wandb(folder: Path) -> dict[str, tuple[Points, dict[str, Any]]]:
    """Return run name -> its points and summary, over all segments of an offline folder."""
    pb: Any = import_module("wandb.proto.wandb_internal_pb2")

    found: dict[str, tuple[Points, dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*.wandb")):
        points: Points = []
        summary: dict[str, Any] = {}
        name = ""
        for data in _records(path.read_bytes()):
            record = pb.Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = f"{record.run.run_group}/{record.run.display_name}"
            elif kind == "history":
                row = {
                    "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                    for i in record.history.item
                }
                step = row.get("_step", record.history.step.num)
                points.append((step, {k: v for k, v in row.items() if not k.startswith("_")}))
            elif kind == "summary":
                summary |= {
                    "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                    for i in record.summary.update
                }
        before = found.get(name, ([], {}))
        found[name] = (before[0] + points, before[1] | summary)
    return found  # fmt: skip


def _records(data: bytes) -> list[bytes]:
    """Return the records of a LevelDB log: blocks of 32 KiB, records cut into fragments."""
    found, part, at = [], b"", 7
    while at + 7 <= len(data):
        if (32768 - at % 32768) < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(part)
            part = b""
    return found


def in_mlflow(path: Path) -> dict[str, tuple[Points, dict[str, Any]]]:
    """Return the same for a database of MLflow's; a figure twice at one step is an error."""
    found: dict[str, tuple[Points, dict[str, Any]]] = {}
    with closing(sqlite3.connect(path)) as store:
        runs = store.execute("select run_uuid, name, status from runs").fetchall()
        for run, name, status in runs:
            tags = dict(store.execute("select key, value from tags where run_uuid = ?", [run]))
            params = dict(store.execute("select key, value from params where run_uuid = ?", [run]))
            values: dict[int, dict[str, float]] = {}
            result: dict[str, Any] = {"status": status, "params": params}
            rows = store.execute("select step, key, value from metrics where run_uuid = ?", [run])
            for step, key, value in rows:
                place = result if key.startswith("result/") else values.setdefault(step, {})
                assert key not in place, f"{key}: twice at step {step}"
                place[key] = value
            found[f"{tags['mimbench.group']}/{name}"] = sorted(values.items()), result
    return found


def in_trackio(path: Path) -> dict[str, tuple[Points, dict[str, Any]]]:
    """Return the same for a project's file of Trackio's."""
    found: dict[str, tuple[Points, dict[str, Any]]] = {}
    with closing(sqlite3.connect(path)) as store:
        configs = dict(store.execute("select run_id, config from configs"))
        rows = store.execute("select run_id, run_name, step, metrics from metrics order by id")
        for run, name, step, stored in rows.fetchall():
            group, figures = json.loads(configs[run])["_Group"], json.loads(stored)
            points, result = found.setdefault(f"{group}/{name.rpartition(' ')[0]}", ([], {}))
            if any(key.startswith("result/") for key in figures):
                result |= figures
            else:
                points.append((step, figures))
    return found
