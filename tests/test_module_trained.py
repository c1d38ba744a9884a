"""A user's own module where it is trained: a copy learns, frozen parts stay, the user's own comes back."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mimbench
from mimbench.benchmarks.cells import Candidate, Request, make_cells
from mimbench.benchmarks.manifest import load_manifest
from mimbench.benchmarks.preflight import RecipeQuery, RecipeReport
from mimbench.networks.levels import random_levels
from mimbench.networks.module import ModuleWeights, adapt, as_it_was
from mimbench.results.record import NOT_AUDITED
from mimbench.system.errors import UserError
from mimbench.task import Machine
from mimbench.vit.weights import VitSpec, random_weights
from tests.support.tiny_levels import CONVNEXT


class Pyramid(nn.Module):
    """Four convolutions, each a level."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.down = nn.ModuleList(nn.Conv2d(8, 8, 2, 2) for _ in range(3))

    def levels(self, images: Tensor) -> list[Tensor]:
        found = [self.stem(images)]
        for layer in self.down:
            found.append(layer(found[-1].relu()))
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.levels(images)[-1].mean(dim=(2, 3))


def maps(module: nn.Module, images: Tensor) -> Sequence[Tensor]:
    assert isinstance(module, Pyramid)
    return module.levels(images)


def adapted(module: nn.Module | None = None, **more: Any) -> ModuleWeights:
    return adapt(
        module or Pyramid(), name="mine", maps=maps, strides=(4, 8, 16, 32), image_size=32, **more
    )


def test_a_detector_trains_a_copy() -> None:
    pytest.importorskip("detectron2")
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    from transfer.detection import fpn

    module = Pyramid()
    weights = adapted(module, frozen=["stem"])
    config = fpn.Config(
        data=Path(), image_size=64, pyramid_channels=16, box_convs=1, box_width=16, mask_convs=1,
        precision="fp32", machine=Machine(device="cpu", workers=0),
    )  # fmt: skip
    design = fpn.design(weights, config, classes=3)
    assert design.report.startswith("a module of the user's own: 6 tensors are trained")
    assert design.plan.drop_path == 0.0
    truth = Instances((64, 64))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    truth.gt_classes, truth.gt_masks = torch.tensor([1]), BitMasks(torch.ones(1, 64, 64))
    image = torch.rand(3, 64, 64) * 255
    with EventStorage():
        losses = design.model.train()(
            [{"image": image, "height": 64, "width": 64, "instances": truth}]
        )
    torch.stack(list(losses.values())).sum().backward()
    copied = dict(design.model.get_submodule("backbone.bottom_up.body.body").named_parameters())
    assert all((p.grad is None) == n.startswith("stem") for n, p in copied.items())
    assert all(p.grad is None for p in module.parameters())
    assert not {id(p) for p in module.parameters()} & {id(p) for p in copied.values()}
    # pictures reach it normalised with its own statistics
    bare = adapt(Pyramid(), name="bare", image_size=32)
    with pytest.raises(UserError, match=r"an FPN reads maps of strides \[4, 8, 16, 32\]"):
        fpn.design(bare, config, classes=3)


def test_a_segmenter_trains_a_copy() -> None:
    pytest.importorskip("mmseg")
    from mmseg.registry import MODELS

    from transfer.segmentation import backbone as backbones
    from transfer.segmentation import upernet

    weights = adapted(frozen=["stem"])
    config = upernet.Config(data=Path(), crop=(64, 64), channels=16)
    found = upernet.model_recipe(weights.spec, config)
    assert any("no layer decay" in note for note in found.notes)
    trunk = MODELS.build(found.backbone)
    backbones.load(trunk, weights, found.kind, (64, 64), tap_norm=False)
    head = MODELS.build({**found.decode_head, "num_classes": 3, "norm_cfg": {"type": "BN"}})
    shapes = [tuple(m.shape[2:]) for m in trunk(torch.randn(1, 3, 50, 70))]
    assert shapes == [(13, 18), (7, 9), (4, 5), (2, 3)]
    head(trunk.train()(torch.randn(2, 3, 64, 64))).square().mean().backward()
    learns = {n: p.grad is not None for n, p in trunk.body.body.named_parameters()}
    assert all(learned != name.startswith("stem") for name, learned in learns.items())
    bare = adapt(Pyramid(), name="bare", image_size=32)
    with pytest.raises(UserError, match="gives an image vector alone; UperNet reads maps"):
        upernet.model_recipe(bare.spec, config)


@pytest.fixture
def data(
    painted_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    return painted_images(tmp_path / "data/imagenet", classes=3, train=12, val=6)


def test_fine_tuning_from_python_leaves_the_users_module_alone(data: Path, tmp_path: Path) -> None:
    module = Pyramid().train()
    module.stem.requires_grad_(requires_grad=False)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    changes = {"epochs": 1, "warmup": 0, "batch": 12, "image_size": 32, "resize": None, "precision": "fp32",
               "augment": {"randaugment": None, "mixup": 0.0, "cutmix": 0.0, "erase": 0.0}}  # fmt: skip
    found = mimbench.evaluate(
        module, ["in-ft-mae"], data=data.parent, own_data=True, out=tmp_path / "runs", name="mine",
        settings={"in-ft-mae": changes}, device="cpu", image_size=32,
    )["in-ft-mae"]  # fmt: skip
    assert 0 <= found.metrics["top1"] <= 100
    assert module.training
    assert [p.requires_grad for p in module.parameters()] == [False] * 2 + [True] * 6
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert found.weights["audit"] == NOT_AUDITED
    assert len(found.weights["state"]) == len(found.weights["source"]) == 64
    assert f"mine ({NOT_AUDITED})" in str(mimbench.table(tmp_path / "runs"))


def test_state_and_source_are_told_apart() -> None:
    class Other(Pyramid):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 2

    one, same, other = adapted(), adapted(), adapted(Other())
    assert (one.state, one.source, one.digest) == (same.state, same.source, same.digest)
    assert one.state == other.state
    assert one.source != other.source
    assert one.digest != other.digest
    changed = Pyramid()
    changed.stem.weight.data += 1
    assert adapted(changed).source == one.source
    assert adapted(changed).state != one.state


def test_a_module_comes_back_even_from_an_error() -> None:
    module = Pyramid().train()

    def fail() -> None:
        with as_it_was(module):
            module.eval().requires_grad_(requires_grad=False)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert module.training
    assert all(part.training for part in module.modules())
    assert all(p.requires_grad for p in module.parameters())


def test_a_module_stays_on_its_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is evaluated inside a training script neither leaves for a free GPU nor stays there."""
    from mimbench.suite import python

    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        python, "_evaluate", lambda w, names, out, name, study: asked.append(study.machine.device)
    )
    for device in ("auto", "cuda:1"):
        mimbench.evaluate(Pyramid(), ["in-knn"], out=tmp_path, device=device, image_size=32)
    assert asked == ["cpu", "cuda:1"]
    moved: list[Any] = []
    module = Pyramid()
    monkeypatch.setattr(module, "to", moved.append)
    places = iter([torch.device("cpu"), torch.device("cuda:0")])
    monkeypatch.setattr("mimbench.networks.module.home", lambda _: next(places))
    with as_it_was(module):
        pass
    assert moved == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda m, x: m.levels(x)[:3], r"expected 4 maps \(b, c, h, w\)"),
        (lambda m, x: [v.flatten(2) for v in m.levels(x)], r"expected 4 maps \(b, c, h, w\)"),
        (lambda m, x: [v.transpose(2, 3) for v in m.levels(x)], "gave maps of"),
        (lambda m, x: [v / 0 * 0 for v in m.levels(x)], "maps of noise hold NaN"),
        (lambda m, x: [nn.functional.dropout(v, 0.5) for v in m.levels(x)], "two maps in eval"),
        (lambda m, x: [v - v.mean(0, keepdim=True) for v in m.levels(x)], "depend on the others"),
    ],
)
def test_hostile_maps_are_refused(wrong: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        adapt(Pyramid(), name="mine", maps=wrong, strides=(4, 8, 16, 32), image_size=32)


def test_frozen_names_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="frozen names head, which no parameter begins with"):
        adapted(frozen=["head"])


def candidate(weights: Any, name: str) -> Candidate:
    said = {"name": name, "digest": "0" * 64, "format": "x", "which": "", "model": "x"}
    return Candidate(path=Path(name), weights=said, spec=weights.spec)


def test_networks_with_levels_take_the_counterpart_of_vitdet(
    tiny_spec: VitSpec,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each column keeps one protocol: the counterpart has a column of its own, whatever was asked for."""
    manifest = load_manifest()

    def answered(
        queries: Sequence[RecipeQuery], *_: Any, specs: Sequence[Any], **__: Any
    ) -> list[RecipeReport]:
        return [RecipeReport(protocols=(query.benchmark,) * len(specs)) for query in queries]

    monkeypatch.setattr("mimbench.benchmarks.cells.preflight", answered)
    both = [
        candidate(random_levels(CONVNEXT, 0), "convnext"),
        candidate(random_weights(tiny_spec, 0), "vit"),
    ]
    request = Request(profile="demo", benchmarks=["coco-vitdet-12"], out=tmp_path)
    with caplog.at_level("INFO"):
        cells = make_cells(manifest, both, request)
    found = {(c.candidate.weights["name"], c.run.benchmark) for c in cells}
    assert found == {("convnext", "coco-fpn-levels-50"), ("vit", "coco-vitdet-12")}
    assert (
        "convnext has 4 levels: coco-fpn-levels-50 runs in place of coco-vitdet-12" in caplog.text
    )
    titles = {manifest.benchmarks[b].title for _, b in found}
    assert any("FPN" in title for title in titles)
    assert len({c.protocol for c in cells}) == 2
