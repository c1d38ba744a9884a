"""A typo is an error; values keep their meaning on the way in and out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from mimbench.system.config import from_mapping, load_yaml, merge, parse_overrides, to_mapping
from mimbench.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    ratio: float = 0.75


@dataclass(frozen=True, kw_only=True)
class Recipe:
    epochs: int
    learning_rate: float = 1e-3
    name: Literal["hard", "random"] = "hard"
    mask: Inner = field(default_factory=Inner)
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, int] = (3, 4)
    data: Path | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs is {self.epochs}, expected 0 or more")


def test_reads_every_kind_of_field() -> None:
    recipe = from_mapping(
        Recipe,
        {
            "epochs": 3,
            "learning_rate": "1e-4",
            "mask": {"ratio": 1},
            "sizes": [5],
            "data": "x/y",
            "flags": {"a": True},
        },
    )
    assert recipe == Recipe(
        epochs=3,
        learning_rate=1e-4,
        mask=Inner(ratio=1.0),
        sizes=(5,),
        data=Path("x/y"),
        flags={"a": True},
    )
    assert from_mapping(Recipe, to_mapping(recipe)) == recipe


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"epochs": 1, "learing_rate": 1},
            "unknown key 'learing_rate' in run; did you mean 'learning_rate'",
        ),
        ({}, "missing key 'epochs' in run"),
        ({"epochs": True}, "run.epochs is True .bool., expected a whole number"),
        ({"epochs": 1.5}, "run.epochs is 1.5"),
        ({"epochs": 1, "name": "hrad"}, "run.name is 'hrad'; did you mean 'hard'"),
        (
            {"epochs": 1, "mask": {"ration": 1}},
            "unknown key 'ration' in run.mask; did you mean 'ratio'",
        ),
        ({"epochs": 1, "mask": 3}, "run.mask is 3 .int., expected a mapping"),
        ({"epochs": 1, "sizes": "12"}, "run.sizes is '12' .str., expected a list"),
        ({"epochs": 1, "sizes": [1, "x"]}, r"run.sizes\[1\] is 'x'"),
        ({"epochs": 1, "pair": [1]}, "run.pair has 1 items, expected 2"),
        (
            {"epochs": 1, "learning_rate": "fast"},
            "run.learning_rate is 'fast' .str., expected a number",
        ),
        ({"epochs": -1}, "run: epochs is -1, expected 0 or more"),
    ],
)
def test_a_mistake_names_key_value_and_remedy(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_mapping(Recipe, mapping, "run")


def test_overrides_nest_and_merge() -> None:
    overrides = parse_overrides(["mask.ratio=0.6", "mask.name=random", "epochs=2"])
    assert overrides == {"mask": {"ratio": 0.6, "name": "random"}, "epochs": 2}
    assert merge({"mask": {"ratio": 0.75, "k": 1}}, overrides)["mask"] == {
        "ratio": 0.6,
        "k": 1,
        "name": "random",
    }


@pytest.mark.parametrize("item", ["epochs", "=3", "a..b=1"])
def test_an_override_must_be_key_equals_value(item: str) -> None:
    with pytest.raises(UserError, match="not of the form key=value"):
        parse_overrides([item])


def test_yaml_is_safe_and_must_be_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("!!python/object/apply:os.system ['touch owned']")
    with pytest.raises(UserError, match="not valid YAML"):
        load_yaml(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(UserError, match="should hold a mapping"):
        load_yaml(path)
    with pytest.raises(UserError, match="cannot read"):
        load_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "x: {k: 1, k: 2}\n", "l:\n- {k: 1, k: 1}\n"]
)
def test_a_key_that_stands_there_twice_is_an_error(tmp_path: Path, text: str) -> None:
    """YAML takes the last one in silence: a recipe edited above was the one below."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"the key '(a|k)' stands there twice"):
        load_yaml(path)


@pytest.mark.parametrize(
    "items",
    [
        ["knn.k=[10]", "knn.k=[20]"],
        ["mask=hard", "mask.ratio=0.5"],
        ["mask.ratio=0.5", "mask=hard"],
        ["mask={ratio: 0.5}", "mask.ratio=0.6"],
    ],
)
def test_two_values_for_one_field_are_an_error(items: list[str]) -> None:
    with pytest.raises(UserError, match="is given two values; say it once"):
        parse_overrides(items)


def test_the_same_value_twice_and_parts_of_one_section_are_fine() -> None:
    assert parse_overrides(["a.b=1", "a.b=1", "a.c=2"]) == {"a": {"b": 1, "c": 2}}
    assert parse_overrides(["a={b: 1}", "a.c=2"]) == {"a": {"b": 1, "c": 2}}
