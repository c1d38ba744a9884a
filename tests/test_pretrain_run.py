"""Whole pretraining runs on tiny data: ranks, kills, broken images, configs, files left and read."""

import io
import json
import os
import random
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mimbench.checkpoints import read_weights
from mimbench.config import load_yaml, to_mapping
from mimbench.errors import UserError
from mimbench.learner import Moment
from mimbench.runtime import Ranks
from mimbench.snapshots import read_state
from pretrain.__main__ import main
from pretrain.config import BASE, CONFIGS, Config, read_config
from pretrain.data import Crops, DataConfig
from pretrain.export import write_released
from pretrain.learner import Pretraining
from pretrain.sources import expand, open_source
from pretrain.stored import read_model, start_from
from pretrain.train import train
from tests.processes import as_two_ranks, in_processes

SMALL = [
    "encoder.patch=8",
    "encoder.width=24",
    "encoder.depth=1",
    "encoder.heads=2",
    "decoder.width=16",
    "decoder.depth=1",
    "decoder.heads=2",
    "data.image_size=32",
    "optimizer.base_lr=0.1",
    "optimizer.warmup_epochs=1",
    "training.precision=fp32",
    "training.epochs=4",
    "training.batch=8",
    "training.log_every=2",
    "training.save_every=1",
    "training.max_broken=0.1",
    "training.tensorboard=false",
    "machine.device=cpu",
    "machine.workers=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-six noisy JPEG files in two classes."""
    root = tmp_path_factory.mktemp("data")
    dice = np.random.default_rng(0)
    for i in range(26):
        path = root / "train" / "ab"[i % 2] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return root


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
    train(config(folder), out, ranks=Ranks())
    return out


# continuation -------------------------------------------------------------------------------------


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
            [(Pretraining, "loss"), (Pretraining, "after_update"), (Path, "replace")]
        )
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, bomb(getattr(owner, name), dice.randrange(1, 3)))
            # another rhythm of saves each time: some kills lose steps, some do not
            every = f"training.save_every={dice.choice([1, 2, 3])}"
            with pytest.raises(Killed):
                train(config(folder, every), tmp_path, ranks=Ranks())
        kills += 1
    train(config(folder), tmp_path, ranks=Ranks())
    assert same(model_of(tmp_path), model_of(whole))
    assert rows(tmp_path) == rows(whole)
    assert [row["epoch"] for row in rows(whole)] == [row["step"] / 3 for row in rows(whole)]


def command(out: Path, *items: str) -> list[str]:
    return ["hpm_vit_base_16", "--out", str(out), *(x for item in items for x in ("--set", item))]


def doomed(arguments: list[str]) -> None:
    original = Pretraining.after_update

    def after_update(self: Pretraining, at: Moment) -> None:
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


def test_every_kind_of_source_gives_the_same_images(folder: Path, tmp_path: Path) -> None:
    files = sorted((folder / "train").rglob("*.jpg"))
    names = [str(f.relative_to(folder / "train")) for f in files]
    lists = tmp_path / "lists"
    (lists / "train").parent.mkdir()
    (lists / "train").symlink_to(folder / "train")
    (lists / "train.txt").write_text("".join(f"{name} {i % 2}\n" for i, name in enumerate(names)))
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(folder / "train", arcname="train")
    for number, half in enumerate((files[:13], files[13:])):
        with tarfile.open(tmp_path / f"part-{number:03d}.tar", "w") as archive:
            for file in half:
                for name, content in ((file.name, file.read_bytes()), (f"{file.stem}.cls", b"1")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    sources = {
        "folder": open_source("", folder, "train"),
        "list": open_source("list", lists, "train"),
        "tar": open_source("", tmp_path / "all.tar", "train"),
        "shards": open_source("wds/part-{000..001}.tar", tmp_path, "train"),
        "torchvision": open_source("torch/image_folder", folder, "train"),
    }
    wanted = {file.name: file.read_bytes() for file in files}
    for kind, source in sources.items():
        assert len(source) == 26, kind
        if kind == "torchvision":
            assert isinstance(source.load(3), Tensor)
            continue
        for i in range(26):
            assert source.load(i) == wanted[Path(source.name(i).split(":")[-1]).name], kind


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("", "absent", "absent does not exist"),
        ("list", ".", "wants .*train.txt with lines"),
        ("wds/{0..3}.tar", ".", r"shard .*0.tar does not exist"),
        ("wds/*.tar", ".", "no shard matches"),
        ("hfds/any", ".", "cannot open data.name 'hfds/any'"),
        ("torch/nonsense", ".", "Unknown torchvision dataset nonsense"),
    ],
)
def test_sources_say_what_they_miss(tmp_path: Path, name: str, root: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(name, tmp_path / root, "train")
    with pytest.raises(UserError, match=r"data.root is not set"):
        open_source(name, None, "train")


def test_shard_patterns(tmp_path: Path) -> None:
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar"):
        (tmp_path / name).touch()
    found = [p.name for p in expand(tmp_path, "a-{08..10}.tar")]
    assert found == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [p.name for p in expand(tmp_path, "{a,b}-08.tar")] == ["a-08.tar", "b-08.tar"]
    assert len(expand(tmp_path, "a-*.tar")) == 3


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
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    if path != BASE:
        assert "python -m pretrain" in "".join(header) or "-m pretrain" in "".join(header)
        assert "Published" in "".join(header) or "published" in "".join(header)


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
    assert main(["hpm_vit_bse_16"]) == 1
    assert "did you mean 'hpm_vit_base_16'" in capsys.readouterr().err
    assert main(["demo", "--set", "data.name=''", "--out", str(tmp_path)]) == 1
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
