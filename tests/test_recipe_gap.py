"""The recipe gap: neighbouring settings measured from the bank, beside a result that they never move."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import mimbench
from knn import classify
from mimbench.benchmarks.manifest import load_manifest
from mimbench.benchmarks.nearby import measure_gap
from mimbench.benchmarks.run_config import task_protocol
from mimbench.commands import run as run_command
from mimbench.features.nearby import counts_nearby, sizes_nearby
from mimbench.results.gap import GAP_FILE, Gap, Nearby, write_gap
from mimbench.results.record import Result, read_result, write_result
from mimbench.sample import generate
from mimbench.sample.store import default_root
from mimbench.scores.recipes import paired_gap
from mimbench.suite.running import gaps
from mimbench.suite.running.launch import Slot
from mimbench.suite.sharing.bundle import write_archive, write_bundle
from mimbench.suite.sharing.unpacking import unpack
from mimbench.suite.sharing.verifying import verify_bundle
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.tables import comparison
from mimbench.tables.comparison import choose, describe_pair, describe_published
from mimbench.tables.formats import FORMATS, terminal
from mimbench.tables.rows import Value
from mimbench.tables.table import (
    make_table,
    mean_gap,
    read_results,
    read_results_with_folders,
)
from mimbench.tables.ties import ties
from mimbench.task import load_task, traits_of
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.light_cells import cell
from tests.support.results_folder import write_manifest, write_run

KNN = {"k": [3], "main_k": 3, "choices": ["cls"], "image_size": 32, "resize": None}
MANIFEST = load_manifest()
DECLARING = sorted(
    name for name, b in MANIFEST.benchmarks.items() if traits_of(load_task(b.task)).nearby
)
BASE = VitSpec(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, patch_size=16, grid=(14, 14))


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VitWeights:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    spec = VitSpec(embed_dim=48, depth=2, num_heads=3, mlp_dim=96, patch_size=8, grid=(4, 4))
    return random_weights(spec, 0)


@pytest.fixture
def data(painted_images: Callable[..., Path], tmp_path: Path) -> Path:
    return painted_images(tmp_path / "data/imagenet", classes=4, train=12, val=8)


def run(weights: VitWeights, data: Path, out: Path, *, gap: bool = False, **more: Any) -> Result:
    found = mimbench.evaluate(
        weights,
        ["in-knn"],
        data=data,
        own_data=True,
        out=out,
        settings={"in-knn": {**KNN, **more}},
        device="cpu",
        gap=gap,
    )
    return found["in-knn"]


def folder_of(out: Path) -> Path:
    [path] = out.glob("*/*/result.json")
    return path.parent


def banks(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache/features").iterdir()))


def test_neighbours_are_what_runs_of_their_own_give_and_move_no_number(
    weights: VitWeights, data: Path, tmp_path: Path
) -> None:
    plain = run(weights, data, tmp_path / "runs")
    folder = folder_of(tmp_path / "runs")
    before, made = (folder / "result.json").read_bytes(), banks(tmp_path)
    with_gap = run(weights, data, tmp_path / "runs", gap=True)
    assert (folder / "result.json").read_bytes() == before, "the result is what it was"
    assert (with_gap.protocol, with_gap.metrics) == (plain.protocol, plain.metrics)
    gap = with_gap.gap
    assert gap is not None
    assert gap.complete
    assert list(gap.values) == [
        "avg features", "cls+avg features", "half of k", "twice k", "smaller images", "larger images",
    ]  # fmt: skip
    assert banks(tmp_path) == made + 4, (
        "two more sizes of two lists; pooling and k read what is there"
    )
    assert not list(folder.glob("gap-*")), "scratch folders are gone"
    alone = {
        "avg features": {"choices": ["avg"]},
        "twice k": {"k": [6], "main_k": 6},
        "smaller images": {"image_size": 24, "resize": 24},
    }
    for setting, change in alone.items():
        again = run(weights, data, tmp_path / f"alone/{setting}", **change)
        assert again.metrics["top1"] == gap.values[setting], setting
        assert again.protocol != plain.protocol
    changed = {n.setting: n.changed for n in gap.settings}
    assert changed["smaller images"] == {"image_size": 24, "resize": 24}
    assert changed["avg features"] == {"choices": ["avg"]}
    assert gap.low == min(gap.value, *gap.values.values())
    assert gap.spread == gap.high - gap.low


def declare(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    def nearby(spec: Any, config: Any, notes: Any) -> dict[str, Any]:
        return {name: how(config) if callable(how) else how for name, how in settings.items()}

    monkeypatch.setattr(classify, "TRAITS", replace(classify.TRAITS, nearby=nearby))


def test_a_neighbour_that_is_the_recipe_itself_gives_exactly_the_number(
    weights: VitWeights, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, same=lambda c: c, measured="cls_k3_T0.07_top1", absent="no_such_metric")
    found = run(weights, data, tmp_path / "runs", gap=True)
    assert found.gap is not None
    assert found.gap.values == {"same": found.metrics["top1"], "measured": found.metrics["top1"]}
    assert found.gap.spread == 0.0
    assert found.gap.skipped == {"absent": "the run has no metric 'no_such_metric'"}


def test_an_interrupted_gap_goes_on_and_an_impossible_setting_is_skipped(
    weights: VitWeights, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    real = classify.run

    def watched(w: Any, config: Any, out: Path) -> Any:
        ran.append(config.main_k)
        if config.main_k == 2 and ran.count(2) == 1:
            raise KeyboardInterrupt
        return real(w, config, out)

    def with_k(k: int) -> Callable[[Any], Any]:
        return lambda config: replace(config, k=(k,), main_k=k)

    run(weights, data, tmp_path / "runs")
    monkeypatch.setattr(classify, "run", watched)
    declare(monkeypatch, one=with_k(1), two=with_k(2), many=with_k(1000))
    folder = folder_of(tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        measure_gap(folder, weights)
    part = read_result(folder / "result.json").gap
    assert part is not None
    assert (list(part.values), part.complete) == (["one"], False)
    assert "gap" not in terminal(make_table(read_results(tmp_path / "runs"), MANIFEST))
    whole = measure_gap(folder, weights)
    assert whole is not None
    assert (list(whole.values), whole.complete) == (["one", "two"], True)
    assert ran == [1, 2, 2, 1000], "what was measured is not measured again"
    assert "1000" in whole.skipped["many"]


def test_the_demos_cells_have_gaps(weights: VitWeights, tmp_path: Path) -> None:
    """Its recipes on a small sample: every neighbour is a number, and one is what a run of its own gives."""
    generate(default_root(), train_per_class=8, val_per_class=2, train_scenes=2, val_scenes=1)

    def demo(name: str, *, gap: bool = False, **change: Any) -> Result:
        found = mimbench.evaluate(
            weights,
            [name],
            profile="demo",
            out=tmp_path / ("alone" if change else "runs"),
            settings={name: change} if change else None,
            device="cpu",
            gap=gap,
        )
        return found[name]

    logreg, dense = (demo(name, gap=True) for name in ("in-logreg", "ade-patch-knn"))
    assert logreg.gap is not None
    assert set(logreg.gap.values) == {
        "cls features", "cls+avg features", "C / 3.2", "C x 3.2", "smaller images", "larger images",
    }  # fmt: skip
    c = logreg.notes["avg"]["C"] * 10**0.5
    fixed = demo("in-logreg", choices=["avg"], grid={"lowest": c, "highest": c, "steps": 1})
    assert fixed.metrics["top1"] == logreg.gap.values["C x 3.2"]
    assert dense.gap is not None
    assert dense.gap.value == dense.metrics["miou"]
    assert {"half of k", "twice k", "other distance", "other interpolation"} & set(dense.gap.values)
    assert set(dense.gap.skipped) <= {"half of k"}
    text = terminal(make_table(read_results(tmp_path / "runs"), MANIFEST))
    assert text.count(" to ") >= 2
    assert f"gap {dense.gap.low:.2f} to {dense.gap.high:.2f}" in text


def test_a_module_that_takes_one_size_only_has_the_other_neighbours(
    weights: VitWeights, data: Path, tmp_path: Path
) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 32 * 32, 8)

        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[-1] == 32, "32 pixels only"
            return self.layer(images.flatten(1))

    found = mimbench.evaluate(
        Fixed(),
        ["in-knn"],
        data=data,
        own_data=True,
        out=tmp_path / "runs",
        settings={"in-knn": KNN},
        device="cpu",
        gap=True,
        name="fixed",
        vector=lambda module, images: module(images),
        image_size=32,
    )
    gap = found["in-knn"].gap
    assert gap is not None
    assert gap.complete
    assert {"half of k", "twice k"} <= set(gap.values)
    assert gap.skipped["larger images"].startswith("32 pixels only")


def test_a_gap_of_another_result_is_none_and_a_damaged_one_an_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", share=0.8)
    result = read_result(folder / "result.json")
    write_gap(folder, gap_for(result, twice=1.0))
    with_gap = read_result(folder / "result.json")
    assert with_gap.gap == gap_for(result, twice=1.0)
    before = (folder / "result.json").read_bytes()
    write_result(folder / "result.json", with_gap)
    assert (folder / "result.json").read_bytes() == before, "it is in no result's file"
    content = json.loads((folder / GAP_FILE).read_text())
    assert content["low"] == result.metrics["top1"]
    assert content["spread"] == pytest.approx(1.0)
    write_gap(folder, replace(gap_for(result, twice=1.0), built_on="of another result"))
    assert read_result(folder / "result.json").gap is None
    for damage in (
        "not json",
        "[]",
        json.dumps({**content, "high": 99.0}),
        json.dumps({**content, "settings": [{"setting": "x", "value": float("nan")}]}),
        json.dumps({**content, "format": 9}),
    ):
        (folder / GAP_FILE).write_text(damage)
        with pytest.raises(UserError, match="delete it and run again with --gap"):
            read_result(folder / "result.json")


def test_every_declared_neighbour_is_another_recipe_of_the_same_kind() -> None:
    assert {"in-knn", "in-logreg", "ade-patch-knn", "ade-dense-knn", "roxf"} <= set(DECLARING)
    vocabulary: set[str] = set()
    for name in DECLARING:
        dataset, recipe = MANIFEST.recipe(name, "paper")
        task = load_task(MANIFEST.benchmarks[name].task)
        config = from_mapping(task.Config, {**recipe, "data": "."}, name)
        traits = traits_of(task)
        found = (traits.nearby or (lambda *_: {}))(BASE, config, notes_of(config))
        main = task_protocol("t", 1, dataset, config, traits, BASE)
        for setting, other in found.items():
            if not isinstance(other, str):
                assert task_protocol("t", 1, dataset, other, traits, BASE) != main, (name, setting)
                assert (other.data, other.seed, other.machine) == (
                    config.data,
                    config.seed,
                    config.machine,
                )
        vocabulary |= set(found)
    assert {
        "smaller images", "larger images", "other interpolation", "avg features", "half of k",
        "C x 3.2", "other distance", "lower rate", "last epoch",
    } <= vocabulary  # fmt: skip


def notes_of(config: Any) -> dict[str, Any]:
    """Return what a finished run of each kind would have noted."""
    notes: dict[str, Any] = {"k": 10, "distance": "cosine", "C": 1.0}
    if hasattr(config, "choices"):
        notes[config.choices[0]] = {"C": 1.0}
        rates = getattr(config, "learning_rates", ())
        head = f"{config.choices[0]}_lr{rates[len(rates) // 2]:g}" if rates else ""
        notes |= {"head": head, "best_head": head}
    return notes


@pytest.mark.parametrize(
    ("patch", "size", "expected"),
    [(16, 224, (192, 256)), (14, 224, (196, 252)), (32, 224, (192, 256)), (8, 32, (24, 40))],
)
def test_sizes_are_whole_patches(patch: int, size: int, expected: tuple[int, int]) -> None:
    found = sizes_nearby(replace(BASE, patch_size=patch), size)
    assert tuple(found.values()) == expected
    assert sizes_nearby(replace(BASE, patch_size=64), 64) == {"larger images": 128}
    assert counts_nearby(1) == {"twice k": 2}


def gap_for(result: Result, **above: float) -> Gap:
    """Return a complete gap whose settings lie so far above the number."""
    main = result.metrics[result.main_metric]
    settings = tuple(Nearby(setting=n, value=main + more) for n, more in above.items())
    return Gap(
        metric=result.main_metric,
        value=main,
        settings=settings,
        built_on=result.checksum,
        complete=True,
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two rows apart by 20 points, k-NN and a fine-tune."""
    write_manifest(tmp_path)
    for benchmark in ("in-knn", "in-ft-hpm"):
        write_run(tmp_path / "runs", "good", share=0.8, benchmark=benchmark)
        write_run(tmp_path / "runs", "bad", share=0.6, draw=1, benchmark=benchmark)
    return tmp_path


def keep(out: Path, name: str, **above: float) -> Result:
    [path] = (out / "runs").glob(f"*-{name}/in-knn/result.json")
    write_gap(path.parent, gap_for(read_result(path), **above))
    return read_result(path)


def said(out: Path) -> str:
    runs = read_results_with_folders(out / "runs")
    manifest = load_manifest(out / "benchmarks.yaml")
    return "\n".join(describe_pair(choose(runs, "good"), choose(runs, "bad"), manifest))


def test_a_difference_that_changes_its_sign_is_inside_the_gap(out: Path) -> None:
    assert "recipe gap" not in said(out), "not measured: not mentioned"
    keep(out, "good", smaller=-25.0, larger=1.0, only_here=-60.0)
    assert "recipe gap" not in said(out), "of one alone"
    keep(out, "bad", smaller=4.0, larger=1.0)
    text = said(out)
    assert "in-knn: cannot tell good from bad: it depends on the recipe" in text
    assert "inside the recipe gap" in text
    assert "over 2 neighbouring settings, against: smaller" in text
    assert "in-ft-hpm: good is better than bad" in text, "an expensive cell has no gap"


def test_what_moves_both_alike_is_no_gap_between_them(out: Path) -> None:
    """Their own ranges overlap by far; under each setting the same one is ahead."""
    good, bad = (keep(out, name, smaller=-40.0, larger=30.0) for name in ("good", "bad"))
    assert good.gap is not None
    assert bad.gap is not None
    assert good.gap.low < bad.gap.high
    text = said(out)
    assert "in-knn: good is better than bad" in text
    assert "recipe gap: the same sign under 2 neighbouring settings" in text


def test_several_verdicts_say_how_they_are_corrected(out: Path) -> None:
    assert said(out).splitlines()[-1].startswith("2 verdicts at once: each p is corrected for all")
    assert said(out).count("by Holm over 2 verdicts") == 2


def test_the_sign_decides() -> None:
    found = paired_gap(70.0, {"a": 60.0, "b": 71.0}, 69.0, {"a": 61.0, "c": 0.0})
    assert found is not None
    assert list(found.differences.values()) == [1.0, -1.0]
    assert not found.decided
    assert found.against == ["a"]
    assert paired_gap(70.0, {"a": 1.0}, 69.0, {"b": 1.0}) is None
    even = paired_gap(70.0, {"a": 61.0}, 69.0, {"a": 61.0})
    assert even is not None
    assert not even.decided, "no difference is not the same sign"


def test_the_table_shows_the_range_and_ties_what_lies_inside(out: Path) -> None:
    manifest = load_manifest(out / "benchmarks.yaml")
    before = {n: f(make_table(read_results(out / "runs"), manifest)) for n, f in FORMATS.items()}
    assert "gap" not in before["terminal"]
    assert '"gap"' not in before["json"], "tables without one are what they were"
    good = keep(out, "good", smaller=-25.0)
    keep(out, "bad", smaller=4.0)
    table = make_table(read_results(out / "runs"), manifest)
    top = good.metrics["top1"]
    text = terminal(table)
    assert f"gap {top - 25:.2f} to {top:.2f}" in text
    assert "gap: recipe gap, the range under neighbouring settings" in text
    [row] = [r for r in table.rows if r.label == "bad"]
    assert [v.best for c, v in row.values.items() if c.benchmark == "in-knn"] == [True], "tied"
    ends = FORMATS["csv"](table).splitlines()
    assert ends[0].endswith("gap_low,gap_high")
    assert any(line.endswith(f"{top - 25:.4f},{top:.4f}") for line in ends)
    alike = [Value(value=v, interval=0.1, gap={"x": v - 9}) for v in (70.0, 60.0)]
    assert ties([(alike[0], alike[1])]) == [False]


def test_a_published_number_inside_the_gap_is_called_so(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "why", lambda *_: [])
    manifest = load_manifest(out / "benchmarks.yaml")
    dino = [r for r in manifest.references if r.method == "DINO"]

    def against_dino() -> str:
        runs = read_results_with_folders(out / "runs")
        mine = [run for run in choose(runs, "good") if run[1].benchmark == "in-knn"]
        return "\n".join(describe_published(mine, dino, manifest))

    assert "recipe gap" not in against_dino()
    keep(out, "good", smaller=-25.0)
    assert "inside the recipe gap: the same weights score" in against_dino()


def test_a_bundle_carries_the_gap_and_says_that_nothing_proves_it(out: Path) -> None:
    keep(out, "good", smaller=-25.0)
    write_bundle(out / "runs", out / "b.tar.gz", out / "benchmarks.yaml")
    found = verify_bundle(out / "b.tar.gz", benchmarks=out / "benchmarks.yaml")
    assert found.faults == ()
    assert [text for text in found.unproven if "recipe gap" in text] == [
        "runs/676f6f640000-good/in-knn: its recipe gap"
    ]
    (out / "root").mkdir()
    unpack(out / "b.tar.gz", out / "root")
    assert len(list((out / "root").rglob(GAP_FILE))) == 1
    next((out / "root").rglob(GAP_FILE)).unlink()
    files = {p.relative_to(out / "root").as_posix(): p for p in (out / "root").rglob("*")}
    kept = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    write_archive(out / "c.tar.gz", kept)
    without = verify_bundle(out / "c.tar.gz", benchmarks=out / "benchmarks.yaml").faults
    assert any("the table does not follow from the results" in fault for fault in without)


def test_on_a_cluster_the_gap_comes_later() -> None:
    parser = run_command.Parser(prog="run")
    run_command.add_arguments(parser)
    with pytest.raises(UserError, match="--launcher local --gap"):
        run_command.main(parser.parse_args(["x.pth", "--gap", "--launcher", "slurm"]))


CHILD = """
import sys
from pathlib import Path
from mimbench.results.gap import Gap, write_gap
from mimbench.results.record import read_result
out = Path(sys.argv[1])
if "--gap" in sys.argv and "broken" not in str(out):
    made = read_result(out / "result.json")
    write_gap(out, Gap(metric="top1", value=1.0, built_on=made.checksum, complete=True))
"""


def test_the_suite_measures_gaps_that_are_lacking_and_a_failure_costs_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[str] = []

    def child(folder: Path) -> list[str]:
        started.append(folder.name)
        script = f"import sys; sys.path[:0] = {sys.path!r}\n{CHILD}"
        return [sys.executable, "-S", "-c", script, str(folder)]

    monkeypatch.setattr(gaps, "eval_command", child)
    cells = [replace(cell(tmp_path, n), nearby=n != "plain") for n in ("good", "broken", "plain")]
    for one in cells:
        one.folder.mkdir(parents=True)
        shape = json.loads(
            (
                write_run(tmp_path / "shape", one.run.benchmark, share=0.5) / "result.json"
            ).read_text()
        )
        weights = {**shape["weights"], "digest": "d" * 64}
        made = {**shape, "protocol": one.protocol, "weights": weights, "checksum": ""}
        (one.folder / "result.json").write_text(json.dumps(made))
    with caplog.at_level("INFO"):
        failed = gaps.measure_gaps(cells, [Slot()])
    assert [c.run.benchmark for c in failed] == ["broken"]
    assert started == ["good", "broken"]
    assert "broken · a: the recipe gap was not measured to the end" in caplog.text
    assert read_result(cells[1].folder / "result.json").status == "done"
    assert gaps.measure_gaps(cells[:1], [Slot()]) == []
    assert started == ["good", "broken"], "measured before"


def test_each_gpu_of_a_slot_takes_a_gap_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[int, ...]] = []

    class Ended:
        def poll(self) -> int:
            return 0

    def started(command: list[str], folder: Path, slot: Slot) -> Any:
        assert command[-1] == "--gap"
        assert "torch.distributed.run" not in command, "a neighbour is one process"
        used.append(slot.gpus)
        return Ended()

    monkeypatch.setattr(gaps, "lacking", lambda cell: True)
    monkeypatch.setattr(gaps, "finished", lambda cell: None)
    monkeypatch.setattr(gaps, "start", started)
    cells = [cell(tmp_path, name) for name in "abc"]
    assert gaps.measure_gaps(cells, [Slot(gpus=(0, 1))]) == cells
    assert used == [(0,), (1,), (0,)]


def test_settings_are_averaged_over_seeds_that_all_have_them(out: Path) -> None:
    [path] = (out / "runs").glob("*-good/in-knn/result.json")
    result = read_result(path)
    one = replace(result, gap=gap_for(result, smaller=1.0, larger=2.0))
    other = replace(result, gap=gap_for(result, smaller=3.0))
    top = result.metrics["top1"]
    assert mean_gap([one, other]) == {"smaller": pytest.approx(top + 2.0)}
    assert mean_gap([one, replace(other, gap=None)]) == {}
    part = replace(gap_for(result, smaller=3.0), complete=False)
    assert mean_gap([one, replace(other, gap=part)]) == {}, "not measured to the end"
