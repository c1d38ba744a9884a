"""Make the ladder's public table from VisBench's source archive: `python docs/tools/visbench_table.py FOLDER`.

FOLDER is `results/` of an unpacked visbench-*.tar.gz. One line for each board and seed, one column for
each backbone; boards without training have one line. Records of the wrong crop are left out by the reader.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

from mimbench.tables.foreign.kinds import parse_file
from mimbench.tables.foreign.rows import ForeignRow

TARGET = (
    Path(__file__).resolve().parents[2]
    / "mimbench"
    / "tables"
    / "ladder"
    / "public"
    / "visbench.csv"
)
MAIN = {
    "classification": "top1", "corner": "corner_correlation", "correspondence": "recall@5px",
    "depth": "d1", "detection": "map_50_95", "edge": "edge_correlation",
    "fine_grained_classification": "top1", "generic_segmentation": "iou",
    "instance_segmentation": "mask_map_50_95", "keypoints2d": "keypoint_correlation",
    "occlusion_edge": "occlusion_edge_correlation", "orientation": "d1",
    "relative_pose": "rotation_acc@30deg", "retrieval": "mAP", "scene_classification": "top1",
    "scene_parsing": "miou", "semantic_segmentation": "miou", "similarity": "accuracy",
    "surface_normal": "d1", "vehicle_classification": "top1",
}  # fmt: skip
HEAD = """\
# {count} boards x {models} backbones of VisBench {version}: results/corpus and results/controls/seeds of its source
# archive on PyPI, MIT License, Copyright (c) 2026 Turhan Can Kargin; see LICENSE.visbench beside this file.
# Nine timm backbones were first published on a frame that was cropped twice; these are the corrected records.
"""


def rows_of(folder: Path, version: str) -> list[ForeignRow]:
    """Return the main numbers: five seeds where a board trains, else the one run of the corpus."""
    files = [
        folder / "corpus" / "visbench.jsonl",
        *sorted((folder / "controls").glob("*_seeds.jsonl")),
    ]
    files += sorted((folder / "controls" / "seeds").glob("*.jsonl"))
    source = f"VisBench {version}"
    found = [
        [r for r in parse_file(f, "visbench", source) if MAIN[r.benchmark] == r.metric]
        for f in files
    ]
    repeated = {row.benchmark for rows in found[1:] for row in rows}
    kept = [row for row in found[0] if row.benchmark not in repeated]
    return kept + [row for rows in found[1:] for row in rows]


def main(folder: Path, version: str) -> None:
    """Write the table."""
    lines: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    rows = rows_of(folder, version)
    models = sorted({row.model for row in rows})
    for row in rows:
        key = (row.benchmark, row.metric, row.dataset, row.protocol, str(row.seed))
        if row.model in lines[key]:
            raise SystemExit(f"{row.model} has two numbers in {key}")
        lines[key][row.model] = row.value
    boards = {key[0] for key in lines}
    if boards != set(MAIN):
        raise SystemExit(f"boards differ: {boards ^ set(MAIN)}")
    with TARGET.open("w", encoding="utf-8", newline="") as file:
        file.write(HEAD.format(count=len(boards), models=len(models), version=version))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["benchmark", "metric", "dataset", "protocol", "seed", *models])
        for key in sorted(lines):
            writer.writerow([*key, *(f"{lines[key][model]:.5g}" for model in models)])


if __name__ == "__main__":
    root = Path(sys.argv[1])
    main(root, root.resolve().parent.name.removeprefix("visbench-"))
