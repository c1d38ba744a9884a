"""What cheaper teachers cost in accuracy: k-NN after short runs of the demo recipe on the sample data.

    python -m bench.pretrain_teacher [--seeds 0 1 2] [--set training.epochs=8] [--out DIR]

Every option of the teacher that goes beyond equal mathematics, beside the usual one and random
masks, at the same number of steps. Interrupted, the same command goes on where it was.
"""

import json
import logging
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimbench.checkpoints.files import read_vit
from mimbench.sample import sample_root
from mimbench.system.config import from_mapping
from mimbench.system.files import write_json
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import Ranks
from mimbench.task import load_task
from mimbench.vit.weights import VitWeights, random_weights
from pretrain.config import read_config
from pretrain.train import train

logger = logging.getLogger(__name__)

OPTIONS = {
    "usual": (),
    "every: 2": ("teacher.every=2",),
    "every: 4": ("teacher.every=4",),
    "tokens: 0.5": ("teacher.tokens=0.5",),
    "tokens: 0.25": ("teacher.tokens=0.25",),
    "random masks": ("mask.name=random",),
}
TWIN = "random weights"


def knn(weights: VitWeights, image_size: int, out: Path) -> float:
    """Return the k-NN top-1 in percent."""
    task: Any = load_task("knn.classify")
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


def score(name: str, seed: int, further: Sequence[str], out: Path) -> float:
    """Return the top-1 of one run, trained now or before."""
    folder = out / f"{name.replace(': ', '-').replace(' ', '-')}-{seed}"
    result = folder / "top1.json"
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    overrides = [*further, *OPTIONS.get(name, ()), f"training.seed={seed}"]
    config = read_config("demo", overrides)
    if name == TWIN:
        weights = random_weights(config.encoder.spec(config.data), seed)
    else:
        weights = read_vit(train(config, folder, ranks=Ranks()), who="this measurement")
    found = knn(weights, config.data.image_size, folder / "knn")
    write_json(result, found)
    logger.info("%s, seed %d: %.1f %%", name, seed, found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = Parser(prog="python -m bench.pretrain_teacher", description=__doc__)
    add_option(parser, "--seeds", "default: 3", default=3)
    add_option(parser, "--set", "for example training.epochs=8")
    add_option(
        parser, "--out", "default: runs/bench-teacher", default=Path("runs") / "bench-teacher",
        metavar="DIR",
    )  # fmt: skip
    args = parser.parse_args(argv)
    configure_logging()
    found: dict[str, list[float]] = {name: [] for name in (*OPTIONS, TWIN)}
    for seed in range(args.seeds):
        for name, scores in found.items():
            scores.append(score(name, seed, args.set, args.out))
    sys.stdout.write(f"{'teacher':<16}{'mean':>6}{'sd':>6}  seeds\n")
    for name, scores in found.items():
        sd = f"{statistics.stdev(scores):.1f}" if len(scores) > 1 else "-"
        each = " ".join(f"{value:.1f}" for value in scores)
        sys.stdout.write(f"{name:<16}{statistics.mean(scores):>6.1f}{sd:>6}  {each}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
