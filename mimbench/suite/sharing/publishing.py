"""The folder that `publish` writes: bundle, `.eval_results`, model card; nothing is sent anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.suite.sharing.bundle import write_bundle
from mimbench.suite.sharing.card import merge_card
from mimbench.suite.sharing.claims import checkpoint_runs, claims_of, unfit
from mimbench.suite.sharing.hub_files import (
    BUNDLE,
    card_block,
    eval_entries,
    eval_yaml,
    index_results,
)
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.files import write_text

CARD, EVAL_FILE = "README.md", ".eval_results/mimbench.yaml"
CARD_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What was written."""

    name: str
    digest: str
    """Of the bundle."""
    numbers: int
    """In the card's table."""
    indexed: int
    """In `model-index`."""
    entries: int
    """In `.eval_results`."""
    left_out: tuple[str, ...]


def write_publication(
    folder: Path,
    out: Path | None = None,
    benchmarks: Path = DEFAULT_FILE,
    *,
    repo: str = "",
    tasks: Mapping[str, str] | None = None,
    key: Path | None = None,
) -> tuple[Path, Publication]:
    """Write what a model's repository needs; return where, and what it is.

    Args:
        folder: What `run` wrote, or one checkpoint's folder in it.
        out: Where to write; a README.md there keeps its text. By default `hub/NAME`.
        benchmarks: The manifest that the run used.
        repo: The repository it is for, as ORG/NAME.
        tasks: Benchmark -> task of a registered benchmark of the Hub.
        key: An SSH key to sign the bundle with.
    """
    manifest = load_manifest(benchmarks)
    for name in tasks or {}:
        if name not in manifest.benchmarks:
            raise UserError(
                f"--hub-task {name}: no such benchmark" + did_you_mean(name, manifest.benchmarks)
            )
    runs = checkpoint_runs(folder)
    reasons = {p: unfit(p, r) for p, r in runs}
    fit = [(p, r) for p, r in runs if not reasons[p]]
    left_out = tuple(f"{p.name}: {why}" for p, why in reasons.items() if why)
    if not fit:
        raise UserError("no number is fit to be published:\n" + "\n".join(left_out))
    place, name = fit[0][0].parent, str(fit[0][1].weights["name"])
    out = out or Path("hub") / place.name.partition("-")[2]
    claims = claims_of(fit, manifest)
    titles = {key: protocol.title for key, protocol in manifest.protocols.items()}

    def card(digest: str) -> str:
        index = index_results(claims, digest, titles, repo=repo)
        return _merged(out / CARD, name, index, card_block(claims, digest))

    card("")  # one that cannot be merged is an error before anything is written
    packed = write_bundle(
        place.parent, out / BUNDLE, benchmarks, key=key, only=frozenset(p for p, _ in fit)
    )
    entries = eval_entries(claims, packed.digest, repo=repo, tasks=tasks)
    write_text(out / CARD, card(packed.digest))
    if entries:
        write_text(out / EVAL_FILE, eval_yaml(entries))
    else:
        (out / EVAL_FILE).unlink(missing_ok=True)
    return out, Publication(
        name=name,
        digest=packed.digest,
        numbers=len(claims),
        indexed=sum(1 for claim in claims if claim.dataset and claim.metric),
        entries=len(entries),
        left_out=left_out,
    )


def _merged(path: Path, name: str, index: list[dict[str, Any]], block: str) -> str:
    """Return the card at `path`, if there is one, with our parts in it; line ends stay as they are."""
    text = _read_card(path)
    windows = "\r\n" in text
    try:
        merged = merge_card(text.replace("\r\n", "\n"), name, index, block)
    except UserError as error:
        raise UserError(f"{path} is left as it is: {error}") from error
    return merged.replace("\n", "\r\n") if windows else merged


def _read_card(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        if not path.is_file() or path.stat().st_size > CARD_BYTES:
            raise UserError(f"{path} is no file of a model card's size")
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as text: {error}") from error
