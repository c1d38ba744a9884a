"""Result folders of the demo at commit b615538, before tasks returned a typed result, stay readable.

The archive is what `mimbench bundle` of that commit made of five of the demo's seven columns.
"""

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mimbench.benchmarks.manifest import load_manifest
from mimbench.benchmarks.records import files_of, pictures_of, statistics_of
from mimbench.results import legacy
from mimbench.results.record import read_result
from mimbench.scores.outcomes import TOLERANCE
from mimbench.suite.report.page import make_report
from mimbench.suite.sharing.bundle import write_bundle
from mimbench.suite.sharing.verifying import verify_bundle
from mimbench.tables.comparison import choose, compare_measured
from mimbench.tables.formats import as_json, terminal
from mimbench.tables.table import make_table, read_results, read_results_with_folders

ARCHIVE = Path(__file__).parent / "golden" / "results" / "demo-b615538.tar.gz"
COMPARED = {
    "ade-upernet-160": (1.86, 1.47, 2.26),
    "coco-vitdet-12": (-2.50, -4.66, -0.20),
    "in-ft-hpm": (26.00, 22.80, 29.20),
    "in-knn": (37.80, 34.00, 41.30),
    "in-shot-5": (24.70, 22.76, 26.72),
}
"""What `compare hpm-demo random-96x4-8` printed then: difference and interval."""


def within(old: object, new: object) -> bool:
    """Return whether all that was said then is still said; new fields may stand beside.

    Only the star is given by another rule since: to all that nothing tells from the best.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return all(k in new and within(v, new[k]) for k, v in old.items() if k != "best")
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(within, old, new))
    return old == new


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root


def test_the_table_is_the_same_digit_for_digit(old: Path) -> None:
    table = make_table(read_results(old / "runs"), load_manifest(old / "benchmarks.yaml"))
    then = json.loads((old / "table.json").read_text(encoding="utf-8"))
    assert within(then, json.loads(as_json(table))), "a value of the old table is gone or another"
    shown = terminal(table)
    assert [word for word in ("62.80", "77.80", "36.38", "26.66") if word not in shown] == []


def test_outcomes_give_the_metrics_and_the_comparisons(old: Path) -> None:
    tasks = load_manifest().tasks
    runs = read_results_with_folders(old / "runs")
    for folder, result in runs:
        assert result.format == legacy.FORMAT
        kept = statistics_of(folder, result, tasks)
        # the interval of top-5 is newer than these results
        assert kept.keys() - {"top5"} == result.intervals.keys() >= {result.main_metric}
        for metric, statistic in kept.items():
            assert statistic.whole() == pytest.approx(result.metrics[metric], abs=TOLERANCE)
            if metric not in result.intervals:
                continue
            # the resampling is another since: Wilson's interval, more resamples of AP
            assert statistic.interval().half == pytest.approx(result.intervals[metric], abs=0.3)
    a, b = (choose(runs, name) for name in ("hpm-demo", "random-96x4-8"))
    for benchmark, expected in COMPARED.items():
        pair = [[run for run in side if run[1].benchmark == benchmark] for side in (a, b)]
        compared = compare_measured(pair[0], pair[1], tasks)
        assert compared is not None
        found = compared[1]
        shown = (found.difference, found.sampling.low, found.sampling.high)
        assert round(shown[0], 2) == expected[0]
        assert shown[1:] == pytest.approx(expected[1:], abs=0.3)


def test_the_report_shows_classes_curves_and_what_the_tasks_said(old: Path) -> None:
    html = make_report(old / "runs", load_manifest(old / "benchmarks.yaml"), compute=False)
    for text in ('title="0">0<', "box AP", "IoU", "micro_batch: 8", "62.80"):
        assert text in html
    assert html.count("<svg") >= 6


def test_the_old_bundle_is_verified_and_a_new_one_made(old: Path, tmp_path: Path) -> None:
    verdict = verify_bundle(ARCHIVE, benchmarks=old / "benchmarks.yaml")
    assert verdict.faults == ()
    write_bundle(old / "runs", tmp_path / "new.tar.gz", old / "benchmarks.yaml")
    again = verify_bundle(tmp_path / "new.tar.gz", benchmarks=old / "benchmarks.yaml")
    assert again.faults == ()


def test_old_detections_are_drawn_where_the_data_still_is(old: Path, tmp_path: Path) -> None:
    [source] = (old / "runs").glob("*-hpm-demo/coco-vitdet-12.demo")
    written = json.loads((source / "result.json").read_text())
    written["extra"]["data"] = str(tmp_path / "coco")
    run = tmp_path / "run"
    for folder in (run, tmp_path / "coco" / "annotations", tmp_path / "coco" / "val2017"):
        folder.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(written))
    result = read_result(run / "result.json")
    assert list(pictures_of(run, result)) == []
    found = [{"image_id": 3, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.9}]
    (run / "detections.json").write_text(json.dumps(found))
    assert list(pictures_of(run, result)) == [], "the data is gone"
    truth = {
        "images": [{"id": 3, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(json.dumps(truth))
    Image.new("RGB", (32, 32)).save(tmp_path / "coco/val2017/a.png")
    [(_, caption)] = pictures_of(run, result)
    assert caption == "boxes above 0.5: 1"
    assert [path.name for path in files_of(run, result)] == ["detections.json"]
