"""Whole pretraining runs on tiny data: ranks, kills, broken images, configs, files left and read."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.checkpoints.files import read_weights
from mimbench.system.config import load_yaml, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.lock import NO_LOCK, folder_lock
from mimbench.system.runtime import Ranks
from mimbench.training.learner import StepInfo
from mimbench.training.snapshots import read_state, write_state
from pretrain import show
from pretrain.__main__ import main
from pretrain.checkpoints.handover import write_released
from pretrain.checkpoints.stored import read_model, start_from
from pretrain.config import BASE, CONFIGS, Config, read_config
from pretrain.objectives.learner import Pretraining
from pretrain.objectives.recipes import read_recipe
from pretrain.sources.crops import Crops, DataConfig
from pretrain.sources.images import open_source
from pretrain.train import train
from tests.support.processes import as_two_ranks, free_port, in_processes
from tests.support.tiny_pretrain import NETWORK, noisy_images

SMALL = [
    *NETWORK,
    "encoder.patch=8",
    "encoder.depth=1",
    "optimizer.base_lr=0.1",
    "optimizer.warmup_epochs=1",
    "training.precision=fp32",
    "training.epochs=4",
    "training.batch=8",
    "training.log_every=2",
    "training.save_every=1",
    "training.max_broken=0.1",
    "training.tensorboard=false",
    "machine.workers=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_images(tmp_path_factory.mktemp("data"), 26)


def config(folder: Path, *more: str, recipe: str = "hpm_vit_base_16") -> Config:
    return read_config(recipe, [*SMALL, f"data.root={folder}", *more])


def model_of(out: Path) -> dict[str, Tensor]:
    state = read_state(out / "checkpoints" / "last.pt")
    moments = {
        f"{index}.{name}": value
        for index, entries in state["optimizer"]["state"].items()
        for name, value in entries.items()
    }
    return {**state["model"], **state["learner"].get("teacher", {}), **moments}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def rows(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in r.items() if k not in {"images_per_second", "memory_gib"}} for r in found
    ]


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        train(config(folder), out, ranks=Ranks())
    (out / "said.txt").write_text(said.getvalue())
    return out


def test_two_processes_never_train_in_one_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wrote states and exports over each other's."""
    with (
        folder_lock(tmp_path, "busy"),
        pytest.raises(UserError, match=r"another process is pretraining in .* \(process \d+ on "),
    ):
        train(config(folder), tmp_path, ranks=Ranks())
    assert not (tmp_path / "checkpoints").exists()

    def alone(learner: object, samples: object, loop: object, context: Any) -> None:
        with pytest.raises(UserError, match="another process is pretraining"):
            train(config(folder), context.out, ranks=Ranks())

    monkeypatch.setattr("pretrain.train.fit", alone)
    train(config(folder), tmp_path, ranks=Ranks())
    monkeypatch.setenv(NO_LOCK, "1")
    with folder_lock(tmp_path, "busy"):
        monkeypatch.setattr("pretrain.train.fit", lambda *_: None)
        train(config(folder), tmp_path, ranks=Ranks())


# continuation -------------------------------------------------------------------------------------


def test_the_live_line_says_how_it_goes(whole: Path) -> None:
    last = (whole / "said.txt").read_text().strip().splitlines()[-1]
    for what in ("pretrain 12/12 100%", "left 0s", "loss ", "reconstruction ", "loss_prediction "):
        assert what in last
    for what in ("rank_correlation ", "img/s ", "GiB ", "gradient_norm "):
        assert what in last


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def test_15_ten_random_kills_change_nothing(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, killed again and again within steps and within saves, ends in the same weights."""
    dice = random.Random(0)
    kills = 0

    def bomb(original: Any, count: int) -> Any:
        left = [count]

        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(*args, **kwargs)

        return call

    while kills < 11:
        owner, name = dice.choice(
            [
                (Pretraining, "loss"),
                (Pretraining, "after_update"),
                (Path, "replace"),
            ]
        )
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, bomb(getattr(owner, name), dice.randrange(1, 3)))
            # another rhythm of saves each time: some kills lose steps, some do not
            every = f"training.save_every={dice.choice([1, 2, 3])}"
            with pytest.raises(Killed):
                train(config(folder, every), tmp_path, ranks=Ranks())
        kills += 1
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "saved", bomb(Pretraining.saved, 1))
        with pytest.raises(Killed):
            train(config(folder), tmp_path, ranks=Ranks())
    train(config(folder), tmp_path, ranks=Ranks())
    assert same(model_of(tmp_path), model_of(whole))
    assert rows(tmp_path) == rows(whole)
    for name in ("encoder.safetensors", "encoder-teacher.safetensors", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert [row["epoch"] for row in rows(whole)] == [row["step"] / 3 for row in rows(whole)]


def command(out: Path, *items: str) -> list[str]:
    # later items win here; on the command line two values for one key are an error
    merged = {item.partition("=")[0]: item for item in items}
    chosen = (x for item in merged.values() for x in ("--set", item))
    return ["hpm_vit_base_16", "--out", str(out), *chosen]


def doomed(arguments: list[str]) -> None:
    original = Pretraining.after_update

    def after_update(self: Pretraining, at: StepInfo) -> None:
        original(self, at)
        if at.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    Pretraining.after_update = after_update
    main(arguments)


def test_15_kill_9_of_the_command_with_workers(folder: Path, whole: Path, tmp_path: Path) -> None:
    arguments = command(tmp_path, *SMALL, "machine.workers=1", f"data.root={folder}")
    assert in_processes(doomed, (arguments,)) == [-signal.SIGKILL]
    assert read_state(tmp_path / "checkpoints" / "last.pt")["step"] == 7
    train(config(folder), tmp_path, ranks=Ranks())
    assert same(model_of(tmp_path), model_of(whole))


def test_another_recipe_in_the_same_folder_is_refused(folder: Path, whole: Path) -> None:
    with pytest.raises(UserError, match="another configuration"):
        train(config(folder, "mask.ratio=0.5"), whole, ranks=Ranks())


# ranks --------------------------------------------------------------------------------------------


def test_two_processes_equal_one_with_the_doubled_batch(folder: Path, tmp_path: Path) -> None:
    """Each process has half of the effective batch; without ties every image has as many pairs."""
    few = [*SMALL, f"data.root={folder}", "training.steps=5", "training.log_every=1"]
    shared = command(tmp_path / "two", *few, "machine.max_batch=2")
    assert as_two_ranks(main, shared) == [0, 0]
    assert main(command(tmp_path / "one", *few)) == 0
    one, two = model_of(tmp_path / "one"), model_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if not unmoved(name):
            other = two[name]
            if name.endswith("qkv.bias"):
                keys = len(tensor) // 3
                tensor, other = (torch.cat([t[:keys], t[2 * keys :]]) for t in (tensor, other))
            error = (other - tensor).norm() / tensor.norm().clamp(min=1e-6)
            assert error < 1e-5, (name, error)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


def unmoved(name: str) -> bool:
    """Tell which tensors have no true gradient: AdamW makes steps of their rounding errors.

    A constant added to all keys, or to all predicted losses, changes nothing.
    """
    return name in {"predictor.norm.bias", "predictor.pred.bias"} or name[0].isdigit()


@pytest.mark.slow
def test_torchrun_on_two_nodes_equals_one_process(folder: Path, tmp_path: Path) -> None:
    """The documented command for many machines, both of them this one."""
    port = free_port()
    few = [*SMALL, f"data.root={folder}", "training.steps=4", "training.log_every=1"]
    arguments = command(tmp_path / "two", *few, "machine.max_batch=2")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    torchrun += ["--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", f"127.0.0.1:{port}", "-m", "pretrain", *arguments]
    nodes = [subprocess.Popen(torchrun) for _ in range(2)]
    assert [node.wait(300) for node in nodes] == [0, 0]
    assert main(command(tmp_path / "one", *few)) == 0
    assert len(read_state(tmp_path / "two" / "checkpoints" / "last.pt")["processes"]) == 2
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


def test_every_option_of_the_slurm_and_torchrun_examples_is_understood() -> None:
    """What docs/howto/pretraining.md shows: each command names recipes and overrides that exist."""
    text = (Path(__file__).parents[1] / "docs" / "howto" / "pretraining.md").read_text(
        encoding="utf-8"
    )
    block = text.split("```")[1].replace("\\\n", " ")
    commands = [
        line.split("#")[0].split("-m pretrain ")[1].split() for line in block.strip().splitlines()
    ]
    assert len(commands) >= 5
    for words in commands:
        changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        read_recipe(words[0], [item for item in changes if "FILE" not in item])


# switches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        ["objective.predict_loss=none", "mask.name=random"],
        ["mask.name=random"],
        ["objective.predict_loss=absolute", "objective.target=normalised"],
        ["objective.epsilon=1e-6", "mask.alpha_start=1", "mask.alpha_end=1"],
        ["mask.order=easiest", "mask.per=step", "teacher.every=2"],
        ["objective.target=ema", "teacher.tokens=0.5"],
        ["teacher.keep=true", "mask.name=random"],
    ],
    ids=lambda change: ",".join(change),
)
def test_every_switch_leads_to_other_weights(
    folder: Path, whole: Path, tmp_path: Path, change: list[str]
) -> None:
    train(config(folder, *change), tmp_path, ranks=Ranks())
    found, usual = model_of(tmp_path), model_of(whole)
    assert not same(found, usual)
    assert all(torch.isfinite(t).all() for t in found.values())
    has_teacher = (tmp_path / "encoder-teacher.safetensors").exists()
    assert has_teacher == ("mask.name=random" not in change or "teacher.keep=true" in change)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(folder: Path, tmp_path: Path, precision: str) -> None:
    train(config(folder, f"training.precision={precision}"), tmp_path, ranks=Ranks())
    assert all(torch.isfinite(t).all() for t in model_of(tmp_path).values())


def test_saving_memory_changes_nothing(folder: Path, whole: Path, tmp_path: Path) -> None:
    train(config(folder, "machine.recompute=true"), tmp_path, ranks=Ranks())
    assert same(model_of(tmp_path), model_of(whole))


def test_compiled_networks_compute_the_same(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured in one graph each, then run without code generation, which wants a C++ compiler."""
    original, compiled = torch.nn.Module.compile, []

    def compile_(self: torch.nn.Module) -> None:
        compiled.append(type(self).__name__)
        original(self, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    # one hidden patch is chosen by difficulty from the first epoch on, so that the teacher works
    changes = ["mask.alpha_start=0.2", "training.steps=4"]
    train(config(folder, *changes, "machine.compile=true"), tmp_path / "a", ranks=Ranks())
    assert compiled == ["Teacher", "MaskedAutoencoder"]
    train(config(folder, *changes), tmp_path / "b", ranks=Ranks())
    for a, b in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


# data ---------------------------------------------------------------------------------------------


def test_broken_images(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    for path in sorted(folder.rglob("*.jpg")):
        copy = data / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    broken = [data / "train" / "a" / "04.jpg", data / "train" / "b" / "07.jpg"]
    broken[0].write_bytes(broken[0].read_bytes()[:200])
    broken[1].write_bytes(b"")
    train(config(data), tmp_path / "run", ranks=Ranks())
    assert rows(tmp_path / "run")[-1]["broken_images"] == 2
    assert all(str(path) in caplog.text for path in broken)
    with pytest.raises(UserError, match=r"2 broken images.*(?s:.)*07.jpg: the file is empty"):
        train(config(data, "training.max_broken=0.05"), tmp_path / "strict", ranks=Ranks())


def test_crops(folder: Path) -> None:
    source = open_source("", folder, "train")
    crops = Crops(source, DataConfig(image_size=32))
    views = [crops[0] for _ in range(8)]
    assert all(v.shape == (3, 32, 32) and v.dtype == torch.uint8 for v in views)
    assert len({v.float().mean().item() for v in views}) == 8
    plain = Crops(source, DataConfig(image_size=32, augment="none"))
    assert torch.equal(plain[0], plain[0])
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    image[:, :, 10:] = 255
    mirrored = Crops(source, DataConfig(image_size=20, scale=(1, 1), ratio=(1, 1), flip=1.0))
    assert torch.equal(mirrored.augment(image), image.flip(-1))


# configs ------------------------------------------------------------------------------------------


def test_base_spells_out_every_default() -> None:
    base = load_yaml(BASE)
    plain = to_mapping(Config())
    plain["mask"] = {"name": "hard", "ratio": 0.75}
    plain["machine"] |= {"workers": 8}
    assert base == plain


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_what_it_stands_for(path: Path) -> None:
    found = read_config(str(path), [])
    assert read_config(path.stem, []).digest() == found.digest()
    if path == BASE:
        return
    lines = path.read_text().splitlines()
    header = "".join(line for line in lines if line.startswith("#"))
    assert f"-m pretrain {path.stem}" in header
    if path.stem == "demo":
        assert "Nothing published" in header
    else:
        assert re.search(r"Published \(.*\): .*%", header)
        assert "Unknown: " in header


def test_a_recipe_names_only_what_differs_from_the_base() -> None:
    def leaves(value: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
        for key, item in value.items():
            if isinstance(item, dict):
                yield from leaves(item, *path, key)
            else:
                yield (*path, key), item

    base = dict(leaves(load_yaml(BASE)))
    for path in CONFIGS.glob("*.yaml"):
        if path != BASE:
            same = [key for key, value in leaves(load_yaml(path)) if base.get(key, ...) == value]
            assert not same, (path.stem, same)


def test_hpm_and_its_baseline_differ_in_the_method_alone() -> None:
    hpm, mae = (to_mapping(read_config(n, [])) for n in ("hpm_vit_base_16", "mae_vit_base_16_200"))
    assert {key for key in hpm if hpm[key] != mae[key]} == {"objective", "mask"}
    assert hpm["objective"] == {**mae["objective"], "predict_loss": "relative"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("traning.epochs=3", "unknown key 'traning'.*did you mean 'training'"),
        ("training.epoch=3", "unknown key 'epoch'.*did you mean 'epochs'"),
        ("mask.name=hrad", "unknown mask.name 'hrad'; did you mean 'hard'"),
        ("mask.alpha=1", "unknown key 'alpha' in mask"),
        ("mask.alpha_end=2", "alpha_end is 2.0, expected a share"),
        ("mask.ratio=high", "ratio is 'high'"),
        ("objective.target=pixel", "did you mean 'pixels'"),
        ("objective.target=dino", "needs features_from"),
        ("objective.predict_loss=none", "follow the predicted loss, but"),
        ("data.image_size=225", "225 do not divide into patches of 16"),
        ("encoder.heads=5", "width of 768 must divide by its 5 heads"),
        ("training.batch=0", "batch is 0"),
        ("teacher.tokens=0", "tokens is 0.0"),
        ("teacher.every=0", "every is 0"),
    ],
)
def test_mistakes_in_a_config(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config("hpm_vit_base_16", [override])


def test_the_command_reports_the_users_mistakes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["hpm_vit_bse_16"]) == 2
    assert "did you mean 'hpm_vit_base_16'" in capsys.readouterr().err
    assert main(["demo", "--set", "data.name=''", "--out", str(tmp_path)]) == 2
    assert "data.root is not set" in capsys.readouterr().err


def test_the_digest_ignores_the_machine_and_where_data_lies(folder: Path) -> None:
    one = config(folder)
    assert config(folder, "machine.workers=5", "training.log_every=9").digest() == one.digest()
    assert config(folder.parent).digest() == one.digest()
    assert config(folder, "mask.alpha_end=0.4").digest() != one.digest()
    assert config(folder, "training.seed=1").digest() != one.digest()


# files left and read ------------------------------------------------------------------------------


def test_exports_are_read_by_the_suite(whole: Path) -> None:
    student = read_weights(whole / "encoder.safetensors")
    teacher = read_weights(whole / "encoder-teacher.safetensors")
    assert (student.which, teacher.which) == ("student", "teacher")
    state = read_state(whole / "checkpoints" / "last.pt")
    assert torch.equal(student.tensors["norm.weight"], state["model"]["encoder.norm.weight"])
    wanted = state["learner"]["teacher"]["encoder.norm.weight"]
    assert torch.equal(teacher.tensors["norm.weight"], wanted)
    card = json.loads((whole / "model.json").read_text())
    assert (card["step"], card["epoch"], card["epochs"]) == (12, 4, 4)


@pytest.mark.parametrize("layout", ["hpm", "mae"])
def test_released_layouts_round_trip(whole: Path, tmp_path: Path, layout: str) -> None:
    stored = read_model(whole)
    path = tmp_path / "released.pth"
    write_released(path, stored, layout)
    weights = read_weights(path, num_heads=2)
    assert weights.format == layout
    own = read_weights(whole / "encoder.safetensors")
    assert all(torch.equal(weights.tensors[k], t) for k, t in own.tensors.items())
    again = read_model(path, num_heads=2)
    assert again.epochs_done == 4
    predictor = {k for k in stored.student if k.startswith("predictor.")}
    assert set(stored.student) - set(again.student) == (set() if layout == "hpm" else predictor)
    for name, tensor in again.student.items():
        torch.testing.assert_close(tensor, stored.student[name])
    if layout == "hpm":
        assert torch.load(path, weights_only=True)["epoch"] == 4
        assert stored.teacher is not None
        assert again.teacher is not None
        for name, tensor in stored.teacher.items():
            torch.testing.assert_close(again.teacher[name], tensor)


def test_stored_models_can_be_built(whole: Path) -> None:
    model, teacher = read_model(whole).build()
    assert teacher is not None
    assert model.predictor is not None
    assert not model.training


@pytest.mark.parametrize("name", ["", "checkpoints", "checkpoints/last.pt", "checkpoints/best.pt"])
def test_a_run_and_each_of_its_states_is_a_model(
    folder: Path, whole: Path, tmp_path: Path, name: str
) -> None:
    own, again = read_model(whole / "model.safetensors"), read_model(whole / name)
    for what in ("spec", "decoder", "target", "mask"):
        assert getattr(again, what) == getattr(own, what)
    assert again.student.keys() == own.student.keys()
    assert again.teacher is not None
    assert own.teacher is not None
    assert again.teacher.keys() == own.teacher.keys()
    if not name.endswith("best.pt"):
        assert again.epochs_done == own.epochs_done == 4
        assert same(dict(again.student), dict(own.student))
    picture = show.figure(whole / name, [folder / "train" / "a" / "00.jpg"], tmp_path / "out.png")
    assert picture.stat().st_size > 10_000
    state = read_state(whole / "checkpoints" / "last.pt")
    assert state["config"] == to_mapping(config(folder))


def test_an_unfinished_run_is_a_model_too(folder: Path, tmp_path: Path) -> None:
    short = config(folder, "training.steps=2", "training.save_every=2", "machine.max_batch=4")
    train(short, tmp_path / "run", ranks=Ranks())
    for path in (tmp_path / "run").glob("*.*"):
        if path.is_file():
            path.unlink()
    found = read_model(tmp_path / "run")
    assert found.epochs_done == 0
    write_released(tmp_path / "released.pth", found, "hpm")
    assert read_weights(tmp_path / "released.pth", num_heads=2).format == "hpm"
    begun = config(folder, f"start.weights={tmp_path / 'run'}")
    student = Pretraining(begun, torch.device("cpu"), tmp_path).student
    start_from(tmp_path / "run", student, None, num_heads=2)
    assert torch.equal(student.neck.mask_token, found.student["neck.mask_token"])


def test_a_run_begun_anew_is_not_taken_for_its_old_export(folder: Path, tmp_path: Path) -> None:
    train(config(folder, "training.steps=4"), tmp_path, ranks=Ranks())
    exported = read_model(tmp_path / "model.safetensors")
    assert same(dict(read_model(tmp_path).student), dict(exported.student))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "saved", lambda *_: None)
        # further steps of the same run, then another run in its place
        for change in ("training.steps=5", "training.seed=1"):
            fresh = change == "training.seed=1"
            few = config(folder, change, *(["training.steps=2"] if fresh else []))
            train(few, tmp_path, ranks=Ranks(), fresh=fresh)
            state = read_state(tmp_path / "checkpoints" / "last.pt")
            found = read_model(tmp_path)
            assert same(dict(found.student), state["model"])
            assert not same(dict(found.student), dict(exported.student))


def test_what_holds_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither model.safetensors nor checkpoints/last.pt"):
        read_model(tmp_path)
    path = tmp_path / "state.pt"
    for content, message in (
        ({}, "state of another task"),
        ({"method": "distillation", "objective": {}}, "distillation run, which has no decoders"),
        (to_mapping(Config()), "no complete training state: 'learner' is missing"),
    ):
        write_state(path, {"config": content, "step": 0, "model": {"w": torch.zeros(1)}})
        with pytest.raises(UserError, match=message):
            read_model(path)


def test_start_and_resume_from_released_files(folder: Path, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "released.pth"
    write_released(path, read_model(whole), "hpm")
    longer = config(folder, f"start.weights={path}", "start.resume=true", "training.epochs=6")
    train(longer, tmp_path / "run", ranks=Ranks())
    state = read_state(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state["step"] == 18
    assert rows(tmp_path / "run")[0]["step"] == 14
    learner = Pretraining(longer, torch.device("cpu"), tmp_path)
    assert start_from(path, learner.student, learner.teacher, num_heads=2) == 4
    assert learner.teacher is not None
    assert read_model(whole).teacher is not None
    for name, tensor in read_model(whole).student.items():
        torch.testing.assert_close(learner.student.state_dict()[name], tensor)
    done = config(folder, f"start.weights={path}", "start.resume=true")
    with pytest.raises(UserError, match="has 4 epochs behind it.*nothing is left to do"):
        train(done, tmp_path / "other", ranks=Ranks())


def test_start_from_an_encoder_says_what_is_new(
    folder: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = whole / "encoder.safetensors"
    learner = Pretraining(config(folder), torch.device("cpu"), tmp_path)
    caplog.set_level("INFO")
    start_from(path, learner.student, learner.teacher, num_heads=2)
    assert "new: neck, predictor, reconstructor" in caplog.text
    wider = Pretraining(config(folder, "encoder.width=32"), torch.device("cpu"), tmp_path)
    with pytest.raises(UserError, match="does not fit this run's model: encoder.* is .*expected"):
        start_from(path, wider.student, None, num_heads=2)
