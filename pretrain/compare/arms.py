"""The arms of the suite's comparison: every masking strategy, and HPM taken apart."""

from collections.abc import Mapping, Sequence

TWIN = "random weights"
PLAIN = ("objective.predict_loss=none",)
ARMS: Mapping[str, tuple[str, ...]] = {
    "random (MAE)": (*PLAIN, "mask.name=random"),
    "random, loss prediction only": ("mask.name=random",),
    "hard (HPM)": ("mask.name=hard",),
    "grid (SimMIM)": (*PLAIN, "mask.name=grid"),
    "block (BEiT)": (*PLAIN, "mask.name=block"),
    "attention high (AttMask)": (*PLAIN, "mask.name=attention", "mask.order=high"),
    # on the demo's 16 patches the published tenth would hint at nothing
    "attention hint (AttMask)": (
        *PLAIN,
        "mask.name=attention",
        "mask.order=hint",
        "mask.show=0.25",
    ),
    "attention low (AttMask)": (*PLAIN, "mask.name=attention", "mask.order=low"),
    "colour (ColorMAE)": (*PLAIN, "mask.name=colour"),
    "rolled (CAPI)": (*PLAIN, "mask.name=rolled"),
    "contrast of pixels": (*PLAIN, "mask.name=contrast"),
    "multiblock (I-JEPA)": (*PLAIN, "mask.name=multiblock"),
    "even (UM-MAE)": (*PLAIN, "mask.name=even"),
    "salience": (*PLAIN, "mask.name=salience"),
    "harder of two": (*PLAIN, "mask.name=harder"),
    "even, a quarter veiled (UM-MAE)": (*PLAIN, "mask.name=even", "encoder.secondary=0.25"),
    "adversarial (AutoMAE)": (*PLAIN, "mask.name=adversarial"),
    "curriculum (CL-MAE)": (*PLAIN, "mask.name=curriculum"),
}
"""What each arm changes in the recipe; all hide the recipe's share of patches."""
ORACLES: Mapping[str, tuple[str, ...]] = {
    "boxes (oracle)": (*PLAIN, "mask.name=boxes"),
    "segments (oracle)": (*PLAIN, "mask.name=segments", "mask.order=things"),
    "whole segments (oracle)": (*PLAIN, "mask.name=segments", "mask.order=whole"),
    "within segments (oracle)": (*PLAIN, "mask.name=segments", "mask.order=within"),
}
"""Arms that use annotations: yardsticks, run where `--set` names images that have some."""


def changes_of(arm: str) -> tuple[str, ...]:
    """Return what an arm changes in the recipe; nothing for the twin."""
    return ARMS.get(arm, ORACLES.get(arm, ()))


def arms_of(overrides: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the arms whose names hold any of the wanted parts; oracles only on annotated images."""
    names = [*ARMS, TWIN]
    if any(o.startswith(("data.annotations=", "data.name=scenes")) for o in overrides):
        names += ORACLES
    return [arm for arm in names if not wanted or any(part in arm for part in wanted)]
