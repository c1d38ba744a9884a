"""Numbers as the Hugging Face Hub reads them: `.eval_results/*.yaml`, `model-index`, and a table for people.

The two formats are documented at huggingface.co/docs/hub/eval-results and in `modelcard.md` and
`eval_results.yaml` of huggingface/hub-docs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mimbench.suite.sharing.card import MARK, markdown_text
from mimbench.suite.sharing.claims import Claim
from mimbench.tables.formats import PROFILES, text_of

HUB = "https://huggingface.co"
BUNDLE = "mimbench/bundle.tar.gz"
"""Where the bundle lies in the model's repository."""


def eval_entries(
    claims: Sequence[Claim], bundle: str, *, repo: str = "", tasks: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return the entries of `.eval_results`: one for each benchmark's own number.

    Args:
        claims: What may be said.
        bundle: Digest of the bundle.
        repo: Where the bundle will be, as ORG/NAME.
        tasks: Benchmark -> task of a registered benchmark as `TASK` or `ORG/DATASET:TASK`.
    """
    entries = []
    for claim in claims:
        name = claim.column.benchmark
        dataset, _, task = (tasks or {}).get(name, "").rpartition(":")
        dataset = dataset or (claim.dataset.id if claim.dataset else "")
        if not (claim.main and claim.column.official and dataset):
            continue
        entry: dict[str, Any] = {
            "dataset": {"id": dataset, "task_id": task or name},
            "value": round(claim.number, 4),
        }
        if repo:
            entry["source"] = {"url": f"{HUB}/{repo}/blob/main/{BUNDLE}", "name": "mimbench bundle"}
        entry["notes"] = _note(claim, bundle)
        entries.append(entry)
    return entries


def _note(claim: Claim, bundle: str) -> str:
    column, value = claim.column, claim.value
    parts = [
        f"{claim.metric.name}, percent" if claim.metric else column.metric,
        f"protocol {column.benchmark}, digest {column.protocol}",
        f"95 % interval over test images ±{value.interval:.2f}"
        if value.interval is not None
        else "",
        f"mean over {value.seeds} seeds, sd {value.spread:.2f}" if value.spread is not None else "",
        f"mimbench bundle sha256 {bundle}",
    ]
    return "; ".join(part for part in parts if part)


def index_results(
    claims: Sequence[Claim], bundle: str, titles: Mapping[str, str], *, repo: str = ""
) -> list[dict[str, Any]]:
    """Return our results of `model-index`: one for each benchmark, with its metrics.

    Args:
        claims: What may be said.
        bundle: Digest of the bundle.
        titles: Benchmark -> what its protocol is called.
        repo: Where the bundle will be, as ORG/NAME.
    """
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for claim in claims:
        if not (claim.dataset and claim.metric):
            continue
        key = (claim.column.benchmark, claim.column.protocol)
        title = titles.get(claim.column.benchmark) or claim.column.title
        result = results.setdefault(
            key,
            {
                "task": {"type": claim.metric.task, "name": title},
                "dataset": {
                    "type": claim.dataset.id,
                    "name": claim.dataset.name,
                    "split": claim.dataset.split,
                },
                "metrics": [],
            },
        )
        result["metrics"].append(_metric(claim, bundle))
        if repo:
            url = f"{HUB}/{repo}/blob/main/{BUNDLE}"
            result["source"] = {"name": "mimbench bundle", "url": url}
    return list(results.values())


def _metric(claim: Claim, bundle: str) -> dict[str, Any]:
    assert claim.metric is not None
    value = claim.value
    arguments: dict[str, Any] = {
        MARK: claim.column.benchmark,
        "protocol_digest": claim.column.protocol,
        "bundle_sha256": bundle,
        "seeds": value.seeds,
    }
    if value.interval is not None:
        arguments["interval95"] = round(value.interval, 4)
    if value.spread is not None:
        arguments["seed_sd"] = round(value.spread, 4)
    return {
        "type": claim.metric.type,
        "value": round(claim.number, 4),
        "name": f"{claim.metric.name}, percent ({claim.column.benchmark})",
        "args": arguments,
    }


def eval_yaml(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return `.eval_results` entries as a file."""
    return yaml.safe_dump([dict(entry) for entry in entries], sort_keys=False, width=1000)


def card_block(claims: Sequence[Claim], bundle: str) -> str:
    """Return the block of the card: a table of all numbers, and how to check them."""
    lines = [
        "## Transfer, measured with mimbench",
        "",
        "| benchmark | metric | value | protocol | digest |",
        "|---|---|---|---|---|",
    ]
    for claim in claims:
        column = claim.column
        cells = [
            column.title + _mark(claim),
            column.metric.replace("_", " "),
            text_of(claim.value),
            column.benchmark,
            column.protocol,
        ]
        lines.append("| " + " | ".join(markdown_text(cell) for cell in cells) + " |")
    legends = dict.fromkeys(
        PROFILES[c.column.profile] for c in claims if c.column.profile in PROFILES
    )
    if any(_mark(claim) == " [changed]" for claim in claims):
        legends["[changed]: the recipe is not the published one"] = None
    lines += ["", *(f"- {markdown_text(legend)}" for legend in legends)]
    lines += [
        "- ± is the half width of a 95 % interval over test images; sd, over training seeds.",
        f"- Results, recipes and every prediction are in `{BUNDLE}`; to compute all numbers again: "
        f"`python -m mimbench verify {BUNDLE} --digest {bundle}`",
    ]
    return "\n".join(lines)


def _mark(claim: Claim) -> str:
    if claim.column.profile != "paper":
        return f" [{claim.column.profile}]"
    return "" if claim.column.official else " [changed]"
