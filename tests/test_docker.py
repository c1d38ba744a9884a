"""The Dockerfile, read and not built: its steps are those of setup.sh, and nothing of this machine goes in."""

import fnmatch
import re
import subprocess
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.test_lock import LOCKS, PROJECT

ROOT = Path(__file__).parents[1]
SECRET = re.compile(r"(?i)\b\w*(token|password|secret|api_?key|credential)\w*\s*[=: ]|://[^/\s]*@")


def steps(text: str) -> list[tuple[str, str]]:
    """Return (instruction, argument) of a Dockerfile, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", text))
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in found]


def problems(text: str) -> list[str]:
    """Return what is wrong with a Dockerfile that runs the two commands."""
    every = steps(text)
    images = [rest for name, rest in every if name == "FROM"]
    image = re.fullmatch(r"python:(3\.\d+)-slim-\w+", images[0]) if len(images) == 1 else None
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    runs = [(i, rest) for i, (name, rest) in enumerate(every) if name == "RUN"]
    setup = next((i for i, rest in runs if "./setup.sh" in rest), -1)
    users = [rest for name, rest in every[: max(setup, 0)] if name == "USER"]
    copied = " ".join(rest for name, rest in every[: max(setup, 0)] if name == "COPY").split()
    wrong = {
        f"base image {images}, expected python:{allowed}-slim-RELEASE": not (
            image and allowed.contains(f"{image[1]}.1")
        ),
        "no step runs ./setup.sh": setup < 0,
        "a step installs Python packages beside setup.sh": any(
            re.search(r"\b(pip|uv|conda)\b", rest) for _, rest in runs
        ),
        "setup.sh runs as root": not users or users[-1] in ("root", "0"),
        "setup.sh runs without what it reads": not {"setup.sh", *LOCKS} <= {*copied},
        "it does not end with run_all.sh --demo": every[-2:]
        != [("ENTRYPOINT", '["./run_all.sh"]'), ("CMD", '["--demo"]')],
        "a secret, or a step that could hold one": bool(SECRET.search(text))
        or any(name in ("ARG", "ADD") for name, _ in every),
    }
    return [what for what, is_wrong in wrong.items() if is_wrong]


def test_its_steps_are_those_of_setup() -> None:
    assert problems((ROOT / "Dockerfile").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("python:3.12", "python:3.9", "base image"),
        ("python:3.12-slim-bookworm", "python:latest", "base image"),
        ("RUN ./setup.sh", "RUN true", "no step runs"),
        ("RUN ./setup.sh", "RUN pip install torch && ./setup.sh", "beside setup.sh"),
        ("USER mimbench", "USER root", "as root"),
        (" requirements.lock", "", "without"),
        ('CMD ["--demo"]', 'CMD ["--help"]', "--demo"),
        ("USER mimbench", "ENV WANDB_API_KEY=1\nUSER mimbench", "secret"),
        ("USER mimbench", "ARG TOKEN\nUSER mimbench", "secret"),
    ],
)
def test_rule_finds_a_wrong_step(old: str, new: str, expected: str) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert old in text
    assert any(expected in problem for problem in problems(text.replace(old, new)))


def left_out(name: str, patterns: list[str]) -> bool:
    """Return whether .dockerignore leaves a file out: the last pattern that fits decides."""
    out = False
    for pattern in patterns:
        bare = pattern.lstrip("!")
        places = [name, *(str(parent) for parent in Path(name).parents)]
        whole = any(fnmatch.fnmatch(place, bare) for place in places)
        tail = bare.removeprefix("**/") if bare.startswith("**/") else None
        if whole or (tail and any(fnmatch.fnmatch(Path(place).name, tail) for place in places)):
            out = not pattern.startswith("!")
    return out


def test_what_the_image_needs_goes_in_and_what_is_private_stays_out() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    private = [".venv/bin/python", "runs/a/result.json", "ckpt.pth", "my/model.safetensors", ".env"]
    private += ["data/imagenet/x.jpg", ".git/config", "keys/id_rsa", "x/.netrc", "wandb/run/a.wandb"]  # fmt: skip
    assert [name for name in private if not left_out(name, patterns)] == []
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git history here that says which files belong to the repository")
    assert [name for name in listed.stdout.splitlines() if left_out(name, patterns)] == []
