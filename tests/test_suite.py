"""From checkpoints to the table with real child processes and tasks whose answer is known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimbench.checkpoints.files import write_weights
from mimbench.vit.weights import VitSpec, random_weights

ROOT = Path(__file__).parents[1]

TASK = '''
"""A task whose answer is known: it writes outcomes as classification tasks do."""
import sys
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np
import torch
from mimbench.scores.hits import Hits
from mimbench.scores.neighbours import Neighbours, weighted_votes
from mimbench.task import Machine, TaskResult, Traits

VERSION = 1
MAIN_METRIC = "top1"

@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    answers: str
    images: int = 400
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

def vote(labels, rng, permute):
    """The real k-NN vote on features that tell the class; `permute` breaks their tie to the labels."""
    centres = np.eye(10)
    bank_labels = np.arange(200) % 10
    order = rng.permutation(200) if permute else np.arange(200)
    bank = (centres[bank_labels] + 0.1 * rng.normal(size=(200, 10)))[order]
    queries = centres[labels] + 0.1 * rng.normal(size=(len(labels), 10))
    found = torch.tensor(queries @ bank.T, dtype=torch.float32).topk(10, dim=1)
    near = Neighbours(similarity=found.values, labels=torch.tensor(bank_labels)[found.indices])
    return weighted_votes(near, ks=[10], temperature=0.07, classes=10)[10].numpy()

def run(weights, config, out):
    rng = np.random.default_rng(config.seed)
    labels = rng.integers(0, 10, config.images)
    right = labels[:, None] + np.arange(5)
    guess = {
        "oracle": right,
        "shifted": right + 1,
        "random": rng.permuted(np.tile(np.arange(10), (config.images, 1)), axis=1)[:, :5],
        "permuted": vote(labels, rng, permute=True),
        "broken": None,
    }[config.answers]
    if guess is None:
        print("the last words of the task", file=sys.stderr)
        raise RuntimeError("cannot go on")
    guess = guess % 10
    names = np.array([f"{i}.png" for i in range(config.images)])
    hits = Hits(images=tuple(names), labels=labels, top5=guess)
    metrics = {"top1": float(100 * (guess[:, 0] == labels).mean())}
    if config.answers == "permuted":
        metrics["unpermuted"] = float(100 * (vote(labels, rng, permute=False)[:, 0] == labels).mean())
    return TaskResult(metrics=metrics, outcomes=[hits])
'''

MANIFEST = """
defaults:
  paper: [oracle, shifted, random, permuted, broken, elsewhere, alien]
  demo: [oracle, random]
benchmarks:
  oracle: {title: Oracle, group: knn, task: known_task, dataset: sample-classification, config: {answers: oracle}, profiles: {paper: {}, demo: {config: {images: 100}}}}
  shifted: {title: Shifted, group: linear, task: known_task, dataset: sample-classification, config: {answers: shifted}}
  random: {title: Random, group: finetune, task: known_task, dataset: sample-classification, config: {answers: random}, profiles: {paper: {}, demo: {}}}
  permuted: {title: Permuted, group: knn, task: known_task, dataset: sample-classification, config: {answers: permuted}}
  broken: {title: Broken, group: lowshot, task: known_task, dataset: sample-classification, config: {answers: broken}}
  elsewhere: {title: Elsewhere, group: detection, task: known_task, dataset: coco, config: {answers: oracle}}
  alien: {title: Alien, group: segmentation, task: no_such_task, dataset: sample-ade}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task, a manifest, sample data and a checkpoint."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "known_task.py").write_text(TASK)
    (folder / "benchmarks.yaml").write_text(MANIFEST)
    spec = VitSpec(embed_dim=12, depth=1, num_heads=3, mlp_dim=24, patch_size=8, grid=(2, 2))
    write_weights(folder / "tiny.safetensors", random_weights(spec, seed=3))
    from mimbench.sample import generate

    generate(
        folder / "cache" / "sample",
        train_per_class=2,
        val_per_class=1,
        train_scenes=2,
        val_scenes=2,
    )
    return folder


def run(place: Path, *arguments: str, verb: str = "run") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(place)]),
        "MIMBENCH_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mimbench", verb, *arguments]
    if verb == "run":
        command += ["--benchmarks", "benchmarks.yaml", "--no-canary"]
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def test_one_run_from_checkpoint_to_table(place: Path) -> None:
    first = run(place, "tiny.safetensors")
    assert first.returncode == 1, first.stderr
    results = {p.parent.name: json.loads(p.read_text()) for p in place.glob("runs/*/*/result.json")}
    assert results["oracle"]["metrics"]["top1"] == 100
    assert results["shifted"]["metrics"]["top1"] == 0
    assert abs(results["random"]["metrics"]["top1"] - 10) < 6
    assert results["permuted"]["metrics"]["unpermuted"] == 100
    assert abs(results["permuted"]["metrics"]["top1"] - 10) < 6, "no better than chance"
    assert 1 < results["random"]["intervals"]["top1"] < 5
    assert [results[n]["status"] for n in ("broken", "elsewhere", "alien")] == ["failed"] * 3
    assert "the last words of the task" in first.stderr
    assert "cannot go on" in results["broken"]["error"]
    assert "--data DIR" in results["elsewhere"]["error"]
    assert "no task module 'no_such_task'" in results["alien"]["error"]
    assert first.stdout.splitlines()[0].split() == [
        "Oracle",
        "Shifted",
        "Random",
        "Permuted",
        "Broken",
        "Elsewhere",
        "Alien",
    ]
    assert "100.00" in first.stdout
    assert "failed" in first.stdout
    assert "3 of 7 cells have no number" in first.stderr

    second = run(place, "tiny.safetensors", "--only", "oracle,random")
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("skipped, done before") == 2
    assert "started" not in second.stderr
