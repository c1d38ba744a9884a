"""Part 6: k-NN over 1.28 M x 768 features for 50,000 queries, in torch and, where it is there, FAISS."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from bench.gpu.measure import BenchSetting, forget, part_setting, peak_mib, seconds

K = 20


def plain(
    setting: BenchSetting, bank: torch.Tensor, queries: torch.Tensor, dtype: torch.dtype
) -> float:
    """Return seconds of one product and top-k, in pieces that fit."""
    bank, queries = bank.to(dtype), queries.to(dtype)
    piece = setting.pick(2048, 64)

    def work() -> None:
        for start in range(0, len(queries), piece):
            (queries[start : start + piece] @ bank.T).topk(K)

    return seconds(work, setting.device, setting.pick(2, 1), 1)


def by_faiss(setting: BenchSetting, bank: torch.Tensor, queries: torch.Tensor) -> dict[str, Any]:
    """Return the task's own search, host to host, and how often it agrees with torch's."""
    from mimbench.features.search import search  # noqa: PLC0415 - FAISS may be absent

    rows, asked = bank.cpu().numpy(), queries.cpu().numpy()
    device = "cuda:0" if setting.device.type == "cuda" else "cpu"
    took = seconds(lambda: search(rows, asked, K, device=device), torch.device("cpu"), 1, 1)
    _, ids = search(rows, asked[:256], K, device=device)
    wanted = (queries[:256] @ bank.T).topk(K).indices.cpu()
    return {"seconds": took, "agreement": float((torch.from_numpy(ids) == wanted).float().mean())}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; without FAISS its half is skipped by name."""
    setting = part_setting(argv, __doc__)
    rows, asked = setting.pick((1_281_167, 50_000), (2_000, 100))
    forget(setting.device)
    torch.manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(rows, 768, device=setting.device), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(asked, 768, device=setting.device), dim=1)
    found: dict[str, Any] = {"rows": rows, "queries": asked, "k": K}
    for name, dtype in setting.pick(
        (("fp32", torch.float32), ("bf16", torch.bfloat16)), (("fp32", torch.float32),)
    ):
        found[f"torch_{name}_seconds"] = plain(setting, bank, queries, dtype)
        setting.write("neighbours", found)
    found["peak_mib"] = peak_mib(setting.device)
    if find_spec("faiss") is None:
        found["faiss"] = "skipped: faiss is not installed"
    else:
        found["faiss"] = by_faiss(setting, bank, queries)
    setting.write("neighbours", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
