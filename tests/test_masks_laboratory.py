"""The mask laboratory: what it counts is right, and both commands leave what they promise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from mimbench.checkpoints.files import write_weights
from mimbench.system.config import to_mapping
from mimbench.task import Machine
from mimbench.training.learner import RunContext
from mimbench.training.loop import fit
from mimbench.vit.weights import VitWeights
from pretrain.config import read_config
from pretrain.masks import __main__ as command
from pretrain.masks.__main__ import main
from pretrain.objectives.adversarial import AdversarialPretraining
from pretrain.viewing.annotations import Annotations, find_annotations
from pretrain.viewing.laboratory import Observer, fit_image
from pretrain.viewing.mask_figures import veiled
from pretrain.viewing.mask_statistics import StrategyStatistics, describe, find_images, spearman
from tests.support.tiny_pretrain import NETWORK

SMALL = [
    *NETWORK,
    "encoder.patch=8",
    "encoder.depth=1",
    "data.root=/nowhere",
    "training.precision=fp32",
    "training.batch=4",
    "training.steps=1",
    "training.tensorboard=false",
]


class Noise:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator)

    def name(self, index: int) -> str:
        return str(index)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has everything: decoder, loss predictor, teacher and mask generator."""
    out = tmp_path_factory.mktemp("run")
    config = read_config("hpm_vit_base_16", [*SMALL, "mask.name=adversarial"])
    machine = Machine(workers=0, device="cpu")
    context = RunContext(out=out, digest="d", config=to_mapping(config), machine=machine)
    fit(AdversarialPretraining(config, torch.device("cpu"), out), Noise(), config.loop(), context)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    folder = root / "val2017"
    folder.mkdir()
    dice = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(16):  # of so many, one at least has a harder second draw
        name = f"{i:03d}.png"
        Image.fromarray(dice.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / name)
        images.append({"id": i, "file_name": name, "width": 64, "height": 48})
        box = [8, 0, 24, 24]
        annotations.append({"image_id": i, "bbox": box, "segmentation": []})
    (root / "annotations").mkdir()
    content = {"images": images, "annotations": annotations}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def test_show_draws_every_strategy(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks.png"
    files = [str(p) for p in sorted(data.glob("*.png"))[:2]]
    assert main(["show", *files, "--checkpoint", str(run), "-o", str(out), "--ratio", "0.75"]) == 0
    with Image.open(out) as picture:
        wide = picture.size
        assert np.asarray(picture.convert("RGB")).std() > 10
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    # annotations lie beside the images; no run has a generator and a masking network at once
    assert len(said) == 1
    assert "curriculum is left out: it needs a trained masking network" in said[0]
    encoder = run / "encoder.safetensors"
    assert (
        main(["show", *files, "--checkpoint", str(encoder), "-o", str(out), "--ratio", "0.75"]) == 0
    )
    with Image.open(out) as picture:
        assert picture.size[0] < wide[0]


def test_stats_table_and_figure(
    run: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, measured = tmp_path / "stats.png", list[StrategyStatistics]()
    tabulate = command.shapes
    monkeypatch.setattr(command, "shapes", lambda rows: measured.extend(rows) or tabulate(rows))
    arguments = ["stats", "--data", str(data), "--checkpoint", str(run), "-o", str(out)]
    assert main([*arguments, "--ratio", "0.5"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    lines, shapes = first.splitlines(), second.splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines[2:]}
    assert [line.split("|")[1] for line in shapes[2:]] == [line.split("|")[1] for line in lines[2:]]
    assert all(line.split("|")[-2].strip() != "-" for line in shapes[2:])
    lift = {line.split("|")[1].strip(): float(line.split("|")[-2]) for line in shapes[2:]}
    assert lift["random"] == 1
    # the table rounds it
    [harder] = [row.shape.lift for row in measured if row.label == "harder"]
    assert harder is not None
    assert harder > 1
    assert {"boxes", "segments things", "segments whole", "segments within"} <= rows.keys()
    assert float(rows["boxes"][3]) > 1.2 > float(rows["segments within"][3])
    for name in ("random", "grid", "block", "hard hardest", "attention high", "adversarial"):
        ratio, entropy, clumping, objects, rank = (float(v) for v in rows[name])
        assert ratio == 0.5
        assert 0 < entropy <= 1
        assert clumping > 0
        assert objects >= 0
        assert -1 <= rank <= 1
    assert float(rows["grid"][2]) > float(rows["random"][2])
    with Image.open(out) as picture:
        assert min(picture.size) > 300


def test_what_a_checkpoint_cannot_say_is_named(
    tiny_weights: VitWeights, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "encoder.safetensors"
    write_weights(path, tiny_weights)
    assert main(["stats", "--data", str(data), "--checkpoint", str(path)]) == 0
    captured = capsys.readouterr()
    assert "hard hardest is left out: it needs a loss predictor" in captured.err
    assert "adversarial is left out: it needs a trained generator" in captured.err
    table = captured.out.split("\n\n")[0].splitlines()[2:]
    names = [line.split("|")[1].strip() for line in table]
    assert "attention high" in names
    assert "hard hardest" not in names
    assert all(line.split("|")[-2].strip() == "-" for line in table)


def test_true_loss_is_the_students(run: Path) -> None:
    observer = Observer(run)
    images = torch.rand(2, 3, 32, 32)
    observation = observer.look(images)
    assert observation.loss is not None
    assert observation.loss.shape == (2, 16)
    assert (observation.loss > 0).all()
    assert observation.difficulty is not None
    assert observation.log_probability is not None
    torch.testing.assert_close(observation.log_probability.exp().sum(1), torch.ones(2))
    larger = Observer(run, size=64).look(torch.rand(1, 3, 64, 64))
    assert larger.grid == (8, 8)
    assert larger.loss is None


def test_statistics_by_hand() -> None:
    left = torch.tensor([[1, 1, 0, 0]] * 4, dtype=torch.bool).flatten()
    draws = left.expand(3, 2, 16)
    objects = torch.zeros(2, 16)
    objects[0, 0] = 1.0
    objects[1] = float("nan")
    loss = left.float().expand(2, 16) * torch.tensor([[1.0], [-1.0]])
    row = describe("x", draws, (4, 4), objects=objects, loss=loss)
    assert row.ratio == 0.5
    # half of the places alike: log 8 / log 16
    assert row.spatial_entropy == pytest.approx(0.75)
    # 24 pairs within or across: each of 8 hidden has 24 neighbours in all, of which 20 are hidden
    assert row.clumping == pytest.approx(20 / 24 / 0.5)
    assert row.objects == pytest.approx(2.0)
    assert row.rank_correlation == pytest.approx(0.0)
    assert torch.equal(row.where[:, 0], torch.ones(4))
    none = describe("x", draws, (4, 4), objects=None, loss=None)
    assert none.objects is None
    assert none.rank_correlation is None


def test_spearman_with_ties() -> None:
    source = torch.Generator().manual_seed(0)
    one = torch.randint(0, 4, (3, 20), generator=source).float()
    other = torch.rand(3, 20, generator=source)
    pairs: list[Any] = [spearmanr(a, b) for a, b in zip(one, other, strict=True)]
    wanted = sum(pair[0] for pair in pairs) / len(pairs)
    assert spearman(one, other) == pytest.approx(wanted)
    assert spearman(torch.ones(2, 5), other[:2, :5]) == 0.0


def test_objects_land_on_their_patches(data: Path) -> None:
    paths = find_images(data, 2)
    found = find_annotations(data, paths, None).cover(paths, (48, 48), 24)
    assert found is not None
    assert found.kind == "objects"
    # the middle 48 of 64 columns begin at column 8, where the box begins
    assert found.weights.shape == (2, 4)
    assert found.weights[0, 0] > 0.95
    assert found.weights[0, 1:].max() < 0.1
    assert Annotations().cover(paths, (48, 48), 24) is None


def test_pictures() -> None:
    image = torch.arange(3 * 40 * 80).reshape(3, 40, 80).to(torch.uint8)
    assert fit_image(image, (20, 20)).shape == (3, 20, 20)
    picture = np.zeros((32, 32, 3))
    mask = torch.zeros(16, dtype=torch.bool)
    mask[5] = True
    found = veiled(picture, mask, (4, 4))
    by = len(found) // 32
    assert found[12 * by, 12 * by].min() > 0.5
    assert found[4 * by, 4 * by].max() == 0


def test_mistakes(
    tiny_weights: VitWeights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "encoder.safetensors"
    write_weights(path, tiny_weights)
    assert main(["stats", "--data", str(tmp_path / "no"), "--checkpoint", str(path)]) == 2
    assert "no images below" in capsys.readouterr().err
    assert main(["show", "x.png", "--checkpoint", str(path), "--image-size", "50"]) == 2
    assert "--image-size 50 does not divide into patches of 16" in capsys.readouterr().err
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[]")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    arguments = ["stats", "--data", str(tmp_path), "--checkpoint", str(path)]
    assert main([*arguments, "--annotations", str(wrong)]) == 2
    assert "no COCO annotation file" in capsys.readouterr().err
