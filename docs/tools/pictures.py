"""Make the pictures of README and docs from a run of the demo: `python docs/tools/pictures.py runs/demo`.

Everything in docs/pictures/ comes from here: the table as a terminal of 100 columns shows it, the
report and a board of one bundle in a browser (Chromium) and on a phone, and masks on images of the sample
data.
"""

import argparse
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.tools import terminal  # noqa: E402 - started as a file, like the other tools here
from mimbench.sample import sample_root  # noqa: E402
from mimbench.suite.demo import farewell  # noqa: E402
from mimbench.system.errors import UserError  # noqa: E402
from mimbench.system.exit_codes import ExitCode, run_command  # noqa: E402
from mimbench.system.files import write_text  # noqa: E402
from mimbench.system.options import Parser, add_option  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 100
MOST_BYTES = 150_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WINDOWS = {"": (1200, 900, 1.0), "-phone": (390, 780, 2.0)}
"""End of a picture's name -> width and height of the window, and pixels for each of its own."""
COLOURS = (256, 128, 64, 32, 16)
"""Palettes, tried until the file is small enough."""


def table(runs: Path) -> str:
    """Return the table as a terminal shows it, with whatever colours it has there."""
    command = [sys.executable, "-m", "mimbench", "table", str(runs)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm-256color",
    }
    ours, theirs = pty.openpty()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=theirs, stderr=errors, env=environment)
        os.close(theirs)
        found = _read(ours)
        if process.wait():
            errors.seek(0)
            raise UserError(f"no table of {runs}: {errors.read().strip()}")
    return found.replace("\r\n", "\n")


def _read(handle: int) -> str:
    found = b""
    while True:
        try:
            block = os.read(handle, 65536)
        except OSError:  # Linux says so when the other end is closed
            block = b""
        if not block:
            os.close(handle)
            return found.decode("utf-8", errors="replace")
        found += block


def screenshot(page: Path, size: tuple[int, int, float], out: Path) -> None:
    """Write the top of a page as a browser window of a size shows it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f"none of {', '.join(BROWSERS)} is installed: the report is drawn by one")
    width, height, scale = size
    with tempfile.TemporaryDirectory() as home:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        command += ["--hide-scrollbars", f"--user-data-dir={home}", f"--screenshot={out}"]
        command += [f"--window-size={width},{height}", f"--force-device-scale-factor={scale}"]
        done = subprocess.run(
            [*command, page.resolve().as_uri()], capture_output=True, text=True, check=False
        )
    if done.returncode or not out.is_file():
        raise UserError(f"{browser} made no picture of {page}: {done.stderr.strip()[-300:]}")


def board(runs: Path, folder: Path) -> Path:
    """Return the board of a bundle of the runs."""
    bundle, page = folder / "demo.tar.gz", folder / "board.html"
    for arguments in (
        ["bundle", str(runs), "-o", str(bundle)],
        ["board", str(bundle), "-o", str(page)],
    ):
        command = [sys.executable, "-m", "mimbench", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"no board of {runs}: {done.stderr.strip()[-300:]}")
    return page


def masks(checkpoint: Path, out: Path) -> None:
    """Write a sheet of masks: what each strategy hides on images of the sample data."""
    scenes = sorted((sample_root() / "ade" / "images" / "validation").glob("*.jpg"))
    images = [scenes[0], scenes[3]]
    command = [sys.executable, "-m", "pretrain.masks", "show", *map(str, images)]
    command += ["--checkpoint", str(checkpoint), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"no masks of {checkpoint}: {done.stderr.strip()[-300:]}")


def shrink(source: Path, out: Path, width: int | None = None) -> None:
    """Write a PNG with the largest palette that keeps it under the limit."""
    image = Image.open(source).convert("RGB")
    if width and image.width > width:
        height = round(image.height * width / image.width)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    for colours in COLOURS:
        small = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        small.save(out, optimize=True)
        if out.stat().st_size < MOST_BYTES:
            return
    raise UserError(
        f"{out} has {out.stat().st_size} bytes with {COLOURS[-1]} colours; limit {MOST_BYTES}"
    )


def make(runs: Path, out: Path, *, browser: bool = True) -> None:
    """Write all pictures of a run."""
    out.mkdir(parents=True, exist_ok=True)
    lines = table(runs) + farewell(Path("runs/demo"))
    columns = max([COLUMNS, *(len(line) for line in lines.split("\n"))])
    drawn = terminal.draw(
        "./run_all.sh --demo", lines, columns=columns, title="The demo's table in a terminal"
    )
    write_text(out / "table.svg", drawn)
    with tempfile.TemporaryDirectory() as folder:
        masks(runs / "pretrain", Path(folder) / "masks.png")
        shrink(Path(folder) / "masks.png", out / "masks.png", width=1200)
        if not browser:
            return
        for page in (runs / "report.html", board(runs.resolve(), Path(folder))):
            for end, size in WINDOWS.items():
                name = f"{page.stem}{end}.png"
                screenshot(page, size, Path(folder) / name)
                shrink(Path(folder) / name, out / name)


def _main(args: argparse.Namespace) -> int:
    for name in ("report.html", "pretrain"):
        if not (args.runs / name).exists():
            raise UserError(
                f"{args.runs} has no {name}; make it by: ./run_all.sh --demo --out {args.runs}"
            )
    make(args.runs, args.out)
    sizes = {path.name: path.stat().st_size for path in sorted(args.out.iterdir())}
    sys.stdout.write("".join(f"{size / 1000:7.1f} kB  {name}\n" for name, size in sizes.items()))
    return ExitCode.OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = Parser(prog="python docs/tools/pictures.py", description=__doc__)
    parser.add_argument(
        "runs", type=Path, metavar="RUNS", help="output folder of a run of the demo"
    )
    add_option(parser, "--out", "default: docs/pictures", default=PICTURES)
    return run_command(_main, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
