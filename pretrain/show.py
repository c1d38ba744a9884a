"""A picture of what a pretrained model does: `python -m pretrain.show CKPT IMAGE... -o out.png`.

For each image: the image, where the loss predictor expects the reconstruction to fail, what is
hidden at the beginning, in the middle and at the end of training, and what the model fills in.
CKPT is a run's folder, finished or not, one of its checkpoints, its model.safetensors, or a
pretraining checkpoint of HPM or MAE.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.files import atomic_path
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_checkpoint, add_option


def figure(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    target: str | None = None,
    heads: int | None = None,
    seed: int = 0,
) -> Path:
    """Draw what a checkpoint makes of image files; return the picture's path.

    Args:
        checkpoint: A run's folder, one of its states or exports, or a file of HPM or MAE.
        images: Image files, one row for each.
        out: Where to; the ending says the format (.png, .pdf, .svg).
        target: `pixels` or `normalised`, where the file does not say what the model predicts.
        heads: The encoder's attention heads, for widths that no published model has.
        seed: Fixes the random part of the masks.
    """
    # not before the options are read: --help and a wrong option need no torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415

    from pretrain.checkpoints.stored import read_model  # noqa: PLC0415
    from pretrain.viewing.drawing import draw  # noqa: PLC0415
    from pretrain.viewing.view import look  # noqa: PLC0415

    kinds = FigureCanvasAgg.get_supported_filetypes()
    kind = out.suffix.removeprefix(".").lower()
    if kind not in kinds:
        raise UserError(
            f"cannot write '{out.name}': its ending should be one of {', '.join(kinds)}"
        )
    if not images:
        raise UserError("no image was given to look at")
    stored = read_model(checkpoint, num_heads=heads)
    view = look(stored, checkpoint, images, target=target, seed=seed)
    drawn = draw(view, [path.name for path in images])
    with atomic_path(out) as part:
        drawn.savefig(part, format=kind, dpi=160, facecolor="white")
    return out


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m pretrain.show", description=__doc__)
    add_checkpoint(out)
    out.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    add_option(out, "--out", "the ending says the format", required=True, metavar="FILE")
    out.add_argument(
        "--target", choices=["pixels", "normalised"], help="where the file does not say it"
    )
    add_option(out, "--num-heads")
    add_option(out, "--seed", "for the random part of the masks")
    out.rename(output="--out", heads="--num-heads")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = parser().parse_args(arguments)
    configure_logging()
    return run_command(_show, args)


def _show(args: argparse.Namespace) -> int:
    figure(
        args.checkpoint,
        args.images,
        args.out,
        target=args.target,
        heads=args.num_heads,
        seed=args.seed,
    )
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
