"""What `publish` writes is what the Hub documents, says where each number is from, and nothing that is not so."""

import json
import re
import shutil
import socket
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, parse_eval_result_entries

from mimbench.__main__ import main
from mimbench.benchmarks.manifest import load_manifest
from mimbench.results.record import NOT_AUDITED, Result, read_result, write_result
from mimbench.suite.sharing.card import BEGIN, END, markdown_text, merge_card, split_card
from mimbench.suite.sharing.publishing import CARD, EVAL_FILE, write_publication
from mimbench.suite.sharing.verifying import verify_bundle
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest
from tests.support.hub_schema import EVAL_ENTRY, MODEL, faults
from tests.support.results_folder import write_manifest, write_run

HUB = """
hub:
  datasets: {imagenet: {id: ILSVRC/imagenet-1k, name: ImageNet-1k, split: validation}}
  metrics:
    top1: {type: accuracy, name: top-1 accuracy, task: image-classification}
    top5: {type: accuracy, name: top-5 accuracy, task: image-classification}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("made")
    write_manifest(tmp_path)
    with (tmp_path / "reference.yaml").open("a") as file:
        file.write(HUB)
    for name, share, benchmark, seed in (
        ("good", 0.8, "in-knn", 0),
        ("good", 0.7, "in-ft-hpm", 0),
        ("good", 0.72, "in-ft-hpm", 1),
        ("random-b16", 0.1, "in-knn", 0),
    ):
        write_run(tmp_path / "runs", name, share=share, benchmark=benchmark, seed=seed, trains=True)
    return tmp_path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Runs of one checkpoint, one of them with two seeds, and of its random twin."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def publish(folder: Path, *options: str) -> int:
    runs = [] if options and not options[0].startswith("-") else [str(folder / "runs")]
    given = ["--benchmarks", str(folder / "benchmarks.yaml"), "-o", str(folder / "out")]
    return main(["publish", *runs, *options, *given])


def edit(folder: Path, cell: str, change: Callable[[Result], Result], name: str = "good") -> None:
    [path] = (folder / "runs").glob(f"*-{name}/{cell}/result.json")
    write_result(path, change(read_result(path)))


def card_of(folder: Path) -> ModelCardData:
    data = ModelCard.load(folder / "out" / CARD).data
    assert isinstance(data, ModelCardData)
    return data


def protocols_of(results: list[EvalResult] | None) -> set[str]:
    return {(r.metric_args or {})["mimbench_protocol"] for r in results or []}


def entries_of(folder: Path) -> list[dict[str, Any]]:
    return yaml.safe_load((folder / "out" / EVAL_FILE).read_text())


def test_the_files_are_what_the_hub_documents(folder: Path) -> None:
    assert publish(folder, "--repo", "me/good") == 0
    entries = entries_of(folder)
    assert [f for e in entries for f in faults(e, EVAL_ENTRY)] == []
    assert [(e["dataset"]["id"], e["dataset"]["task_id"]) for e in entries] == [
        ("ILSVRC/imagenet-1k", "in-knn"),
        ("ILSVRC/imagenet-1k", "in-ft-hpm"),
    ]
    parsed = parse_eval_result_entries(entries)
    assert [p.value for p in parsed] == [e["value"] for e in entries]
    index = yaml.safe_load(split_card((folder / "out" / CARD).read_text()).front)["model-index"]
    assert [f for model in index for f in faults(model, MODEL)] == []
    found = card_of(folder)
    assert found.model_name == "good"
    assert {r.metric_name for r in found.eval_results or []} == {
        f"top-{k} accuracy, percent ({b})" for k in (1, 5) for b in ("in-knn", "in-ft-hpm")
    }


def test_the_schema_of_this_test_finds_faults() -> None:
    good = {"dataset": {"id": "a/b", "task_id": "c"}, "value": 1.0}
    assert faults(good, EVAL_ENTRY) == []
    for bad in (
        {**good, "value": "1"},
        {**good, "value": True},
        {**good, "dataset": {"id": "a/b"}},
        {**good, "sauce": 1},
        {**good, "source": {"name": "x"}},
    ):
        assert len(faults(bad, EVAL_ENTRY)) == 1, bad
    assert faults({"name": "x", "results": []}, MODEL)


def test_each_number_says_where_it_is_from(folder: Path) -> None:
    assert publish(folder, "--repo", "me/good") == 0
    verified = verify_bundle(
        folder / "out/mimbench/bundle.tar.gz", benchmarks=folder / "benchmarks.yaml"
    )
    assert (verified.faults, verified.unproven) == ((), ())
    knn = read_result(next((folder / "runs").glob("*-good/in-knn/result.json")))
    first, second = entries_of(folder)
    assert first["value"] == pytest.approx(knn.metrics["top1"], abs=1e-4)
    for text in (
        f"digest {knn.protocol}",
        f"±{knn.intervals['top1']:.2f}",
        verified.digest,
        "in-knn",
    ):
        assert text in first["notes"]
    assert "mean over 2 seeds" in second["notes"]
    assert first["source"]["url"].startswith("https://huggingface.co/me/good/blob/main/mimbench/")
    for result in card_of(folder).eval_results or []:
        assert result.metric_args is not None
        assert result.metric_args["bundle_sha256"] == verified.digest
        assert result.metric_args["mimbench_protocol"] in ("in-knn", "in-ft-hpm")
        assert result.metric_args["protocol_digest"] == knn.protocol
        assert result.metric_args["interval95"] > 0


def test_the_bundle_holds_what_is_published_and_no_more(folder: Path) -> None:
    edit(folder, "in-knn", lambda r: replace(r, ran={"images": 100}))
    assert publish(folder) == 0
    with tarfile.open(folder / "out/mimbench/bundle.tar.gz") as archive:
        packed = {Path(name).parent.name for name in archive.getnames() if "result.json" in name}
    assert packed == {"in-ft-hpm", "in-ft-hpm.seed1"}


def demo(result: Result) -> Result:
    return replace(result, profile="demo")


UNFIT: dict[str, tuple[Callable[[Result], Result], str]] = {
    "demo": (demo, "sample data"),
    "sample": (
        lambda r: replace(r, config={**r.config, "dataset": "sample-classification"}),
        "sample data",
    ),
    "failed": (
        lambda r: replace(r, status="failed", error="out of \x1b[31mluck", metrics={}),
        "failed: out of",
    ),
    "not audited": (
        lambda r: replace(r, weights={**r.weights, "audit": NOT_AUDITED}),
        "not audited",
    ),
    "part": (lambda r: replace(r, ran={"images": 100}), "not what its protocol says: images 100"),
    "stale": (
        lambda r: replace(r, built_on={"in-ft-hpm": "another"}),
        "stale: a run that it was built on",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_number_that_says_nothing_is_left_out(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, reason = UNFIT[name]
    edit(folder, "in-knn", change)
    assert publish(folder) == 0
    assert f"left out: in-knn: {reason}" in capsys.readouterr().err
    assert [e["dataset"]["task_id"] for e in entries_of(folder)] == ["in-ft-hpm"]
    assert "in\\-knn" not in (folder / "out" / CARD).read_text()
    assert protocols_of(card_of(folder).eval_results) == {"in-ft-hpm"}


def test_an_edited_number_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((folder / "runs").glob("*-good/in-knn/result.json"))
    value = json.loads(path.read_text())
    value["metrics"]["top1"] = 99.9
    path.write_text(json.dumps(value))
    assert publish(folder) == 0
    assert "left out: in-knn: failed: edited after it was written" in capsys.readouterr().err


def test_nothing_but_sample_data_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell in ("in-knn", "in-ft-hpm", "in-ft-hpm.seed1"):
        edit(folder, cell, demo)
    assert publish(folder) == 2
    assert "no number is fit to be published" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize("how", ["quick", "changed"])
def test_another_recipe_stands_in_the_table_only_and_says_so(how: str, folder: Path) -> None:
    def change(result: Result) -> Result:
        if how == "quick":
            return replace(result, profile="quick")
        return replace(result, overrides={"in-knn": {"k": 20}})

    edit(folder, "in-knn", change)
    assert publish(folder) == 0
    text = (folder / "out" / CARD).read_text()
    assert rf"k\-NN \[{how}\]" in text
    assert "in-knn" not in split_card(text).front
    assert [e["dataset"]["task_id"] for e in entries_of(folder)] == ["in-ft-hpm"]


def test_a_set_that_the_hub_does_not_know_gets_no_id(folder: Path) -> None:
    """Its number is in the card's table; a registered benchmark can be named by the user."""
    for path in (folder / "benchmarks.yaml", folder / "reference.yaml"):
        path.write_text(path.read_text().replace("imagenet:", "other:"))
    assert publish(folder) == 0
    assert not (folder / "out" / EVAL_FILE).exists()
    assert split_card((folder / "out" / CARD).read_text()).front == ""
    assert publish(folder, "--hub-task", "in-knn=org/data:t1") == 0
    [entry] = entries_of(folder)
    assert entry["dataset"] == {"id": "org/data", "task_id": "t1"}
    assert publish(folder) == 0
    assert not (folder / "out" / EVAL_FILE).exists()


def test_the_shipped_names_are_those_of_benchmarks() -> None:
    manifest = load_manifest()
    sets = {benchmark.dataset for benchmark in manifest.benchmarks.values()}
    assert set(manifest.hub.datasets) <= sets
    assert manifest.hub.datasets["imagenet"].id == "ILSVRC/imagenet-1k"
    assert "coco" not in manifest.hub.datasets
    for known in manifest.hub.datasets.values():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", known.id)


CARDS = {
    "plain": "# Mine\n\nMy words.  \n",
    "front": "---\nlicense: mit # my comment\ntags:\n- a\n---\n\n# Mine\n",
    "own results": "---\nmodel-index:\n- name: mine\n  results:\n  - task: {type: x}\n    dataset: {type: d, name: D}\n    metrics:\n    - {type: m, value: 1}\n\n# my comment\nlicense: mit\n---\nText\n",
    "windows": "---\r\nlicense: mit\r\n---\r\n# Mine\r\nwords\r\n",
    "words after": f"# Mine\n{BEGIN}\nold\n{END}\n\nAfter.\n",
}


@pytest.mark.parametrize("name", CARDS)
def test_the_users_words_stay(name: str, folder: Path) -> None:
    path = folder / "out" / CARD
    path.parent.mkdir()
    path.write_bytes(CARDS[name].encode())
    assert publish(folder) == 0
    once = path.read_bytes()
    assert publish(folder) == 0
    assert path.read_bytes() == once
    text = once.decode()
    for line in CARDS[name].splitlines(keepends=True):
        mine = line.lstrip()[:2] not in ("- ", "da", "me") or name == "front"
        if mine and line.strip() not in ("---", "old", "model-index:"):
            assert line.rstrip("\r\n") in text
    assert "old" not in text.split()
    assert text.count(BEGIN) == text.count(END) == 1
    assert ("\r\n" in text) == (name == "windows")
    assert "\r\r" not in text
    data = yaml.safe_load(split_card(text.replace("\r\n", "\n")).front)
    assert len(data["model-index"]) == 1
    results = data["model-index"][0]["results"]
    assert len(results) == (3 if name == "own results" else 2)
    if name == "own results":
        assert results[0]["metrics"] == [{"type": "m", "value": 1}]
        assert data["model-index"][0]["name"] == "mine"


BROKEN = {
    "not closed": ("---\nlicense: mit\n", "does not end with such a line"),
    "no YAML": ("---\na: [\n---\n", "is not valid YAML"),
    "a list": ("---\n- a\n---\n", "should hold a mapping"),
    "twice": ("---\na: 1\na: 2\n---\n", "stands there twice"),
    "bomb": (
        "---\na: &a [x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"b{i}: &b{i} [{','.join(['*' + ('a' if i == 0 else f'b{i - 1}')] * 9)}]\n"
            for i in range(8)
        )
        + "---\n",
        "more than 200,000 values",
    ),
    "an open block": (f"{BEGIN}\n", "once each"),
    "two blocks": (f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", "once each"),
    "turned round": (f"{END}\n{BEGIN}\n", "stands before"),
    "odd index": ("---\nmodel-index: 3\n---\n", "list of models"),
    "flow": ("---\n{license: mit, model-index: []}\n---\n", "is not valid YAML|cannot be replaced"),
    "inside a text": ('---\na: "x\nmodel-index: y\nz"\n---\n', "cannot be replaced safely"),
    "object": ("---\na: !!python/object/apply:os.system ['x']\n---\n", "is not valid YAML"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_card_that_cannot_be_merged_is_left_as_it_is(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, reason = BROKEN[name]
    path = folder / "out" / CARD
    path.parent.mkdir()
    path.write_text(text)
    assert publish(folder) == 2
    error = capsys.readouterr().err
    assert "is left as it is" in error
    assert re.search(reason, error), error
    assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == [CARD]


HOSTILE = (
    "a|b`c`<script>alert(1)</script>\n---\nx: [1](javascript:x) <!-- mimbench: end --> *\x1b\u202e"
)


def test_hostile_names_change_nothing_around_them(folder: Path) -> None:
    manifest = folder / "benchmarks.yaml"
    manifest.write_text(
        manifest.read_text().replace("title: k-NN", f"title: {json.dumps(HOSTILE)}")
    )
    for cell in ("in-knn", "in-ft-hpm", "in-ft-hpm.seed1"):
        edit(folder, cell, lambda r: replace(r, weights={**r.weights, "name": HOSTILE}))
    assert publish(folder) == 0
    text = (folder / "out" / CARD).read_text()
    card = split_card(text)
    assert card.body.count(END) == 1
    assert "<script" not in card.body
    assert "](" not in card.body
    assert all(line.isprintable() for line in text.splitlines())
    [row] = [line for line in card.body.splitlines() if "script" in line and line.startswith("|")][
        :1
    ]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    [model] = yaml.safe_load(card.front)["model-index"]
    assert model["name"].isprintable()
    assert faults(model, MODEL) == []


def test_markdown_shows_just_the_characters() -> None:
    assert markdown_text("a_b*<i>&|`\\\n") == r"a\_b\*&lt;i&gt;&amp;\|\`\\\\n"


def test_several_checkpoints_need_a_choice(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(folder / "runs", "other", share=0.5)
    assert publish(folder) == 2
    error = capsys.readouterr().err
    assert "holds 2 checkpoints; name the folder of one" in error
    assert other.parent.name in error
    assert publish(folder, str(other.parent)) == 0
    assert "# other" in (folder / "out" / CARD).read_text()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--repo", "me", "not of the form ORG/NAME"),
        ("--repo", "me/a b", "not of the form ORG/NAME"),
        ("--hub-task", "in-knn", "not of the form ID=TASK"),
        ("--hub-task", "in-knm=x", "did you mean 'in-knn'"),
    ],
)
def test_options_are_checked(
    option: str, value: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(folder, option, value) == 2
    assert reason in capsys.readouterr().err


def test_the_same_runs_give_the_same_files(folder: Path) -> None:
    def bytes_of(out: Path) -> dict[str, str]:
        return {
            p.relative_to(out).as_posix(): value_digest(p.read_bytes().hex())
            for p in sorted(out.rglob("*"))
            if p.is_file()
        }

    for name in ("a", "b"):
        write_publication(folder / "runs", folder / name, folder / "benchmarks.yaml")
    assert bytes_of(folder / "a") == bytes_of(folder / "b")
    assert set(bytes_of(folder / "a")) == {CARD, EVAL_FILE, "mimbench/bundle.tar.gz"}


def test_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("publish opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert publish(folder) == 0


def test_merging_refuses_what_it_would_damage() -> None:
    """A key that only looks like ours to the eye: everything else must read as before."""
    text = "---\nmodel-index:\n- name: a\n  results: []\n# why\n  # more\nlicense: mit\n---\n"
    merged = merge_card(text, "a", [], "x")
    assert yaml.safe_load(split_card(merged).front) == {"license": "mit"}
    with pytest.raises(UserError):
        merge_card("---\n? model-index\n: []\n---\n", "a", [{"metrics": [{}]}], "x")
