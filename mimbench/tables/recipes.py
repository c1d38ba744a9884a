"""Why a measured number differs from a published one: the fields in which the recipes differ."""

from typing import TYPE_CHECKING, Any

from mimbench.benchmarks.manifest import Manifest, Reference
from mimbench.benchmarks.preflight import RecipeQuery, preflight
from mimbench.results.record import Result
from mimbench.system.errors import UserError
from mimbench.tables.columns import ran_as
from mimbench.tables.differences import differences, group_of, resolved, show
from mimbench.vit.sizes import SIZES

if TYPE_CHECKING:  # most comparisons need no architecture, and it needs torch
    from mimbench.vit.weights import VitSpec

IMAGE = 224
"""Side of the images of published pretraining."""


def why(result: Result, reference: Reference, manifest: Manifest) -> list[str]:
    """Return the lines that say in what a run and a published number differ."""
    lines = [f"  note: {reference.note}"] if reference.note else []
    if result.weights.get("model") != reference.model:
        lines.append(
            f"  model: {result.weights.get('model')} measured, {reference.model} published"
        )
    protocol = manifest.protocols[reference.protocol]
    if ran := ran_as(result):
        lines.append(f"  not run as the protocol says: {ran}")
    if unpublished := result.notes.get("unpublished"):
        lines.append(f"  {unpublished}")
    official = published_config(reference.protocol, manifest, reference.model)
    if official is None:
        return [
            *lines,
            f"  published under {reference.protocol}, which no benchmark here implements: {protocol.summary} [{protocol.source}]",
        ]
    found = differences(
        resolved(result), official, group_of(result.benchmark, manifest), manifest.effects
    )
    if not found and (ran or unpublished):
        return lines
    if not found:
        return [*lines, f"  same protocol ({reference.protocol}): {protocol.source}"]
    return [*lines, f"  protocols differ (measured | {reference.protocol}):", *show(found)]


def published_config(protocol: str, manifest: Manifest, model: str) -> dict[str, Any] | None:
    """Return the published recipe of a protocol for a model, None if no benchmark implements it.

    Args:
        protocol: The protocol's id.
        manifest: Benchmarks and protocols.
        model: `B/16`: what depends on the size is filled in for it.
    """
    if protocol not in manifest.benchmarks:
        return None
    dataset, config = manifest.recipe(protocol, "paper")
    query = RecipeQuery(
        benchmark=protocol,
        task=manifest.benchmarks[protocol].task,
        dataset=dataset,
        config=config,
        needs_data=False,
    )
    spec = spec_of(model)
    [report] = preflight([query], None, specs=[spec] if spec else [])
    if report.problem:
        raise UserError(report.problem)
    return {**report.canonical, **(report.resolved[0] if report.resolved else {})}


def spec_of(model: str) -> "VitSpec | None":
    """Return the architecture of a published size such as `B/16`, None for another."""
    from mimbench.vit.weights import VitSpec  # noqa: PLC0415

    letter, _, patch = model.partition("/")
    size = next((s for s in SIZES.values() if s.letter == letter), None)
    if size is None or not patch.isdigit():
        return None
    side = IMAGE // int(patch)
    return VitSpec(
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_dim=4 * size.embed_dim,
        patch_size=int(patch),
        grid=(side, side),
    )
