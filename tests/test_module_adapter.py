"""A user's own module: equal numbers through both paths, and a sentence for every kind that would lie."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.networks.kinds import build_network
from mimbench.networks.module import adapt
from mimbench.system.errors import UserError
from mimbench.vit.network import build_vit, load_encoder
from mimbench.vit.weights import VitSpec, random_weights


class Small(nn.Module):
    """A convolution and a mean: an image vector of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean(dim=(2, 3))


class Nested(Small):
    def forward(self, images: Tensor) -> Any:
        return {"features": super().forward(images)}


class Map(Small):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


class Nan(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) / 0 * 0


class Learns(Small):
    def forward(self, images: Tensor) -> Tensor:
        found = super().forward(images)
        # noise is what the checks look at, and it moves this by little
        assert self.conv.bias is not None
        self.conv.bias.data += 1e-9 * found.mean(dim=0).abs() + 1e-7
        return found.round(decimals=3)


class Drops(Small):
    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(super().forward(images), 0.5, training=True)


class Mixes(Small):
    def forward(self, images: Tensor) -> Tensor:
        found = super().forward(images)
        return (found - found.mean(dim=0)) + images.mean()


HOSTILE = {
    Nested: r"Nested: 2 pictures of 32x32 gave dict, expected image vectors \(2, width\); pass vector=",
    Map: r"gave \(2, 8, 8, 8\), expected image vectors",
    Nan: "hold NaN or infinite values",
    Learns: "it trains itself",
    Drops: "gave two answers in eval.*dropout",
    Mixes: "depends on the others in its batch",
}


@pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: kind.__name__)
def test_a_hostile_module_is_refused_with_a_sentence(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match=HOSTILE[kind]):
        adapt(kind(), image_size=32)


def test_dropout_that_eval_turns_off_is_no_fault() -> None:
    module = nn.Sequential(Small(), nn.Dropout(0.5)).train()
    weights = adapt(module, image_size=32, name="mine")
    assert not module.training
    assert weights.spec.embed_dim == 8
    assert weights.name == "mine"
    assert not any(p.requires_grad for p in module.parameters())


def test_maps_are_checked_against_their_strides() -> None:
    def maps(module: nn.Module, images: Tensor) -> list[Tensor]:
        return [module.get_submodule("conv")(images)]

    weights = adapt(Small(), image_size=32, maps=maps, strides=[4])
    assert [(v.stride, v.channels) for v in weights.spec.levels] == [(4, 8)]
    network = build_network(weights)
    assert network.maps(torch.rand(1, 3, 32, 64))[0].shape == (1, 8, 8, 16)
    with pytest.raises(UserError, match=r"gave maps of \[\(16, 24\)\], expected \[\(8, 12\)\]"):
        adapt(Small(), image_size=32, maps=maps, strides=[8])
    with pytest.raises(UserError, match="maps and strides belong together"):
        adapt(Small(), image_size=32, maps=maps)
    with pytest.raises(UserError, match="image vector alone, no maps"):
        build_network(adapt(Small(), image_size=32)).maps(torch.rand(1, 3, 32, 32))


def test_the_digest_follows_state_source_and_statistics() -> None:
    torch.manual_seed(0)
    first = Small()
    digests = {adapt(first, image_size=32).digest}
    assert adapt(first, image_size=32).digest in digests
    digests.add(adapt(first, image_size=32, mean=(0.5, 0.5, 0.5)).digest)
    digests.add(adapt(first, image_size=32, vector=lambda m, x: 2 * m(x)).digest)
    first.conv.weight.data[0, 0, 0, 0] += 1e-3
    digests.add(adapt(first, image_size=32).digest)
    assert len(digests) == 4


def test_a_vit_gives_equal_vectors_as_weights_and_as_a_module(small_spec: VitSpec) -> None:
    weights = random_weights(small_spec, 0)
    vit = build_vit(small_spec)
    load_encoder(vit, weights)

    def cls(module: nn.Module, images: Tensor) -> Tensor:
        return module.forward_features(images)[:, 0]  # pyright: ignore[reportCallIssue]

    images = torch.rand(2, 3, 32, 32)
    own = build_network(weights).vectors(images, 1)["cls.1"]
    theirs = build_network(adapt(vit, image_size=32, vector=cls)).vectors(images, 1)["cls.1"]
    assert torch.equal(own, theirs)


def test_timms_models_say_their_statistics(tmp_path: Path) -> None:
    import timm

    module = timm.create_model("resnet18", pretrained=False, channels=(8, 8, 8, 16))
    weights = adapt(module, image_size=64)
    assert weights.spec.mean == (0.485, 0.456, 0.406)
    assert weights.spec.embed_dim == 16
