"""`python -m pretrain.compare`: what does each part of HPM add, on the sample data, over seeds?

Pretrains HPM, the same with random masks (loss prediction only) and MAE by one recipe and budget,
scores each encoder and a random twin by weighted k-NN (k = 20, mean of patch tokens), and shows the
mean and standard deviation over the seeds, as they come out. Runs that are finished are not repeated.
"""

import argparse
import logging
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimbench.checkpoints import read_weights
from mimbench.config import from_mapping
from mimbench.errors import UserError
from mimbench.files import write_json
from mimbench.logs import configure_logging
from mimbench.sample import sample_root
from mimbench.task import load_task
from mimbench.weights import VitWeights, random_weights
from pretrain.config import read_config
from pretrain.export import ENCODER

logger = logging.getLogger(__name__)

VARIANTS = {
    "HPM": (),
    "loss prediction only": ("mask.name=random",),
    "MAE": ("mask.name=random", "objective.predict_loss=none"),
}
TWIN = "random weights"


def pretrain(recipe: str, out: Path, overrides: Sequence[str]) -> VitWeights:
    """Return the encoder that a child process pretrains, or has pretrained before."""
    changes = [part for item in overrides for part in ("--set", item)]
    command = [sys.executable, "-m", "pretrain", recipe, "--out", str(out), *changes]
    code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if code:
        raise UserError(f"pretraining into {out} ended with exit code {code}; see the lines above")
    return read_weights(out / ENCODER)


def knn(weights: VitWeights, out: Path, image_size: int) -> float:
    """Return the k-NN top-1 in percent; the task is reached by name, as the suite does."""
    task = load_task("knn.classify")
    settings: dict[str, Any] = {
        "data": str(sample_root() / "classification"),
        "image_size": image_size,
        "resize": None,
        "choices": ["avg"],
        "k": [20],
        "machine": {"workers": 0, "max_batch": 256},
    }
    out.mkdir(parents=True, exist_ok=True)
    return task.run(weights, from_mapping(task.Config, settings, "k-NN"), out)["top1"]


def compare(
    recipe: str, seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> dict[str, list[float]]:
    """Return variant -> top-1 of each seed; also written to compare.json as they come."""
    image_size = read_config(recipe, list(overrides)).data.image_size
    scores: dict[str, list[float]] = {TWIN: [], **{name: [] for name in VARIANTS}}
    for seed in seeds:
        for name, changes in VARIANTS.items():
            folder = out / f"{name.replace(' ', '-').lower()}-{seed}"
            weights = pretrain(recipe, folder, [*overrides, *changes, f"training.seed={seed}"])
            scores[name].append(knn(weights, folder / "knn", image_size))
            logger.info("%s, seed %d: %.1f %%", name, seed, scores[name][-1])
            if name == "HPM":
                twin = random_weights(weights.spec, seed)
                scores[TWIN].append(knn(twin, out / f"random-{seed}", image_size))
            write_json(
                out / "compare.json", {"recipe": recipe, "set": [*overrides], "top1": scores}
            )
    return scores


def table(scores: dict[str, list[float]]) -> str:
    """Return the scores as lines: mean, standard deviation, each seed."""
    lines = []
    for name, values in scores.items():
        spread = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "-"
        each = " ".join(f"{value:.1f}" for value in values)
        lines.append(f"{name}\t{statistics.mean(values):.1f}\t{spread}\t{each}\n")
    return "".join(["variant\tk-NN top-1\tsd\tseeds\n", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrain.compare", description=__doc__)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds, from 0")
    parser.add_argument("--out", type=Path, default=Path("runs") / "pretrain-compare")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(arguments)
    configure_logging()
    try:
        scores = compare(args.recipe, range(args.seeds), args.out, args.set)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
