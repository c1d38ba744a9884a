"""Recipes by name or file: reconstruction in pretrain/configs, distillation in pretrain/objectives/distill."""

from pathlib import Path

from mimbench.system.config import from_mapping, load_yaml, parse_overrides
from mimbench.system.errors import UserError, did_you_mean
from pretrain.config import BASE, CONFIGS, Config, lay_over, read_config
from pretrain.objectives.distill.config import DistillConfig

DISTILLATION = Path(__file__).parent / "distill" / "configs"
DISTILLATION_BASE = DISTILLATION / "base.yaml"


def read_recipe(config: str, overrides: list[str]) -> Config | DistillConfig:
    """Return the run that a recipe and the command line describe; `method` in a file says which kind.

    Args:
        config: A YAML file, or the name of a recipe.
        overrides: Items such as `mask.name=random`, as in `--set`.
    """
    path = Path(config)
    if not path.is_file():
        names = {
            p.stem: p
            for folder, base in ((CONFIGS, BASE), (DISTILLATION, DISTILLATION_BASE))
            for p in sorted(folder.glob("*.yaml"))
            if p != base
        }
        if path.stem not in names:
            raise UserError(f"no config '{config}'{did_you_mean(path.stem, names)}")
        path = names[path.stem]
    content = load_yaml(path)
    if content.get("method") != "distillation":
        return read_config(str(path), overrides)
    mapping = load_yaml(DISTILLATION_BASE)
    for layer in (content, parse_overrides(overrides, layered=True)):
        mapping = lay_over(mapping, layer)
    return from_mapping(DistillConfig, mapping, path.name)
