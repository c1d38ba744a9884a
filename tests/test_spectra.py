"""Label-free measures: the papers' own form, what they must not depend on, what they refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.scores.spectra import alpha_req, lidar, mean_cosine, rankme, two_nn
from mimbench.system.errors import UserError


@pytest.fixture
def spectra(golden: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "spectra.npz"))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(x: Tensor) -> Tensor:
    """Return the same points under a random rotation."""
    return x @ torch.linalg.qr(normal(x.shape[-1], x.shape[-1], seed=9)).Q


def test_measures_equal_the_reference(spectra: dict[str, np.ndarray]) -> None:
    z = torch.from_numpy(spectra["z"])
    assert rankme(z) == pytest.approx(float(spectra["rankme_paper"]), rel=1e-4)
    assert alpha_req(z).alpha == pytest.approx(float(spectra["alpha_reptrix"]), rel=1e-4)
    # close, not equal: the reference's share of explained variance differs in the fourth digit
    assert alpha_req(z).r2 == pytest.approx(float(spectra["alpha_r2_100"]), abs=1e-3)
    views = torch.from_numpy(spectra["views"])
    assert lidar(views) == pytest.approx(float(spectra["lidar_stable"]), rel=1e-4)
    points = torch.from_numpy(spectra["twonn_x"])
    assert two_nn(points) == pytest.approx(float(spectra["twonn_dimension"]), rel=1e-4)


def test_values_are_not_those_of_packages_with_another_definition(
    spectra: dict[str, np.ndarray],
) -> None:
    z, views = torch.from_numpy(spectra["z"]), torch.from_numpy(spectra["views"])
    assert rankme(z) > 3 * float(spectra["rankme_reptrix_centred_variance"])
    assert lidar(views) > 2 * float(spectra["lidar_reptrix"])


def test_rankme_counts_dimensions() -> None:
    assert rankme(torch.eye(32)) == pytest.approx(32, rel=1e-4)
    assert rankme(torch.ones(50, 8)) == pytest.approx(1, abs=1e-3)
    z = normal(300, 20)
    assert rankme(7 * z) == pytest.approx(rankme(z), rel=1e-9)
    # more columns than rows: the other Gram matrix
    assert rankme(z[:15]) == pytest.approx(rankme(turned(z[:15])), rel=1e-6)


def test_two_nn_finds_five_dimensions_within_forty() -> None:
    flat = torch.rand(3000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = turned(torch.cat([flat, torch.zeros(3000, 35)], dim=1))
    assert two_nn(points) == pytest.approx(5, abs=0.4)
    assert two_nn(torch.cat([points, points[:200]])) == pytest.approx(two_nn(points), rel=1e-9)
    assert two_nn(100 + points) == pytest.approx(two_nn(points), rel=1e-4)


def test_alpha_of_a_power_law_is_its_exponent() -> None:
    scale = torch.arange(1, 201, dtype=torch.float64) ** -0.6
    found = alpha_req(normal(20_000, 200) * scale)
    assert found.alpha == pytest.approx(1.2, abs=0.02)
    assert found.r2 > 0.99


def test_lidar_of_copies_is_driven_by_its_regulariser() -> None:
    objects = normal(200, 1, 12)
    alike = objects.expand(-1, 5, -1)
    assert lidar(alike) == pytest.approx(12, abs=1)
    noisy = normal(200, 5, 12, seed=2)
    assert lidar(alike * torch.tensor([1.0] * 3 + [1e-6] * 9) + 1e-9 * noisy) < 4


@pytest.mark.parametrize("measure", [rankme, two_nn, mean_cosine, lambda z: alpha_req(z).alpha])
def test_a_rotation_changes_nothing(measure: object) -> None:
    assert callable(measure)
    z = normal(400, 30) * torch.linspace(0.2, 2, 30, dtype=torch.float64)
    assert measure(turned(z)) == pytest.approx(measure(z), rel=1e-6)


def test_mean_cosine_tells_collapse() -> None:
    assert mean_cosine(torch.ones(5, 3)) == pytest.approx(1)
    assert mean_cosine(torch.eye(4)) == pytest.approx(0, abs=1e-12)
    z = normal(30, 6)
    unit = torch.nn.functional.normalize(z, dim=1)
    pairs = (unit @ unit.T)[~torch.eye(30, dtype=torch.bool)]
    assert mean_cosine(z) == pytest.approx(float(pairs.mean()))


def test_what_cannot_be_measured_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="every embedding is zero"):
        rankme(torch.zeros(5, 3))
    with pytest.raises(UserError, match="1 objects with 4 views"):
        lidar(torch.zeros(1, 4, 3))
    with pytest.raises(UserError, match="12 embeddings of width 30"):
        alpha_req(torch.ones(12, 30))
    with pytest.raises(UserError, match="1 different embeddings"):
        two_nn(torch.ones(9, 2))
