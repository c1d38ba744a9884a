"""Part 3: ViTDet's ViT-B at 1024, one image: stock and fused attention, forward, backward, memory."""

import sys
from collections.abc import Sequence
from typing import Any

from bench.detection_attention import compare, subjects
from bench.gpu.measure import part_setting


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both sizes."""
    setting = part_setting(argv, __doc__)
    found: dict[str, Any] = {}
    for size in setting.pick((512, 1024), (224,)):
        for name, (module, images) in subjects(size, setting.device).items():
            ratio, stock = compare(module, images, setting.device, setting.pick(5, 1))
            found[f"{name} at {size}"] = {
                "fused_over_stock": {k: v.median for k, v in ratio.items()},
                "stock": stock,
            }
            setting.write("detection", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
