"""Neighbour search with FAISS: exact on GPU or CPU, or approximate with its recall measured."""

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mimbench.system.errors import UserError

logger = logging.getLogger(__name__)

Metric = Literal["ip", "l2"]
Kind = Literal["exact", "ivf", "ivfpq"]
Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

GPU_LARGEST_K = 2048
TIE_BYTES = 32 * 2**20
"""Scores of this many bytes are held at a time while a shared k-th place is settled."""
TRAINED_ON = 64
"""Rows for each list that a streamed index is trained on."""
GPU_SHARE = 0.6
"""Part of the free GPU memory that a slice of the bank may take."""


@dataclass(frozen=True, kw_only=True)
class Approximate:
    """An inverted-file index for banks too large to search exhaustively."""

    kind: Kind = "exact"
    lists: int = 4096
    probes: int = 64
    code_bytes: int = 64
    """Sub-vectors of a product-quantised vector (ivfpq only); at 8 bits its bytes."""
    code_bits: int = 8


def library() -> Any:
    """Return FAISS, imported when something is searched: nothing else of the library needs it."""
    import faiss  # noqa: PLC0415

    return faiss


def search(
    bank: Floats, queries: Floats, k: int, *, metric: Metric = "ip", device: str = "auto"
) -> tuple[Floats, Ids]:
    """Return similarities and rows (n, k) of the exact nearest bank rows, nearest first.

    The similarity is the inner product, or minus half the squared distance: for vectors of unit
    length these differ by a constant. Equal similarities are ordered by row, at the k-th too.
    """
    check_k(k, len(bank))
    # one more than asked for shows whether the k-th place is shared
    wide = min(k + 1, len(bank))
    gpus = usable_gpus(device) if wide <= GPU_LARGEST_K else []
    raw, ids = (
        _search_gpus(bank, queries, wide, metric, gpus)
        if gpus
        else _search_cpu(bank, queries, wide, metric)
    )
    similarity = raw if metric == "ip" else -0.5 * raw
    return _settle_ties(bank, queries, similarity, ids, k, metric)


def search_pieces(
    pieces: Iterable[Floats],
    queries: Floats,
    k: int,
    *,
    metric: Metric = "ip",
    device: str = "auto",
) -> tuple[Floats, Ids]:
    """Return what `search` does, of a bank that comes in pieces: memory holds one of them at a time.

    Args:
        pieces: Bank rows, in order.
        queries: (n, d)
        k: Neighbours of each query.
        metric: As of `search`.
        device: As of `search`.
    """
    best: tuple[Floats, Ids] | None = None
    done = 0
    for piece in pieces:
        if not len(piece):
            continue
        values, ids = search(piece, queries, min(k, len(piece)), metric=metric, device=device)
        part = (values, ids + done)
        done += len(piece)
        best = part if best is None else merge_in_order(best, part, k)
    check_k(k, done)
    assert best is not None
    return best


def check_k(k: int, rows: int) -> None:
    """Raise unless 1 <= k <= rows."""
    if not 1 <= k <= rows:
        raise UserError(
            f"k = {k} neighbours of a bank of {rows} images; choose k between 1 and {rows}"
        )


def gpu_count() -> int:
    """Return how many GPUs this FAISS can use; its CPU build knows none."""
    usable = torch.cuda.is_available() and hasattr(library(), "StandardGpuResources")
    return int(library().get_num_gpus()) if usable else 0


def usable_gpus(device: str) -> list[int]:
    """Return the GPUs that a search may use: every one, one, or none on the device 'cpu'."""
    if device == "cpu" or not (count := gpu_count()):
        return []
    return [int(device.removeprefix("cuda:"))] if ":" in device else list(range(count))


def _faiss_metric(metric: Metric) -> int:
    return library().METRIC_INNER_PRODUCT if metric == "ip" else library().METRIC_L2


def _search_cpu(bank: Floats, queries: Floats, k: int, metric: Metric) -> tuple[Floats, Ids]:
    return library().knn(queries, bank, k, metric=_faiss_metric(metric))


def _search_gpus(
    bank: Floats, queries: Floats, k: int, metric: Metric, gpus: Sequence[int]
) -> tuple[Floats, Ids]:
    """Search slices of the bank, each small enough for one GPU, over the GPUs; merge exactly."""
    slices = gpu_slices(bank.nbytes, len(bank), [torch.cuda.mem_get_info(g)[0] for g in gpus])
    resources = [library().StandardGpuResources() for _ in gpus]

    def work(at: int) -> list[tuple[Floats, Ids]]:
        found = []
        for start, stop in slices[at :: len(gpus)]:
            most = min(k, stop - start)
            values, ids = library().knn_gpu(
                resources[at],
                queries,
                bank[start:stop],
                most,
                metric=_faiss_metric(metric),
                device=gpus[at],
            )
            found.append((values, ids + start))
        return found

    with ThreadPoolExecutor(len(gpus)) as pool:
        parts = [part for found in pool.map(work, range(len(gpus))) for part in found]
    return merge(parts, k, metric)


def gpu_slices(nbytes: int, rows: int, free: list[int]) -> list[tuple[int, int]]:
    """Return row ranges, at least one for each GPU, none larger than a GPU's share of memory."""
    share = max(1, int(min(free) * GPU_SHARE))
    pieces = max(len(free), -(-nbytes // share))
    edges = np.linspace(0, rows, min(pieces, rows) + 1).astype(int)
    return [(int(a), int(b)) for a, b in itertools.pairwise(edges)]


def merge(parts: list[tuple[Floats, Ids]], k: int, metric: Metric) -> tuple[Floats, Ids]:
    """Return the k best of several searches over parts of one bank, ties by row."""
    values = np.concatenate([v for v, _ in parts], axis=1)
    ids = np.concatenate([i for _, i in parts], axis=1)
    order = np.lexsort((ids, -values if metric == "ip" else values), axis=1)[:, :k]
    return np.take_along_axis(values, order, 1), np.take_along_axis(ids, order, 1)


def merge_in_order(
    best: tuple[Floats, Ids], later: tuple[Floats, Ids], k: int
) -> tuple[Floats, Ids]:
    """Return the k largest similarities of two searches; rows of the later one come after the other's."""
    values = np.concatenate([best[0], later[0]], axis=1)
    ids = np.concatenate([best[1], later[1]], axis=1)
    # both are sorted with ties by row, so that a stable sort keeps them
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, 1), np.take_along_axis(ids, order, 1)


def _settle_ties(
    bank: Floats, queries: Floats, similarity: Floats, ids: Ids, k: int, metric: Metric
) -> tuple[Floats, Ids]:
    """Order equal similarities by row; where the k-th place is shared, look at the whole bank."""
    equal = similarity[:, 1:] == similarity[:, :-1]
    for row in np.flatnonzero(equal.any(axis=1)):
        order = np.lexsort((ids[row], -similarity[row]))
        similarity[row], ids[row] = similarity[row, order], ids[row, order]
    if similarity.shape[1] > k:
        shared = np.flatnonzero(equal[:, k - 1])
        size = max(1, TIE_BYTES // (4 * len(bank)))
        for start in range(0, len(shared), size):
            rows = shared[start : start + size]
            similarity[rows, :k], ids[rows, :k] = _exhaustive(bank, queries[rows], k, metric)
    return np.ascontiguousarray(similarity[:, :k]), np.ascontiguousarray(ids[:, :k])


def _exhaustive(bank: Floats, queries: Floats, k: int, metric: Metric) -> tuple[Floats, Ids]:
    scores = queries @ bank.T
    if metric == "l2":
        scores -= 0.5 * np.square(bank).sum(axis=1)
        scores -= 0.5 * np.square(queries).sum(axis=1, keepdims=True)
    best = np.stack([_first_best(row, k) for row in scores])
    return np.take_along_axis(scores, best, 1), best


def _first_best(scores: Floats, k: int) -> Ids:
    """Return the rows of the k largest scores, of equal ones the first."""
    edge = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > edge)
    above = above[np.lexsort((above, -scores[above]))]
    return np.concatenate([above, np.flatnonzero(scores == edge)[: k - len(above)]])


def build_approximate(bank: Floats, how: Approximate, *, metric: Metric = "ip") -> Any:
    """Return a trained inverted-file index that holds the bank."""
    dim = bank.shape[1]
    lists = min(how.lists, max(1, len(bank) // 39))
    if how.kind == "ivfpq" and dim % how.code_bytes:
        raise UserError(
            f"code_bytes = {how.code_bytes} does not divide the feature width {dim}; "
            "choose a divisor"
        )
    kind = "Flat" if how.kind == "ivf" else f"PQ{how.code_bytes}x{how.code_bits}"
    index: Any = library().index_factory(dim, f"IVF{lists},{kind}", _faiss_metric(metric))
    index.cp.seed = 0
    index.train(bank)
    index.add(bank)
    index.nprobe = min(how.probes, lists)
    return index


def build_from_pieces(
    pieces: Callable[[], Iterable[Floats]],
    rows: int,
    how: Approximate,
    *,
    metric: Metric = "ip",
) -> Any:
    """Return a trained inverted-file index of a bank that comes in pieces.

    Args:
        pieces: Gives the bank's rows, in order; called twice.
        rows: How many there are.
        how: Which index.
        metric: As of `search`.
    """
    lists = min(how.lists, max(1, rows // 39))
    step = max(1, rows // (TRAINED_ON * lists))
    sample, done = [], 0
    for piece in pieces():
        sample.append(piece[-done % step :: step])
        done += len(piece)
    index = build_approximate(np.concatenate(sample), replace(how, lists=lists), metric=metric)
    index.reset()
    for piece in pieces():
        index.add(piece)
    return index


def search_approximate(
    index: Any, queries: Floats, k: int, *, metric: Metric = "ip"
) -> tuple[Floats, Ids]:
    """Return similarities and rows (n, k) from an inverted-file index, ties ordered by row.

    A query that finds fewer than k rows in the lists it looks into is an error, not a short vote.
    """
    check_k(k, index.ntotal)
    values, ids = index.search(queries, k)
    if (ids < 0).any():
        short = int((ids < 0).any(axis=1).sum())
        raise UserError(
            f"{short} queries found fewer than {k} neighbours in {index.nprobe} of {index.nlist} "
            "lists; raise probes"
        )
    similarity = values if metric == "ip" else -0.5 * values
    order = np.lexsort((ids, -similarity), axis=1)
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(ids, order, 1)


def recall(approximate: Ids, exact: Ids) -> float:
    """Return the percentage of exact neighbours that the approximate search found."""
    hits = sum(
        len(np.intersect1d(a, e, assume_unique=True))
        for a, e in zip(approximate, exact, strict=True)
    )
    return 100.0 * hits / exact.size
