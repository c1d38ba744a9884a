"""A comparison's runs: arms of a block share all but the strategy, runs go on, verdicts are earned."""

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode
from mimbench.system.files import write_json
from pretrain.compare import blocks, report
from pretrain.compare.__main__ import main
from pretrain.compare.blocks import RECORD, ArmRun, RunOptions, order_digest, perform, start_digest
from pretrain.compare.design import Arm, Design, ProbeConfig, read_design, split_of
from pretrain.compare.probe import STRENGTHS, knn, load_labelled, ridge
from pretrain.compare.quality import share_found
from pretrain.train import build_learner
from tests.support.tiny_pretrain import NETWORK

TINY = (
    *NETWORK,
    "encoder.patch=8",
    "encoder.depth=1",
    "data.name=''",
    "data.images=16",
    "training.batch=8",
    "training.epochs=2",
)


def photographs(root: Path) -> Path:
    """Write two classes that differ in brightness, for training and testing."""
    dice = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 20)):
        for i in range(count):
            path = root / split / ["dark", "bright"][i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = dice.integers(0, 120, (32, 32, 3), dtype=np.uint8) + 120 * (i % 2)
            Image.fromarray(noise.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("data"))


@pytest.fixture
def design() -> Design:
    arms = read_design("cifar10").arms
    return Design(
        recipe="demo",
        set=TINY,
        arms=arms,
        blocks=2,
        equal_time=False,
        probe=ProbeConfig(train=24, test=20, quality=4),
    )


def test_all_arms_of_a_block_start_alike_and_see_the_same(design: Design) -> None:
    """MAE, HPM and all others; another block starts elsewhere."""
    configs = {arm: design.config(arm, 1000, Path("/nowhere")) for arm in design.arms}
    starts = {arm: start_digest(config) for arm, config in configs.items()}
    assert len(set(starts.values())) == 1
    assert len({order_digest(config) for config in configs.values()}) == 1
    other = design.config(design.reference, 1001, Path("/nowhere"))
    assert start_digest(other) not in starts.values()
    assert order_digest(other) != order_digest(configs[design.reference])


def test_tensors_that_two_arms_share_are_equal_to_the_bit(design: Design) -> None:
    def state(arm: str, *more: str) -> dict[str, Tensor]:
        changed = replace(design, set=(*design.set, *more))
        config = changed.config(arm, 1000, Path("/nowhere"))
        # whatever the generator holds: only seed and name count
        torch.manual_seed(len(arm))
        return build_learner(config, torch.device("cpu"), Path()).student.state_dict()

    mae, hpm, cheap = (state(arm) for arm in ("MAE", "HPM", "HPM at MAE's cost (A2q)"))
    assert mae.keys() < cheap.keys() < hpm.keys() | cheap.keys()
    for other in (hpm, cheap):
        assert all(torch.equal(mae[name], other[name]) for name in mae)
    assert torch.equal(hpm["predictor.pred.weight"], cheap["predictor.pred.weight"])
    drawn = [t for n, t in mae.items() if t.ndim > 1 and "pos_embed" not in n]
    assert len({t.flatten()[0].item() for t in drawn}) == len(drawn)


def test_the_old_way_to_start_does_not_pair(design: Design) -> None:
    """What the named way is for: without it the second decoder moves the first one's values."""
    states = []
    for arm in ("MAE", "HPM"):
        config = design.config(arm, 1000, Path("/nowhere"))
        config = replace(config, start=replace(config.start, init="stream"))
        torch.manual_seed(1000)
        states.append(build_learner(config, torch.device("cpu"), Path()).student.state_dict())
    name = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(states[0][name], states[1][name])


def result(folder: Path) -> dict[str, Any]:
    import json

    return json.loads((folder / RECORD).read_text())


def test_the_same_keys_give_the_same_bits_and_other_masks_others(
    design: Design, data: Path, tmp_path: Path
) -> None:
    twin = replace(design.arms["MAE"], role="tested")
    arms = {**design.arms, "MAE twin": twin}
    whole = replace(design, arms=arms)
    options, weights = RunOptions(data=data, out=tmp_path, device="cpu"), {}
    for arm in ("MAE", "MAE twin", "MAE again (A/A)"):
        task = ArmRun(arm=arm, seed=1000)
        perform(whole, options, task)
        weights[arm] = (options.folder(task) / "encoder.safetensors").read_bytes()[-4096:]
        scores = result(options.folder(task))["scores"]
        assert set(scores) == {"ridge", "knn", "ridge_class", "knn_class"}
        assert all(0 <= v <= 100 for v in scores.values())
    assert weights["MAE"] == weights["MAE twin"]
    assert weights["MAE"] != weights["MAE again (A/A)"]


def test_a_run_that_is_done_is_not_done_again(
    design: Design, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, task = RunOptions(data=data, out=tmp_path, device="cpu"), ArmRun(arm="HPM", seed=1000)
    perform(design, options, task)
    record = result(options.folder(task))
    assert record["quality"].keys() == {
        "reconstruction",
        "contrast",
        "whole",
        "quarter",
        "tokens 0.25",
    }
    assert not (options.folder(task) / "checkpoints").exists()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(blocks, "train_unlocked", fail)
    perform(design, options, task)
    assert result(options.folder(task)) == record


def test_a_folder_keeps_its_design(design: Design, data: Path, tmp_path: Path) -> None:
    blocks.claim(design, tmp_path)
    blocks.claim(design, tmp_path)
    with pytest.raises(UserError, match="another design"):
        blocks.claim(replace(design, margin=2.0), tmp_path)


def plant(design: Design, out: Path, effects: dict[str, float], *, sd: float = 0.5) -> None:
    """Write records as if all runs were done, with these effects on top of a block's own level."""
    blocks.claim(design, out)
    dice = np.random.default_rng(1)
    for seed in design.seeds:
        level = dice.normal(40, 3)
        for arm in design.arms:
            value = level + effects.get(arm, 0.0) + dice.normal(0, sd)
            folder = out / "runs" / ArmRun(arm=arm, seed=seed).slug
            folder.mkdir(parents=True)
            hits = np.arange(20) < value / 5
            np.savez(folder / "hits.npz", ridge=np.packbits(hits))
            names = ("ridge", "knn", "ridge_class", "knn_class")
            record = {"arm": arm, "seed": seed, "budget": "steps", "design": design.digest()}
            record |= {"scores": dict.fromkeys(names, value), "seconds": 1.0, "steps": 2}
            write_json(folder / RECORD, record | {"start": f"s{seed}", "order": f"o{seed}"})


CONTROL = "one still block seen (control)"


@pytest.fixture
def eight(design: Design) -> Design:
    return replace(design, blocks=8)


def decided(design: Design, out: Path) -> tuple[bool, str]:
    good, lines = report.verdict(design, report.collect(out, design, "steps"))
    return good, "\n".join(lines)


def test_a_planted_effect_is_found_and_a_null_is_said(eight: Design, tmp_path: Path) -> None:
    plant(eight, tmp_path, {CONTROL: -5.0, "green noise (ColorMAE)": 3.0})
    good, text = decided(eight, tmp_path)
    assert good
    assert "green noise (ColorMAE) is better than MAE by" in text
    assert "No difference shown between pixel contrast and MAE" in text
    assert "HPM at MAE's cost (A2q) is as good as HPM within 1" in text
    table = report.table(eight, report.collect(tmp_path, eight, "steps"))
    assert len(table.splitlines()) == 2 + len(eight.arms)
    assert "| MAE | 8 |" in table


def test_without_the_control_nothing_is_decided(eight: Design, tmp_path: Path) -> None:
    plant(eight, tmp_path, {"green noise (ColorMAE)": 3.0})
    good, text = decided(eight, tmp_path)
    assert not good
    assert "Decides nothing" in text
    assert "was not found" in text
    assert "better" not in text


def test_a_noise_floor_that_is_none_decides_nothing(eight: Design, tmp_path: Path) -> None:
    plant(eight, tmp_path, {CONTROL: -5.0, "MAE again (A/A)": 2.0})
    good, text = decided(eight, tmp_path)
    assert not good
    assert "differs from itself" in text


def test_a_block_whose_arms_started_apart_decides_nothing(eight: Design, tmp_path: Path) -> None:
    plant(eight, tmp_path, {CONTROL: -5.0})
    path = tmp_path / "runs" / ArmRun(arm="HPM", seed=1003).slug / RECORD
    write_json(path, result(path.parent) | {"start": "elsewhere"})
    good, text = decided(eight, tmp_path)
    assert not good
    assert "block 1003 do not share their start" in text


def test_a_part_decides_nothing_yet(
    eight: Design, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(eight, tmp_path, {CONTROL: -5.0, "HPM": 9.0})
    (tmp_path / "runs" / ArmRun(arm="MAE", seed=1007).slug / RECORD).unlink()
    good, text = decided(eight, tmp_path)
    assert not good
    assert "71 of 72 runs are done, 7 of 8 blocks are complete" in text
    assert main(["report", str(tmp_path)]) == 0
    assert "Decides nothing yet" in capsys.readouterr().out


def test_another_designs_runs_are_not_counted(eight: Design, tmp_path: Path) -> None:
    plant(eight, tmp_path, {CONTROL: -5.0})
    assert not report.collect(tmp_path, replace(eight, margin=3.0), "steps")


def test_equal_time_shortens_what_is_dearer(eight: Design) -> None:
    timed = replace(eight, equal_time=True, set=(*eight.set, "training.epochs=12"))
    tasks = blocks.tasks_of(timed, {"HPM": 2.0, "MAE": 1.0, "pixel contrast": 1.01})
    matched = [t for t in tasks if t.budget == "time"]
    assert {(t.arm, t.epochs) for t in matched} == {("HPM", 6)}
    assert len(tasks) == 8 * len(eight.arms) + 8
    assert len({t.slug for t in tasks}) == len(tasks)


def test_the_plan_says_what_could_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cifar10"]) == 0
    text = capsys.readouterr().out
    assert "8 blocks, outcome: ridge" in text
    assert "0.0078" in text
    assert main(["plan", "cifar11"]) == ExitCode.USAGE
    assert "cifar10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 1}, "blocks is 1"),
        ({"arms": {"a": Arm(role="reference")}}, "role 'noise'"),
    ],
)
def test_designs_that_cannot_decide_are_refused(
    design: Design, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(design, **change)


def test_labels_are_folders(data: Path, design: Design, tmp_path: Path) -> None:
    config = design.config("MAE", 1000, data).data
    found = load_labelled(data, "test", 10, config)
    assert found.classes == ("bright", "dark")
    assert found.images.shape == (10, 3, 32, 32)
    means = found.images.float().mean((1, 2, 3))
    assert (means[found.labels == 0].min() > means[found.labels == 1].max()).item()
    with pytest.raises(UserError, match=r"holds neither test\.tar nor a folder test"):
        split_of(tmp_path, "test")


def test_ridge_is_scikit_learns() -> None:
    dice = torch.Generator().manual_seed(0)
    train, test = torch.randn(200, 12, generator=dice), torch.randn(80, 12, generator=dice)
    rule = torch.randn(12, 3, generator=dice)
    noise = 1.5 * torch.randn(280, 3, generator=dice)
    labels = (torch.cat([train, test]) @ rule + noise).argmax(1)
    mine = ridge(train, test, (labels[:200], labels[200:]))
    mean, std = train.mean(0), train.std(0)
    onehot = torch.nn.functional.one_hot(labels[:200], 3).double()
    candidates = []
    for strength in STRENGTHS:
        model = Ridge(alpha=strength * 200).fit(((train - mean) / std).double(), onehot)
        predicted = model.predict(((test - mean) / std).double()).argmax(1)
        candidates.append(torch.from_numpy(predicted) == labels[200:])
    assert any(torch.equal(mine, hits) for hits in candidates)
    assert mine.double().mean() > 0.5


def test_neighbours_vote() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    test = torch.tensor([[2.0, 0.1], [0.1, 3.0], [1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1])
    assert knn(train, test, labels).tolist() == [True, True, False]


def test_share_of_the_hardest() -> None:
    losses = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert share_found(losses, losses, 2) == 1
    assert share_found(-losses, losses, 2) == 0
    assert share_found(torch.tensor([[0.0, 3.0, 2.0, 1.0]]), losses, 2) == 0.5


class Pool:
    """Stands for a pool of processes: notes what it is asked for, and does it at once."""

    asked: dict[str, Any]

    def __init__(self, jobs: int, *, mp_context: Any, initializer: Any) -> None:
        Pool.asked = {"jobs": jobs, "how": mp_context.get_start_method(), "tasks": []}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, what: Any, design: Design, options: RunOptions, task: ArmRun) -> Any:
        Pool.asked["tasks"].append(task)
        # on a GPU all of them get the same device
        config = design.config(task.arm, task.seed, Path("unused"), device=options.device)
        assert config.machine.device == "cuda"
        done: Future[None] = Future()
        done.set_result(None)
        return done


def test_seeds_train_side_by_side_on_one_gpu(
    design: Design, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of their own (spawned: a GPU forbids forks), as many as asked, all blocks at once."""
    monkeypatch.setattr(blocks, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(blocks, "measure_untrained", lambda *_: None)
    done = RunOptions(data=data, out=tmp_path, device="cuda", jobs=5)
    write_json(done.folder(ArmRun(arm="MAE", seed=1000)) / RECORD, {})
    blocks.run(design, done)
    assert Pool.asked["jobs"] == 5
    assert Pool.asked["how"] == "spawn"
    assert len(Pool.asked["tasks"]) == len(design.arms) * design.blocks - 1
    assert {task.seed for task in Pool.asked["tasks"]} == set(design.seeds)


def test_a_bank_is_judged_on_what_it_remembers(design: Design, data: Path, tmp_path: Path) -> None:
    switch = Arm(set=("objective.predictor=shared", "teacher.bank=true", "teacher.every=0"))
    design = replace(design, arms={**design.arms, "bank": switch})
    options, task = RunOptions(data=data, out=tmp_path, device="cpu"), ArmRun(arm="bank", seed=1000)
    perform(design, options, task)
    quality = result(options.folder(task))["quality"]
    assert {"whole", "bank, training images", "whole, training images"} <= quality.keys()
    shown = report.qualities(design, {("bank", 1000): {"quality": quality}})
    assert "| bank | bank, training images |" in shown
