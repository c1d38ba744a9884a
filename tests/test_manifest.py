"""benchmarks.yaml: strict, and every published row has a source and a known protocol."""

from pathlib import Path

import pytest

from mimbench.benchmarks.locations import data_name, known_faults, locate
from mimbench.benchmarks.manifest import Manifest, load_manifest
from mimbench.system.errors import UserError

SMALL = """
defaults: {paper: [in-knn, in-ft], quick: [in-knn]}
benchmarks:
  in-knn: {title: k-NN, group: knn, task: knn.classify, dataset: imagenet, config: {k: [10, 20], t: 0.07}, profiles: {paper: {}, quick: {dataset: coco, max_batch: 8, config: {k: [5]}}}}
  in-ft: {title: Fine-tune, group: finetune, task: ft, dataset: imagenet, after: [in-knn]}
  other-ft: {title: Other, group: finetune, task: ft, dataset: imagenet}
"""


def manifest(tmp_path: Path, text: str = SMALL) -> Manifest:
    (tmp_path / "benchmarks.yaml").write_text(text)
    return load_manifest(tmp_path / "benchmarks.yaml")


def test_choose_by_id_and_by_group(tmp_path: Path) -> None:
    m = manifest(tmp_path)
    assert m.choose("paper") == ["in-knn", "in-ft"]
    assert m.choose("paper", ["finetune"]) == ["in-ft"]
    assert m.choose("paper", ["other-ft", "knn"]) == ["in-knn", "other-ft"]
    with pytest.raises(
        UserError, match="no benchmark 'in-kn' in profile paper; did you mean 'in-knn'"
    ):
        m.choose("paper", ["in-kn"])
    with pytest.raises(UserError, match="'in-ft' has no profile 'quick', only paper"):
        m.choose("quick", ["in-ft"])


def test_recipe_is_base_then_profile_then_group_then_id(tmp_path: Path) -> None:
    m = manifest(tmp_path)
    assert m.recipe("in-knn", "paper") == ("imagenet", {"k": [10, 20], "t": 0.07})
    overrides = {"knn": {"t": 0.1, "k": [1]}, "in-knn": {"k": [2]}}
    assert m.recipe("in-knn", "quick", overrides) == ("coco", {"k": [2], "t": 0.1})
    assert m.limits("in-knn", "quick") == {"max_batch": 8}
    assert m.limits("in-knn", "paper") == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: k-NN", "titel: k-NN", "unknown key 'titel' .* did you mean 'title'"),
        ("quick: [in-knn]", "quick: [in-ft]", "has no profile 'quick'"),
        ("quick: [in-knn]", "quick: [in-nn]", "no benchmark 'in-nn'; did you mean 'in-knn'"),
        ("after: [in-knn]", "after: [knn]", "after: no benchmark 'knn'"),
        ("{paper: {}, quick:", "{papre: {}, quick:", "did you mean 'paper'"),
        ("defaults:", "default:", "unknown key 'default'"),
    ],
)
def test_a_typo_is_an_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(UserError, match=message):
        manifest(tmp_path, SMALL.replace(old, new))


def test_overrides_name_a_benchmark_and_a_field(tmp_path: Path) -> None:
    m = manifest(tmp_path)
    m.check_overrides({"knn": {"k": 1}, "in-ft": {"epochs": 1}})
    with pytest.raises(UserError, match=r"--set kn: no such benchmark; did you mean 'knn'"):
        m.check_overrides({"kn": {"k": 1}})
    with pytest.raises(UserError, match="name a field too"):
        m.check_overrides({"knn": 5})


@pytest.mark.parametrize("field", ["seed", "data"])
def test_overrides_that_would_have_no_effect_are_refused(field: str) -> None:
    with pytest.raises(
        UserError, match=rf"--set knn\.{field} has no effect: seeds come from --seed"
    ):
        load_manifest().check_overrides({"knn": {field: 1}})


def test_missing_data_says_what_and_how(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs ImageNet: pass --data DIR"):
        locate("imagenet", None)
    with pytest.raises(UserError, match="neither .* looks like it; to get it"):
        locate("coco", tmp_path)
    with pytest.raises(UserError, match="did you mean 'imagenet'"):
        locate("imagenett", None)
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split).mkdir(parents=True)
    assert locate("imagenet", tmp_path) == (tmp_path / "imagenet").resolve()
    assert locate("imagenet", tmp_path / "imagenet") == (tmp_path / "imagenet").resolve()


def test_data_that_is_not_the_published_set_is_told_apart(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "1.png").write_bytes(b"x")
    assert any("ImageNet train" in fault for fault in known_faults("imagenet", tmp_path))
    assert known_faults("sample-ade", tmp_path) == ()
    assert data_name("imagenet", own=True, digest="abcdef12") == "own-imagenet-abcdef"
    assert data_name("imagenet", own=False, digest="abcdef12") == "imagenet"
    assert data_name("sample-ade", own=True, digest="abcdef12") == "sample-ade"


def test_the_shipped_file_is_sound() -> None:
    shipped = load_manifest()
    for reference in shipped.references:
        assert reference.source
        assert reference.protocol in shipped.protocols
        assert 0 < reference.value < 100
    assert set(shipped.benchmarks) <= set(shipped.protocols), (
        "docs/numbers/protocols.md is made from these"
    )
    assert all(p.source for p in shipped.protocols.values())
    groups = {benchmark.group for benchmark in shipped.benchmarks.values()}
    assert {p.group for p in shipped.protocols.values()} <= groups
    assert all(e.source for e in shipped.effects)
    rows = [tuple(sorted(vars(r).items(), key=str)) for r in shipped.references]
    assert len(set(map(str, rows))) == len(rows), "a published row stands there twice"
