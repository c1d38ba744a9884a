"""Peak memory of reading a ViT-L checkpoint, over the file's size: `python -m bench.load_memory`."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from mimbench.checkpoints.files import read_vit, write_weights
from mimbench.system.options import Parser
from mimbench.vit.positions import sincos_table
from mimbench.vit.weights import VitSpec, VitWeights, shapes

LARGE = VitSpec(
    embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096, patch_size=16, grid=(14, 14)
)  # fmt: skip
LIMIT = 1.3


def peak_bytes() -> int:
    """Return the largest resident set of this program; rusage would count the parent's, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def child(path: Path) -> None:
    """Read the file and report the peak before and after."""
    before = peak_bytes()
    weights = read_vit(path, who="this measurement")
    numbers = {"before": before, "after": peak_bytes(), "tensors": len(weights.tensors)}
    sys.stdout.write(json.dumps(numbers) + "\n")


def measure(path: Path) -> float:
    """Return the peak growth while reading in a fresh process, over the file's size."""
    command = [sys.executable, "-m", "bench.load_memory", "--child", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers = json.loads(done.stdout)
    size = path.stat().st_size
    ratio = (numbers["after"] - numbers["before"]) / size
    sys.stdout.write(
        f"{path.name:<22} {size / 1e9:5.2f} GB  imports {numbers['before'] / 1e9:5.2f} GB  "
        f"growth {(numbers['after'] - numbers['before']) / 1e9:5.2f} GB  "
        f"ratio {ratio:.3f}  {numbers['tensors']} tensors\n"
    )
    return ratio


def main(argv: Sequence[str] | None = None) -> int:
    """Write a random ViT-L in three forms, read each in a child, compare with the limit."""
    parser = Parser(prog="python -m bench.load_memory", description=__doc__)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        child(args.child)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generator = torch.Generator().manual_seed(0)
        tensors = {n: torch.randn(s, generator=generator) for n, s in shapes(LARGE).items()}
        tensors["pos_embed"] = sincos_table(LARGE.embed_dim, LARGE.grid, class_row=True)
        weights = VitWeights(spec=LARGE, tensors=tensors, format="random", digest="0" * 64)
        paths = [Path(folder) / name for name in ("native.safetensors", "mae.pth", "half.pth")]
        write_weights(paths[0], weights)
        torch.save({"model": dict(weights.tensors)}, paths[1])
        torch.save({"model": {n: t.half() for n, t in weights.tensors.items()}}, paths[2])
        del weights, tensors
        ratios = {path.name: measure(path) for path in paths}
    over = [name for name, ratio in ratios.items() if ratio >= LIMIT and name != "half.pth"]
    sys.stdout.write(f"limit {LIMIT} for float32 files: {'exceeded' if over else 'kept'}\n")
    sys.stdout.write("half.pth holds float16: its float32 copy alone is twice the file\n")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
