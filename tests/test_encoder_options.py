"""What an encoder may have beyond MAE's: class tokens, learned positions, stochastic depth, a veil."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.pretrain_flops import encoder
from mimbench.checkpoints.files import read_vit
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.checkpoints.handover import write_export, write_released
from pretrain.checkpoints.stored import read_model
from pretrain.config import read_config
from pretrain.models.autoencoder import Outputs, to_patches
from pretrain.models.encoder import EncoderNoise
from tests.support.tiny_pretrain import images, learner, look, rng, step_info
from tests.test_hpm_cheap import counted

MAE = ("mask.name=random", "objective.predict_loss=none")
PIXIO = (*MAE, "encoder.class_tokens=8", "encoder.positions=learned")


def some() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    patches = to_patches(torch.randn(2, 3, 32, 32, generator=rng()), 8)
    return patches, torch.arange(4).expand(2, -1), torch.arange(4, 16).expand(2, -1)


def test_class_tokens_enter_encoder_and_decoder() -> None:
    run, (patches, visible, hidden) = learner(*PIXIO), some()
    seen: list[int] = []
    for part in (run.student.encoder.blocks[0], run.student.reconstructor.blocks[0]):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    outputs = run.student(patches, visible, hidden)
    assert seen == [8 + 4, 8 + 16]
    assert outputs.latent.shape[1] == 12
    assert outputs.prediction.shape == (2, 12, 192)


def test_class_tokens_cost_what_they_compute() -> None:
    one, eight = counted(*MAE)[0], counted(*MAE, "encoder.class_tokens=8")
    spec = eight[1].spec
    least = 3 * (sum(encoder(spec, 16)) - sum(encoder(read_one(), 16)))
    assert eight[0] - one > least > 0


def read_one() -> VitSpec:
    return counted(*MAE)[1].spec


def test_tables_are_learned_in_encoder_and_decoder() -> None:
    run = learner(*PIXIO, "start.init=named")
    names = {n for n, _ in run.student.named_parameters() if n.endswith("pos_embed")}
    assert names == {"encoder.pos_embed", "neck.pos_embed"}
    table = run.student.encoder.pos_embed
    assert table.shape == (1, 8 + 16, 24)
    assert table.std().item() == pytest.approx(0.02, abs=0.003)
    before = table.detach().clone()
    run.loss(run.student, images(), step_info())["loss"].backward()
    run.optimizer.step()
    assert (table != before).any(dim=2).all()
    teacher = learner(*PIXIO, "teacher.keep=true").teacher
    assert teacher is not None
    assert "encoder.pos_embed" in dict(teacher.named_parameters())


def test_eight_class_tokens_survive_export_and_are_read_back(tmp_path: Path) -> None:
    run, (patches, visible, hidden) = learner(*PIXIO), some()
    run.loss(run.student, images(), step_info())["loss"].backward()
    run.optimizer.step()
    write_export(tmp_path, run.config, run.student, run.teacher, step_info())
    weights = read_vit(tmp_path / "encoder.safetensors")
    assert weights.spec.class_tokens == 8
    pictures = torch.rand(2, 3, 32, 32, generator=rng())
    found = build_backbone(weights)(pictures)
    run.student.eval()
    with torch.no_grad():
        tokens = run.student.encoder(to_patches(run.normalise(pictures), 8))
    torch.testing.assert_close(found.patches.flatten(1, 2), tokens[:, 8:])
    torch.testing.assert_close(found.cls, tokens[:, :8].mean(1))
    model, _ = read_model(tmp_path).build()
    with torch.no_grad():
        one, other = (m(patches, visible, hidden).prediction for m in (model, run.student))
    torch.testing.assert_close(one, other)
    with pytest.raises(UserError, match="8 class tokens, the released layouts have one"):
        write_released(tmp_path / "mae.pth", read_model(tmp_path), "mae")


def test_the_recipe_of_pixio_is_what_its_scripts_say() -> None:
    config = read_config("pixio_vit_base_16", [])
    assert config.mask == {"name": "grid", "cell": 4, "ratio": 0.75}
    assert (config.encoder.class_tokens, config.decoder.depth) == (8, 32)
    spec = config.encoder.spec(config.data)
    assert spec.grid == (16, 16)
    peak = config.optimizer.base_lr * config.training.batch / 256
    assert peak == pytest.approx(8e-4)
    per_epoch = 1_281_167 // config.training.batch
    assert config.training.epochs * per_epoch == pytest.approx(642_000, rel=1e-3)
    assert config.optimizer.warmup_epochs * per_epoch == pytest.approx(64_200, rel=1e-3)


def test_whole_cells_of_four_by_four() -> None:
    strategy = masks.build({"name": "grid", "cell": 4, "ratio": 0.75})
    cells = strategy(look(50, grid=(16, 16)), rng()).view(50, 4, 4, 4, 4).float().mean((2, 4))
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    assert (cells.sum((1, 2)) == 12).all()
    with pytest.raises(UserError, match="do not divide into cells of 4 x 4"):
        strategy.count(196)


@pytest.mark.parametrize("side", [14, 16])
def test_as_many_are_veiled_as_published(golden: Path, side: int) -> None:
    size = 2 * side
    run = learner(
        *MAE, "mask.name=even", "mask.ratio=0.75", "encoder.secondary=0.25",
        "encoder.patch=2", f"data.image_size={size}",
    )  # fmt: skip
    inp = look(4, grid=(side, side))
    visible, _, _ = run.plan(inp, step_info())
    (noise,) = run.noise(inp, visible, step_info())
    assert noise.veiled is not None
    with np.load(golden / "ummae.npz") as file:
        kept = int(file[f"{side}/secondary_visible"]) if f"{side}/secondary_visible" in file else {
            14: 36, 16: 48
        }[side]  # fmt: skip
    assert ((~noise.veiled).sum(1) == kept).all()
    (again,) = run.noise(inp, visible, step_info())
    assert again.veiled is not None
    assert torch.equal(again.veiled, noise.veiled)
    (later,) = run.noise(inp, visible, step_info(151))
    assert later.veiled is not None
    assert not torch.equal(later.veiled, noise.veiled)


def test_a_veiled_patch_is_one_vector_at_its_place() -> None:
    run, (patches, visible, hidden) = learner(*MAE, "encoder.secondary=0.25"), some()
    veiled = torch.zeros(2, 4, dtype=torch.bool)
    veiled[:, 2] = True
    with torch.no_grad():
        found = run.student(patches, visible, hidden, EncoderNoise(veiled)).prediction
        changed = patches.clone()
        changed[:, 2] = 7.0
        assert torch.equal(
            run.student(changed, visible, hidden, EncoderNoise(veiled)).prediction, found
        )
        changed[:, 1] = 7.0
        assert not torch.equal(
            run.student(changed, visible, hidden, EncoderNoise(veiled)).prediction, found
        )
        # a share of nothing is the plain encoder
        plain = run.student(patches, visible, hidden).prediction
        nothing = EncoderNoise(torch.zeros_like(veiled))
        assert torch.equal(run.student(patches, visible, hidden, nothing).prediction, plain)
    run.loss(run.student, images(), step_info())["loss"].backward()
    token = run.student.secondary_token
    assert token is not None
    assert token.grad is not None
    assert (token.grad != 0).any()


def test_the_vector_stays_out_of_the_encoders_file(tmp_path: Path) -> None:
    run = learner(*MAE, "encoder.secondary=0.25")
    write_export(tmp_path, run.config, run.student, run.teacher, step_info())
    read_vit(tmp_path / "encoder.safetensors", num_heads=2)
    stored = read_model(tmp_path)
    assert "secondary_token" in stored.student
    stored.build()
    write_released(tmp_path / "mae.pth", stored, "mae")


def test_branches_are_left_out_as_often_as_said() -> None:
    run = learner(*MAE, "encoder.drop_path=0.4", "encoder.depth=3")
    inp = look(2000, grid=(4, 4))
    (noise,) = run.noise(inp, torch.arange(4).expand(2000, -1), step_info(batch=2000))
    assert noise.keep is not None
    assert noise.keep.shape == (2000, 3, 2)
    rates = (noise.keep == 0).float().mean((0, 2)).tolist()
    assert rates == pytest.approx([0, 0.2, 0.4], abs=0.03)
    torch.testing.assert_close(noise.keep.mean((0, 2)), torch.ones(3), atol=0.05, rtol=0)


def test_a_block_without_branches_is_the_identity() -> None:
    run, (patches, visible, hidden) = learner(*MAE), some()
    keep = torch.ones(2, 2, 2)
    with torch.no_grad():
        whole = run.student(patches, visible, hidden).prediction
        same = run.student(patches, visible, hidden, EncoderNoise(keep=keep)).prediction
        torch.testing.assert_close(same, whole)
        keep[:, 1] = 0
        short = run.student.encoder(patches, visible, keep=keep)
        encoder = run.student.encoder
        by_hand = encoder.norm(encoder.run(encoder.embed(patches, visible), 1))
    torch.testing.assert_close(short, by_hand)


def _keep(kept: list[torch.Tensor], _module: object, _inputs: object, out: Outputs) -> None:
    kept.append(out.prediction)


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_disturbances_do_not_depend_on_the_division(kind: str) -> None:
    changes = (*MAE, "encoder.drop_path=0.5", "encoder.secondary=0.25", f"decoder.kind={kind}")
    whole, parts = learner(*changes), learner(*changes)
    seen: list[list[torch.Tensor]] = [[], []]
    for run, kept in zip((whole, parts), seen, strict=True):
        run.student.register_forward_hook(partial(_keep, kept))
    batch = images()
    whole.loss(whole.student, batch, step_info())
    for first in (0, 2):
        half = batch._replace(data=batch.data[first : first + 2])
        parts.loss(parts.student, half, step_info(first=first))
    torch.testing.assert_close(torch.cat(seen[1]), seen[0][0])
    # computing blocks again in the backward pass draws nothing anew
    again = learner(*changes, "machine.recompute=true")
    figures = [run.loss(run.student, batch, step_info())["loss"] for run in (whole, again)]
    for loss in figures:
        loss.backward()
    for one, other in zip(whole.student.parameters(), again.student.parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(other.grad, one.grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("encoder.class_tokens=0", "class_tokens is 0"),
        ("encoder.drop_path=1.0", "drop_path is 1.0"),
        ("encoder.secondary=-0.1", "secondary is -0.1"),
    ],
)
def test_settings_without_sense_are_refused(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learner(*MAE, change)
