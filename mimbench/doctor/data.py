"""Which data sets lie under a folder, and whether each is complete."""

import json
import shlex
from pathlib import Path

from mimbench.data.sets import published
from mimbench.doctor import ade, coco, imagenet, voc
from mimbench.doctor.check import Check, fault, ok, python_module, warn
from mimbench.doctor.folders import count_files
from mimbench.doctor.published import set_layouts
from mimbench.doctor.shifted import SETS as SHIFTED
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few

SAMPLE_GENERATOR = "mimbench-sample"
CORE = {"imagenet": imagenet, "coco": coco, "ade": ade, "voc": voc}
LAYOUTS = {**CORE, **SHIFTED, **set_layouts()}
NAMED = "imagenet/, coco/, ade/ or voc/"
# What the archives call themselves, and other usual names, by the name that the benchmarks use.
ALIASES = {
    "imagenet": ("imagenet-1k", "imagenet1k", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"),
    "coco": ("COCO", "coco2017", "mscoco"),
    "ade": ("ADEChallengeData2016", "ade20k", "ADE20K", "ADE20K_2016_07_26", "ADE20K_2021_17_01"),
    "voc": ("VOC2012", "VOCdevkit/VOC2012", "VOC", "voc2012", "pascal_voc"),
    **{name: known.folders for name, known in published().items()},
    **{name: known.names for name, known in SHIFTED.items()},
}


def check_data(root: Path) -> list[Check]:
    """Check the data sets under `root`, or `root` itself if it is one of them."""
    root = root.expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder; expected one with {NAMED} in it")
    manifest = sample_manifest(root)
    if manifest is not None:
        return [_check_sample(root, manifest)]
    # A folder that says what it is (coco/annotations) before one that only looks like a data set.
    own = [
        n for n, layout in LAYOUTS.items() if getattr(layout, "says_so", layout.looks_like)(root)
    ]
    if own and not any((root / name).is_dir() for name in LAYOUTS):
        return LAYOUTS[own[0]].check(root)
    checks = [check for name in LAYOUTS for check in _check_below(root, name)]
    # a set that few benchmarks need is worth no line where it is not
    checks = [c for c in checks if not (_absent(c) and c.name not in CORE_TITLES)]
    if all(_absent(check) for check in checks):
        return [
            fault(
                "data",
                f"{root} holds no data set; expected {NAMED} in it",
                "\n".join(check.fix for check in checks),
            )
        ]
    return checks


CORE_TITLES = {layout.TITLE for layout in CORE.values()}


def _absent(check: Check) -> bool:
    return check.status == "warn" and check.detail.startswith("not found")


def _check_below(root: Path, name: str) -> list[Check]:
    """Check the data set `name` under `root`."""
    folder, layout = root / name, LAYOUTS[name]
    places = [folder, *(root / alias for alias in ALIASES[name])]
    if name not in CORE:
        # benchmarks read these under the archive's own name too
        folder = next((place for place in places if layout.looks_like(place)), folder)
    if folder.is_dir():
        return layout.check(folder)
    for alias in ALIASES[name]:
        other = root / alias
        if other.is_dir() and not (other.is_symlink() and not other.exists()):
            link = f"ln -s {shlex.quote(alias)} {shlex.quote(str(folder))}"
            return [
                fault(layout.TITLE, f"expected {folder}, found {other}", link),
                *layout.check(other),
            ]
    detail = f"not found: {folder}; benchmarks that need it cannot run"
    return [warn(layout.TITLE, detail, layout.obtain(folder))]


def sample_manifest(root: Path) -> dict[str, object] | None:
    """Return the manifest if `root` is our sample data set."""
    path = root / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if isinstance(manifest, dict) and manifest.get("generator") == SAMPLE_GENERATOR:
        return manifest
    return None


def _check_sample(root: Path, manifest: dict[str, object]) -> Check:
    """Compare the sample data with its own manifest instead of with the published counts."""
    counts = manifest.get("counts")
    expected = counts if isinstance(counts, dict) else {}
    fix = f"{python_module('mimbench')} sample --fresh --out {shlex.quote(str(root))}"
    missing = [name for name in ("classification", "coco", "ade") if not (root / name).is_dir()]
    wrong = [
        f"{name} has {count_files(root / name)} files, expected {count}"
        for name, count in expected.items()
        if count_files(root / name) != count
    ]
    if missing or wrong:
        what = [f"{name}/ is missing" for name in missing] + wrong
        return fault("sample data", f"{root} is damaged: {first_few(what, separator='; ')}", fix)
    total = sum(expected.values())
    return ok(
        "sample data", f"{total:,} files as its manifest says (version {manifest.get('version')})"
    )
