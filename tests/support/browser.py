"""Chromium without a window, driven over a pipe: the layout that a reader's browser makes of a page."""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
MISSING = "needs Chromium, which is not installed"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe",
)  # fmt: skip
PROBE = (Path(__file__).parent / "probe.js").read_text(encoding="utf-8")


class ReaderPage:
    """One tab; commands and answers of the DevTools protocol, each ended by a zero byte."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read, self.rest = write, read, b""
        self.numbers, self.session = itertools.count(1), ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command; return its result."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        answer = self._next(lambda m: m.get("id") == number)
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def _next(self, wanted: Any) -> dict[str, Any]:
        while True:
            while b"\0" not in self.rest:
                part = os.read(self.read, 1 << 20)
                assert part, "the browser is gone"
                self.rest += part
            text, _, self.rest = self.rest.partition(b"\0")
            if wanted(message := json.loads(text)):
                return message

    def open(self, page: Path) -> None:
        """Load a page and wait until all of it is there."""
        self.ask("Page.navigate", url=page.resolve().as_uri())
        self._next(lambda m: m.get("method") == "Page.loadEventFired")

    def resize(self, width: int, *, dark: bool = False) -> None:
        """Make the window so wide, and say what colours its reader prefers."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def measure(self) -> dict[str, Any]:
        """Return what probe.js finds wrong in the page as it is laid out now."""
        return json.loads(self.run(PROBE))


@contextmanager
def reader(profile: Path) -> Iterator[ReaderPage]:
    """Start a browser and give its page."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    command = [PROGRAM, *FLAGS, f"--user-data-dir={profile}"]
    # the protocol's places are descriptors 3 and 4
    shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield ReaderPage(ours_out, ours_in)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        process.terminate()
        process.wait(timeout=30)
