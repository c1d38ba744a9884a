"""A folder belongs to one run: what differs is named, where it runs may change."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mimbench.system.errors import UserError
from mimbench.task import Machine
from mimbench.training.identity import (
    RUN_FILE,
    check_state,
    claim,
    read_identity,
    run_digest,
    run_identity,
)
from mimbench.vit.weights import VitSpec, VitWeights, random_weights

SPEC = VitSpec(embed_dim=12, depth=1, num_heads=3, mlp_dim=24, patch_size=8, grid=(2, 2))
WEIGHTS = random_weights(SPEC, 0)


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path = Path("here")
    seed: int = 0
    lr: float = 1e-3
    machine: Machine = field(default_factory=Machine)


def identity(
    config: Config | None = None,
    version: int = 1,
    task: str = "a.task",
    weights: VitWeights = WEIGHTS,
) -> dict[str, Any]:
    return run_identity(task, version, weights, config or Config())


def test_a_run_goes_on_elsewhere_and_on_another_machine(tmp_path: Path) -> None:
    claim(tmp_path, identity(), main=True)
    moved = Config(data=Path("there"), machine=Machine(workers=9))
    assert identity(moved)["digest"] == identity()["digest"]
    claim(tmp_path, identity(moved), main=True)
    assert read_identity(tmp_path)["config"]["data"] == "there"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (identity(Config(lr=1e-2, seed=3)), "seed, lr"),
        (identity(version=2), "version"),
        (identity(task="another.task"), "task"),
        (identity(weights=random_weights(SPEC, 1)), "weights"),
    ],
)
def test_another_run_is_refused_and_the_difference_is_named(
    other: dict[str, Any], named: str, tmp_path: Path
) -> None:
    claim(tmp_path, identity(), main=True)
    before = (tmp_path / RUN_FILE).read_text()
    with pytest.raises(UserError, match=f"another configuration or checkpoint.*in {named}; choose"):
        claim(tmp_path, other, main=True)
    assert (tmp_path / RUN_FILE).read_text() == before
    assert other["digest"] != identity()["digest"]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    claim(tmp_path, identity(), main=False)
    assert not (tmp_path / RUN_FILE).exists()


def test_a_record_of_detection_as_it_was_is_read(tmp_path: Path) -> None:
    now = identity()
    old = {"version": 1, "weights": WEIGHTS.digest, "name": "x", "config": now["config"]}
    (tmp_path / RUN_FILE).write_text(json.dumps(old))
    claim(tmp_path, now, main=True)
    (tmp_path / RUN_FILE).write_text(json.dumps({**old, "weights": "0" * 64}))
    with pytest.raises(UserError, match="in weights;"):
        claim(tmp_path, now, main=True)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the folder of a run: its run.json cannot be read"):
        read_identity(tmp_path)
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        claim(tmp_path, identity(), main=True)


def test_states_carry_a_digest_of_all_that_moves_the_weights(tmp_path: Path) -> None:
    config = Config()
    mine = run_digest(WEIGHTS, config, version=1, data=["a", "b"])
    free = [
        run_digest(WEIGHTS, replace(config, lr=lr), version=1, free={"lr"}) for lr in (1.0, 2.0)
    ]
    assert free[0] == free[1], "a field that moves no number"
    assert mine == run_digest(WEIGHTS, replace(config, data=Path("x")), version=1, data=["a", "b"])
    others = [
        run_digest(WEIGHTS, config, version=2, data=["a", "b"]),
        run_digest(WEIGHTS, config, version=1, data=["a", "c"]),
        run_digest(WEIGHTS, replace(config, lr=1.0), version=1, data=["a", "b"]),
        run_digest(random_weights(SPEC, 1), config, version=1, data=["a", "b"]),
    ]
    assert len({mine, *others}) == 5
    check_state(tmp_path, mine, mine)
    with pytest.raises(UserError, match="holds a run of another configuration or checkpoint"):
        check_state(tmp_path, others[0], mine)
