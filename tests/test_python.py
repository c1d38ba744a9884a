"""The suite from Python: what the command line gives, in one process; a notebook that stays true."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mimbench
from mimbench.checkpoints.files import write_weights
from mimbench.results.record import read_result
from mimbench.system.errors import UserError
from mimbench.system.runtime import callers_tf32
from mimbench.vit.network import build_vit, load_encoder
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.typed_commands import plain

NOTEBOOK = Path(__file__).parents[1] / "docs" / "howto" / "python.ipynb"


@pytest.fixture
def weights(small_spec: VitSpec) -> VitWeights:
    return random_weights(small_spec, 0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def settings() -> dict[str, Any]:
    return {"in-knn": {"k": [3], "main_k": 3, "choices": ["cls"], "image_size": 32, "resize": None}}


def run(model: Any, data: Path, out: Path, **more: Any) -> float:
    found = mimbench.evaluate(
        model,
        ["in-knn"],
        data=data,
        own_data=True,
        out=out,
        settings=settings(),
        device="cpu",
        **more,
    )
    return found["in-knn"].metrics["top1"]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import mimbench, sys; print('torch' in sys.modules, mimbench.__all__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("False")
    assert "evaluate" in said.stdout


def test_a_name_that_does_not_exist_is_said_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = mimbench.evalute


def test_file_weights_and_module_give_equal_numbers(
    weights: VitWeights, painted_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = painted_images(tmp_path / "data/imagenet", classes=3, train=8, val=4)
    file = tmp_path / "w.safetensors"
    write_weights(file, weights)
    vit = build_vit(weights.spec)
    load_encoder(vit, weights)

    def cls(module: nn.Module, images: Tensor) -> Tensor:
        return module.forward_features(images)[:, 0]  # pyright: ignore[reportCallIssue]

    out = tmp_path / "runs"
    numbers = {
        run(file, data, out, name="file"),
        run(mimbench.load(file), data, out, name="loaded"),
        run(vit, data, out, name="module", vector=cls, image_size=32),
    }
    assert len(numbers) == 1
    rows = str(mimbench.table(out))
    assert {"file", "loaded", "module"} <= set(rows.split())
    assert "in-knn" in mimbench.compare("file", "module", out) or "k-NN" in mimbench.compare(
        "file", "module", out
    )


def test_what_is_done_is_read_and_not_computed_again(
    weights: VitWeights,
    painted_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = painted_images(tmp_path / "data/imagenet", classes=3, train=8, val=4)
    first = run(weights, data, tmp_path / "runs")
    monkeypatch.setattr(
        "mimbench.benchmarks.lifecycle.evaluate", lambda *a: pytest.fail("computed again")
    )
    assert run(weights, data, tmp_path / "runs") == first


def test_tf32_is_the_callers_again_and_a_run_with_it_says_so(
    weights: VitWeights,
    painted_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = painted_images(tmp_path / "data/imagenet", classes=3, train=8, val=4)
    found = {}
    for used in (False, True):
        monkeypatch.setattr("mimbench.benchmarks.evaluation.tf32_used", lambda _, used=used: used)
        with callers_tf32():
            torch.backends.cuda.matmul.allow_tf32 = True
            run(weights, data, tmp_path / f"runs-{used}")
            assert torch.backends.cuda.matmul.allow_tf32
        [path] = (tmp_path / f"runs-{used}").glob("*/*/result.json")
        found[used] = read_result(path)
    assert (found[False].provenance.tf32, found[True].provenance.tf32) == (False, True)
    assert "fp32" not in found[False].ran
    assert found[True].ran["fp32"] == "rounded to TF32"
    assert "rounded to TF32" in str(mimbench.table(tmp_path / "runs-True"))
    assert found[True].protocol == found[False].protocol


def test_what_cannot_be_is_refused_before_anything_runs(
    weights: VitWeights, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="in-knm"):
        mimbench.evaluate(weights, ["in-knm"], out=tmp_path / "runs")
    with pytest.raises(UserError, match="only a module declares vector"):
        mimbench.evaluate(weights, ["in-knn"], vector=len, out=tmp_path / "runs")
    with pytest.raises(UserError, match="no results in"):
        mimbench.table(tmp_path / "nothing")
    assert not (tmp_path / "runs").exists()


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every code cell, in order, on the sample data; what it prints is in the file."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    shown = []
    for cell in code:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "docs/howto/python.ipynb", "exec"), space)
        kept = ["".join(o["data"]["text/plain"]) for o in cell["outputs"]]
        if isinstance(last, ast.Expr):
            value = eval(
                compile(ast.Expression(last.value), "docs/howto/python.ipynb", "eval"), space
            )
            shown.append((repr(value), kept))
        else:
            assert kept == []
    [(table, kept_table), (comparison, kept_comparison)] = shown
    assert [plain(table)] == [plain(kept) for kept in kept_table]
    start = "in-knn: colours is better than tiny"
    assert comparison.startswith(start)
    assert [kept.startswith(start) for kept in kept_comparison] == [True]
    assert torch.isfinite(torch.tensor([r.metrics["top1"] for r in space["mine"].values()])).all()
