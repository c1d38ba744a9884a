"""What is compared and how it will be judged: fixed in a file before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mimbench.system.config import from_mapping, load_yaml, to_mapping
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.files import value_digest
from pretrain.config import Config, read_config

DESIGNS = Path(__file__).parent / "designs"

Role = Literal["reference", "tested", "noise", "control"]
Outcome = Literal["ridge", "knn", "ridge_class", "knn_class"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One strategy."""

    set: tuple[str, ...] = ()
    """What it changes in the recipe that all arms share."""
    role: Role = "tested"
    """`reference`: what all are compared with; `noise`: the same again under other masks (A/A), the
    noise floor; `control`: known to be worse, and to be found so."""
    as_good_as: str | None = None
    """Another arm: beside being tested, is this one at most the margin worse than that?"""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How an encoder is scored: frozen features of labelled images."""

    train: int = 5000
    test: int = 5000
    """So many images of each split, spread evenly over their order."""
    quality: int = 256
    """Test images on which predicted difficulties are held against true losses."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """An experiment."""

    recipe: str
    arms: Mapping[str, Arm]
    set: tuple[str, ...] = ()
    """What all arms change in the recipe."""
    blocks: int = 8
    first_seed: int = 1000
    outcome: Outcome = "ridge"
    """The one number that decides; the others are shown beside it."""
    level: float = 0.05
    margin: float = 1.0
    """Points that may be lost by an arm that is as good as another."""
    expected_sd: float = 1.4
    """Of a paired difference, from a pilot: what the power is computed for."""
    equal_time: bool = True
    """Also train each dearer arm for the time that the reference takes."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        roles = [arm.role for arm in self.arms.values()]
        for role in ("reference", "noise", "control"):
            if roles.count(role) != 1:
                raise ValueError(
                    f"a design has one arm with the role '{role}', this one has {roles.count(role)}"
                )
        if "tested" not in roles:
            raise ValueError("no arm has the role 'tested'")
        if self.blocks < 2:
            raise ValueError(f"blocks is {self.blocks}, expected 2 or more")
        for name, arm in self.arms.items():
            if arm.as_good_as is not None and arm.as_good_as not in self.arms:
                raise ValueError(f"{name} is to be as good as '{arm.as_good_as}', which is no arm")

    def named(self, role: Role) -> list[str]:
        """Return the arms of a role."""
        return [name for name, arm in self.arms.items() if arm.role == role]

    @property
    def reference(self) -> str:
        """The arm that all others are compared with."""
        return self.named("reference")[0]

    @property
    def seeds(self) -> range:
        """The blocks."""
        return range(self.first_seed, self.first_seed + self.blocks)

    @property
    def first_step(self) -> float:
        """The level that the smallest of all tested p-values must reach (Holm)."""
        return self.level / len(self.named("tested"))

    def digest(self) -> str:
        """Return a digest of everything in it."""
        return value_digest(self.content())

    def content(self) -> dict[str, object]:
        """Return it as plain values."""
        return to_mapping(self)

    def config(
        self, arm: str, seed: int, data: Path, *, epochs: int | None = None, device: str = "auto"
    ) -> Config:
        """Return an arm's run in a block.

        Args:
            arm: Its name.
            seed: The block.
            data: The images: a folder that holds `train`, or a tar file.
            epochs: Instead of the recipe's.
            device: Where it runs.
        """
        own = [
            "start.init=named",
            f"training.seed={seed}",
            "training.keep_every=0",
            "training.save_every=0",
            "training.tensorboard=false",
            "machine.workers=0",
            f"machine.device={device}",
            f"data.root={data}",
        ]
        if epochs is not None:
            own.append(f"training.epochs={epochs}")
        return read_config(self.recipe, [*self.set, *self.arms[arm].set, *own])


def read_design(name: str) -> Design:
    """Return the design in a YAML file, or one of ours by its name."""
    path = Path(name)
    if not path.is_file():
        known = sorted(p.stem for p in DESIGNS.glob("*.yaml"))
        path = DESIGNS / f"{name}.yaml"
        if not path.is_file():
            raise UserError(f"no design '{name}'{did_you_mean(name, known)}")
    return from_mapping(Design, load_yaml(path), path.name)


def split_of(data: Path, split: str) -> Path:
    """Return where a split's images lie below the data's folder: a tar file, or the folder itself."""
    archive = data / f"{split}.tar"
    if archive.is_file():
        return archive
    if (data / split).is_dir():
        return data
    raise UserError(f"{data} holds neither {split}.tar nor a folder {split}")
