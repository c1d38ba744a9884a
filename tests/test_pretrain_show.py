"""The picture of what a model finds hard, hides and fills in."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mimbench.checkpoints.files import write_weights
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.training.learner import StepInfo
from mimbench.vit.weights import VitSpec, VitWeights
from pretrain import show
from pretrain.checkpoints.handover import write_export, write_released
from pretrain.checkpoints.stored import StoredModel, read_model
from pretrain.config import Config
from pretrain.masks.hard import Strategy as Hard
from pretrain.models.autoencoder import MaskedAutoencoder, to_patches
from pretrain.models.reconstruction import normalise_patches
from pretrain.models.teacher import Teacher
from pretrain.viewing import drawing, view

TINY = {
    "encoder": {"patch": 8, "width": 24, "depth": 1, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "data": {"image_size": 32},
    "objective": {"target": "pixels"},
    "mask": {"name": "hard", "ratio": 0.5},
}
FILES = [f"{i}.png" for i in range(2)]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two pictures that are neither square nor of the model's size."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(FILES):
        pixels = rng.integers(0, 256, (5, 9 - 2 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90 - 20 * i, 50), Image.Resampling.BICUBIC).save(
            tmp_path / name
        )
    return [tmp_path / name for name in FILES]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Make the folder of a finished run."""

    def make(**changes: Mapping[str, Any]) -> Path:
        torch.manual_seed(0)
        sections = {name: {**section, **changes.get(name, {})} for name, section in TINY.items()}
        if "mask" in changes:
            sections["mask"] = dict(changes["mask"])
        config = from_mapping(Config, sections, "test")
        predictor = config.objective.predict_loss != "none"
        outputs = 7 if config.objective.target == "ema" else None
        model = MaskedAutoencoder(
            config.encoder.spec(config.data), config.decoder, outputs=outputs, predictor=predictor
        )
        teacher = Teacher(model) if predictor else None
        at = StepInfo(step=2, steps_per_epoch=1, epochs=2, batch=1)
        write_export(tmp_path / "run", config, model, teacher, at)
        return tmp_path / "run"

    return make


def looked(run: Path, pictures: list[Path], **options: Any) -> view.View:
    return view.look(read_model(run), run, pictures, **{"target": None, "seed": 0, **options})


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def texts(drawn: Any) -> str:
    found = [t.get_text() for t in drawn.texts]
    found += [t.get_text() for axes in drawn.axes for t in (*axes.texts, axes.title)]
    found += [t.get_text() for legend in drawn.legends for t in legend.get_texts()]
    return " ".join(" ".join(found).split())


def test_command_writes_a_picture(
    run: Callable[..., Path], pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out.png"
    assert show.main([str(run()), *map(str, pictures), "-o", str(out)]) == 0
    width, height = size_of(out)
    assert width > height > 300
    assert [p.name for p in out.parent.iterdir()] == ["out.png"]


def test_same_picture_twice_and_another_for_another_seed(
    run: Callable[..., Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = run()
    first, second, third = (tmp_path / f"{i}.png" for i in "abc")
    assert show.figure(folder, pictures, first) == first
    show.figure(folder, pictures, second)
    show.figure(folder, pictures, third, seed=1)
    assert first.read_bytes() == second.read_bytes() != third.read_bytes()


def test_masks_follow_the_schedule(run: Callable[..., Path], pictures: list[Path]) -> None:
    found = looked(run(), pictures)
    assert found.difficulty is not None
    strategy = Hard(ratio=0.5)
    for stage, hard in zip(found.stages, (0, 2, 4), strict=True):
        assert ((stage.kinds != view.VISIBLE).sum(1) == strategy.count(16)).all()
        assert ((stage.kinds == view.HARD).sum(1) == hard).all()
        assert stage.share == hard / 8
        # what is called hard is really what the heat map shows as hardest
        assert (found.difficulty[stage.kinds == view.HARD] > (15 - hard) / 15 - 1e-6).all()


def test_heat_map_is_the_teachers(run: Callable[..., Path], pictures: list[Path]) -> None:
    folder = run()
    stored = read_model(folder)
    assert stored.teacher is not None
    generator = torch.Generator().manual_seed(3)
    teacher = {
        n: torch.randn(t.shape, generator=generator) if n.endswith("pred.weight") else t
        for n, t in stored.teacher.items()
    }
    changed = StoredModel(**{**vars(stored), "teacher": teacher})
    own, other = (view.look(s, folder, pictures, target=None, seed=0) for s in (stored, changed))
    assert own.difficulty is not None
    assert other.difficulty is not None
    assert not torch.equal(own.difficulty, other.difficulty)
    # what is filled in under a given mask is the student's
    assert own.agreement != 1


def test_visible_patches_stay_and_hidden_ones_are_predicted(
    run: Callable[..., Path], pictures: list[Path]
) -> None:
    found = looked(run(), pictures)
    assert found.filled is not None
    hidden = found.stages[-1].kinds != view.VISIBLE
    before, after = to_patches(found.images, 8), to_patches(found.filled, 8)
    torch.testing.assert_close(before[~hidden], after[~hidden], atol=1e-5, rtol=0)
    assert ((before - after)[hidden].abs().mean(-1) > 1e-3).all()


def test_normalised_predictions_get_the_patches_own_brightness() -> None:
    wanted = torch.randn(2, 3, 192, generator=torch.Generator().manual_seed(0)) * 0.3 + 1.2
    torch.testing.assert_close(view.restored(normalise_patches(wanted), wanted), wanted)


@pytest.mark.parametrize("truth", ["pixels", "normalised"])
def test_target_is_found_where_the_file_does_not_say(truth: str) -> None:
    wanted = torch.randn(4, 8, 192, generator=torch.Generator().manual_seed(0)) * 0.3 + 1.2
    goal = wanted if truth == "pixels" else normalise_patches(wanted)
    assert view.settle(None, goal * 0.8, wanted) == (truth, True)
    assert view.settle("pixels", goal, wanted) == ("pixels", False)


def test_places_are_ranks() -> None:
    found = view.places(torch.tensor([[3.0, -1.0, 100.0], [0.1, 0.2, 0.3]]))
    assert found.tolist() == [[0.5, 0.0, 1.0], [0.0, 0.5, 1.0]]


def test_words_explain_what_is_drawn(run: Callable[..., Path], pictures: list[Path]) -> None:
    said = texts(drawing.draw(looked(run(), pictures), FILES))
    for words in (
        "Expected difficulty",
        "Hidden at first",
        "Hidden halfway",
        "Hidden at the end",
        "50% hidden, 50% of it as hard",
        "Filled in by the model",
        "hidden because expected to be hard",
        "rank correlation",
    ):
        assert words in said


def test_mae_has_no_heat_map(run: Callable[..., Path], pictures: list[Path]) -> None:
    folder = run(objective={"predict_loss": "none"}, mask={"name": "random", "ratio": 0.75})
    found = looked(folder, pictures)
    assert found.difficulty is None
    assert [int((s.kinds == view.RANDOM).sum(1)[0]) for s in found.stages] == [12]
    said = texts(drawing.draw(found, FILES))
    assert "no loss predictor" in said
    assert "hidden because" not in said


def test_features_are_no_pixels(run: Callable[..., Path], pictures: list[Path]) -> None:
    found = looked(run(objective={"target": "ema"}), pictures)
    assert found.filled is None
    assert found.agreement is None
    assert "nothing can be drawn" in texts(drawing.draw(found, FILES))


def test_released_layouts(
    run: Callable[..., Path], pictures: list[Path], golden: Path, tmp_path: Path
) -> None:
    out = tmp_path / "golden.png"
    show.figure(golden / "hpm_official_raw.pth", pictures, out, heads=3)
    assert size_of(out)[0] > 1000


@pytest.mark.parametrize("layout", ["hpm", "mae"])
def test_our_export_shows_the_same_as_the_run(
    run: Callable[..., Path], pictures: list[Path], tmp_path: Path, layout: str
) -> None:
    folder, path = run(decoder={"width": 32, "heads": 16}), tmp_path / "exported.pth"
    write_released(path, read_model(folder), layout)
    own = looked(folder, pictures)
    stored = read_model(path, num_heads=2)
    again = view.look(stored, path, pictures, target="pixels", seed=0)
    if layout == "hpm":
        assert own.difficulty is not None
        assert again.difficulty is not None
        torch.testing.assert_close(own.difficulty, again.difficulty)
    else:
        assert again.difficulty is None
    assert again.filled is not None


def test_encoder_only_is_refused(
    tiny_weights: VitWeights,
    pictures: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "encoder.safetensors"
    write_weights(path, tiny_weights)
    assert show.main([str(path), str(pictures[0]), "-o", str(tmp_path / "out.png")]) == 2
    said = capsys.readouterr().err
    assert "holds an encoder only" in said
    assert "reconstruction decoder and the loss predictor are missing" in said
    assert not (tmp_path / "out.png").exists()


def test_encoder_of_a_run_is_refused(run: Callable[..., Path], pictures: list[Path]) -> None:
    path = run() / "encoder.safetensors"
    with pytest.raises(UserError, match="an encoder only"):
        show.figure(path, pictures, path.with_name("out.png"))


def test_mistakes_are_explained(
    run: Callable[..., Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = run()
    with pytest.raises(UserError, match=r"should be one of .*png"):
        show.figure(folder, pictures, tmp_path / "out.txt")
    broken = tmp_path / "broken.png"
    shutil.copy(pictures[0], broken)
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match="broken.png"):
        show.figure(folder, [broken], tmp_path / "out.png")
    with pytest.raises(UserError, match="no image"):
        show.figure(folder, [], tmp_path / "out.png")


def test_large_pictures_are_cut_from_the_middle(tmp_path: Path, tiny_spec: VitSpec) -> None:
    pixels = np.zeros((128, 256, 3), dtype=np.uint8)
    pixels[:, 64:192] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found: Tensor = view.load_images([tmp_path / "wide.png"], tiny_spec)
    assert found.shape == (1, 3, 64, 64)
    assert (found[..., 2:-2] == 200).all()
