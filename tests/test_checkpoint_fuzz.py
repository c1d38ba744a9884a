"""Five hundred damaged checkpoints: none runs code, none loads wrongly, every message says what."""

import io
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mimbench.checkpoints.files import read_vit, write_weights
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitWeights
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical

COUNT = 500
SMALL = ["hpm", "mae-training", "dino-training", "dinov2", "mocov3", "beit", "timm-pth", "mmpretrain",
         "openai-clip", "vitdet", "hf-vit", "hf-dinov3", "dinov3"]  # fmt: skip
"""Layouts whose names and tensors are damaged."""

State = dict[str, Any]


class Runs:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.flag}",)


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 4, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_near_an_end(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(min(3000, len(data)))
    data[at if rng.random() < 0.5 else len(data) - 1 - at] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def cut_out(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice([1, 7, 64, 5000])]


def blank(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([16, 512, 20_000]))
    data[start:stop] = bytes(stop - start)


def repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice([8, 300, 9000])]
    data[start:start] = piece


def exchange(data: bytearray, rng: random.Random) -> None:
    size = rng.choice([32, 1000])
    a, b = rng.randrange(len(data) - size), rng.randrange(len(data) - size)
    first, second = data[a : a + size], data[b : b + size]
    data[a : a + size], data[b : b + size] = second, first


BYTES = [flip, flip_near_an_end, cut, cut_out, blank, repeat, exchange]


def body(top: State) -> State:
    """Return the mapping that holds the encoder (the one that is read by default)."""
    for key in ("state_dict", "model", "teacher"):
        if isinstance(top.get(key), dict):
            return top[key]
    return top


def encoder_names(state: State) -> list[str]:
    other = re.compile(
        r".*(decoder|head|mask|neck|simfp|losspred|momentum|predictor|pooler|classifier|proj$|"
        r"ln_final|logit|relative_position_index|lm_|periods|visual\.proj).*"
    )
    return [n for n, t in state.items() if isinstance(t, Tensor) and not other.fullmatch(n)]


def drop(state: State, name: str, rng: random.Random) -> None:
    del state[name]


def rename(state: State, name: str, rng: random.Random) -> None:
    state[name[:-1] + rng.choice("xyz")] = state.pop(name)


def add(state: State, name: str, rng: random.Random) -> None:
    # beside CLIP's visual tower lies a text tower under names of any kind, which is left out
    outside = "visual." if any(other.startswith("visual.") for other in state) else ""
    first = name.split("blocks")[0] if "blocks" in name else outside
    state[f"{first}stranger.{rng.randrange(99)}.weight"] = torch.ones(2)


def reshape(state: State, name: str, rng: random.Random) -> None:
    state[name] = state[name].reshape(-1)[: max(1, state[name].numel() - 1)].clone()


def poison(state: State, name: str, rng: random.Random) -> None:
    value = state[name].clone()
    value.view(-1)[rng.randrange(value.numel())] = rng.choice([float("nan"), float("inf")])
    state[name] = value


def retype(state: State, name: str, rng: random.Random) -> None:
    state[name] = rng.choice(
        [state[name].long(), "text", [1.0, 2.0], 3, None, state[name].to(torch.complex64)]
    )


def half_rename(state: State, name: str, rng: random.Random) -> None:
    for other in list(state):
        if re.search(r"\.1\.", other):
            state[re.sub(r"\.1\.", ".one.", other)] = state.pop(other)


def lose_a_block(state: State, name: str, rng: random.Random) -> None:
    for other in [n for n in state if re.search(r"(blocks|layer|layers|resblocks)\.1\.", n)]:
        del state[other]


NAMES = [drop, rename, add, reshape, poison, retype, half_rename, lose_a_block]


def same(weights: VitWeights, wanted: dict[str, Tensor]) -> bool:
    return weights.tensors.keys() == wanted.keys() and all(
        torch.equal(weights.tensors[n], t) for n, t in wanted.items()
    )


def structural(rng: random.Random, flag: Path, folder: Path) -> tuple[Path, dict[str, Tensor], str]:
    """Write a file whose names or tensors are damaged; return it, what it held, and the damage."""
    layout = LAYOUTS[rng.choice(SMALL)]
    wanted = canonical(layout.spec(TINY))
    top = layout.write({n: t.clone() for n, t in wanted.items()})
    path = folder / f"{layout.format}.{'safetensors' if layout.safetensors else 'pth'}"
    state = body(top)
    if rng.random() < 0.15 and not layout.safetensors:
        where = rng.choice([top, state])
        where[rng.choice(["args", "blocks.0.hook", "epoch"])] = Runs(flag)
        torch.save(top, path, _use_new_zipfile_serialization=rng.random() < 0.5)
        return path, wanted, "code"
    mutate = rng.choice(NAMES)
    if layout.safetensors and mutate is retype:
        mutate = poison
    mutate(state, rng.choice(encoder_names(state)), rng)
    if layout.safetensors:
        save_file({n: t.contiguous() for n, t in top.items()}, path)
    else:
        torch.save(top, path)
    return path, wanted, mutate.__name__


def whole_files(folder: Path) -> dict[str, tuple[bytes, dict[str, Tensor]]]:
    """Return files that carry checksums: torch's zip archives and our own safetensors."""
    out = {}
    for name in ("hpm", "dinov2", "timm-pth"):
        layout = LAYOUTS[name]
        buffer = io.BytesIO()
        torch.save(layout.write(canonical(layout.spec(TINY))), buffer)
        out[f"{name}.pth"] = (buffer.getvalue(), canonical(layout.spec(TINY)))
    tensors = canonical(TINY)
    path = folder / "ours.safetensors"
    write_weights(path, VitWeights(spec=TINY, tensors=tensors, format="x", digest="0" * 64))
    out[path.name] = (path.read_bytes(), tensors)
    return out


def test_no_damaged_checkpoint_passes(tmp_path: Path) -> None:
    rng = random.Random(20)
    flag = tmp_path / "ran"
    files = whole_files(tmp_path)
    outcomes: Counter[tuple[str, str]] = Counter()
    for i in range(COUNT):
        folder = tmp_path / str(i)
        folder.mkdir()
        if i % 2:
            path, wanted, kind = structural(rng, flag, folder)
        else:
            name = rng.choice(sorted(files))
            content, wanted = files[name]
            data = bytearray(content)
            mutate = rng.choice(BYTES)
            mutate(data, rng)
            path, kind = folder / name, mutate.__name__
            path.write_bytes(data)
        try:
            weights = read_vit(path, num_heads=3)
        except UserError as error:
            message = str(error)
            assert path.name in message, (kind, message)
            assert len(message.removeprefix(str(path))) > 15, (kind, message)
            outcomes[kind, "refused"] += 1
        else:
            assert same(weights, wanted), f"{kind} of {path.name} (case {i}) loaded wrongly"
            outcomes[kind, "unharmed"] += 1
        path.unlink()
    assert not flag.exists()
    assert sum(outcomes.values()) == COUNT
    for mutate in (*NAMES, cut):
        assert outcomes[mutate.__name__, "unharmed"] == 0, mutate.__name__
    assert outcomes["code", "refused"] > 10
    assert outcomes["code", "unharmed"] == 0
    refused = sum(n for (_, verdict), n in outcomes.items() if verdict == "refused")
    assert refused > 0.9 * COUNT


def test_the_whole_files_are_read(tmp_path: Path) -> None:
    for name, (content, wanted) in whole_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        assert same(read_vit(path, num_heads=3), wanted)


@pytest.mark.parametrize("name", SMALL)
def test_the_undamaged_layouts_are_read(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    read_vit(layout.save(TINY, tmp_path), num_heads=3)
