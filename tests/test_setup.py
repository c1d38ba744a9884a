"""setup.sh without a network: what it chooses, what it leaves alone, and its sentences on failure."""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = [
    "awk",
    "basename",
    "bash",
    "cat",
    "df",
    "dirname",
    "grep",
    "ls",
    "mkdir",
    "mv",
    "readlink",
    "rm",
    "tee",
]
PYTHON = shlex.quote(sys.executable)
LOCKS = ("requirements.lock", "requirements-detectron2.lock")


class Clone:
    """A copy of what set-up needs, in a folder whose name has spaces, with a PATH of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "clone with spaces"
        self.venv = self.root / ".venv"
        self.tools = folder / "bin"
        self.tools.mkdir()
        self.root.mkdir()
        for name in ("setup.sh", *LOCKS):
            shutil.copy(ROOT / name, self.root)
        for name in TOOLS:
            (self.tools / name).symlink_to(str(shutil.which(name)))

    def stub(self, path: Path, body: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
        path.chmod(0o755)
        return path

    def python(
        self, name: str = "python3", *, version: str = "", venv: str = "", lacks: str = ""
    ) -> Path:
        """Add a Python to PATH: the real one, but for its version and how `-m venv` goes."""
        cases = [f"*version_info*) echo {version}; exit ;;"] if version else []
        cases += [f"*{lacks}*) exit 1 ;;"] if lacks else []
        cases += [f'"-m venv "*) {venv} ;;'] if venv else []
        return self.stub(
            self.tools / name,
            f'case "$*" in {" ".join(cases)} esac\nexec {PYTHON} "$@"' if cases
            else f'exec {PYTHON} "$@"',
        )  # fmt: skip

    def environment(self, **extra: str) -> dict[str, str]:
        nowhere = "http://127.0.0.1:9/simple"  # refused at once: the discard port has no listener
        offline = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": nowhere,
            "UV_DEFAULT_INDEX": nowhere,
        }
        home = {"HOME": str(self.root.parent), "PATH": str(self.tools), "PIP_NO_CACHE_DIR": "1"}
        return {**home, **offline, **extra}

    def setup(self, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.tools / "bash"), str(self.root / "setup.sh")],
            env=self.environment(**extra),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def make_ready(self) -> None:
        """Pretend that a set-up has finished, with the Python that runs the tests."""
        self.stub(
            self.venv / "bin" / "python",
            f'case "$*" in *_base_executable*) echo "{self.tools}/python3"; exit ;; '
            f'*pip*) exit 1 ;; esac\nexec {PYTHON} "$@"',
        )
        self.python(venv="exit 7")
        self.stub(self.venv / "bin" / "mimbench", "exit 0")
        (self.venv / ".mimbench-owned").write_text(f"{self.root}\n")
        digest = hashlib.sha256(f"{sys.version}\n{self.root}\n".encode())
        for name in (*LOCKS, "setup.sh"):
            digest.update(hashlib.sha256((self.root / name).read_bytes()).digest())
        (self.venv / ".mimbench-ready").write_text(digest.hexdigest() + "\n")

    @property
    def stamped(self) -> bool:
        return (self.venv / ".mimbench-ready").exists()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """Return the sentence on failure: one line, the last."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("setup: FAILED: ")
    return last


def test_no_python(clone: Clone) -> None:
    sentence = failure(clone.setup())
    assert "no Python from 3.10 to 3.13 found (python3 does not run)" in sentence
    assert "MIMBENCH_PYTHON=" in sentence


@pytest.mark.parametrize("version", ["3.9.18", "3.14.0", "2.7.18"])
def test_python_out_of_range(clone: Clone, version: str) -> None:
    clone.python(version=version)
    assert f"3.10 to 3.13 found (python3 is {version})" in failure(clone.setup())
    assert not clone.venv.exists()


@pytest.mark.parametrize("version", ["3.10.0", "3.11.9", "3.12.1", "3.13.0"])
def test_python_in_range_is_taken(clone: Clone, version: str) -> None:
    clone.python(version=version, venv="exit 7")
    assert f"with Python {version}" in clone.setup().stderr


def test_another_python_on_path_is_found(clone: Clone) -> None:
    clone.python(version="3.9.18")
    clone.python("python3.12", version="3.12.4", venv="exit 7")
    assert "with Python 3.12.4" in clone.setup().stderr


def test_chosen_python_is_the_only_candidate(clone: Clone) -> None:
    clone.python(version="3.11.1", venv="exit 7")
    chosen = clone.stub(clone.root.parent / "my python" / "python", "echo 3.8.0")
    sentence = failure(clone.setup(MIMBENCH_PYTHON=str(chosen)))
    assert f"({chosen} is 3.8.0)" in sentence
    sentence = failure(clone.setup(MIMBENCH_PYTHON="/no/such/python"))
    assert "(/no/such/python does not run)" in sentence


def test_python_without_venv(clone: Clone) -> None:
    clone.python(version="3.11.2", lacks="ensurepip")
    sentence = failure(clone.setup())
    assert "python3 (3.11.2) cannot make a virtual environment" in sentence
    assert "sudo apt install python3-venv" in sentence


def test_no_network(clone: Clone) -> None:
    """The real pip, with an index that refuses connections."""
    clone.python()
    sentence = failure(clone.setup())
    assert "the package index cannot be reached" in sentence
    assert not clone.stamped
    # What is there is taken up again, not taken for finished.
    assert "the package index cannot be reached" in failure(clone.setup())


def test_disk_too_small(clone: Clone) -> None:
    clone.python()
    (clone.tools / "df").unlink()
    clone.stub(clone.tools / "df", "echo head; echo /dev/x 9 9 2097152 9% /")
    sentence = failure(clone.setup())
    assert "has 2 GiB free; the environment needs about 8 GiB" in sentence
    assert not clone.venv.exists()


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Disk quota exceeded (os error 122)", "the disk is full"),
        ("dns error: failed to lookup address information", "cannot be reached"),
        ("Temporary failure in name resolution", "cannot be reached"),
        ("invalid peer certificate: UnknownIssuer", "a certificate that is not trusted"),
        (
            "THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE",
            "not the one in the lock",
        ),
        ("something never seen before", "Running ./setup.sh again goes on"),
    ],
)
def test_failed_step_is_explained(clone: Clone, printed: str, expected: str) -> None:
    clone.python(venv=f'echo "{printed}"; exit 1')
    done = clone.setup()
    assert expected in failure(done)
    assert printed in done.stderr
    assert not clone.stamped


def test_nothing_to_do(clone: Clone) -> None:
    clone.make_ready()
    begin = time.perf_counter()
    done = clone.setup()
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("changed", [*LOCKS, "setup.sh"])
def test_changed_lock_is_installed_again(clone: Clone, changed: str) -> None:
    clone.make_ready()
    with (clone.root / changed).open("a") as file:
        file.write("# changed\n")
    done = clone.setup()
    assert "making" in done.stderr
    assert done.returncode == 1
    assert not clone.stamped


def test_missing_package_is_noticed(clone: Clone) -> None:
    clone.make_ready()
    bare = f'exec {PYTHON} -S "$@"'  # without site-packages
    clone.stub(clone.venv / "bin" / "python", f'case "$*" in *pip*) exit 1 ;; esac\n{bare}')
    done = clone.setup(MIMBENCH_PYTHON=str(clone.tools / "python3"))
    assert "making" in done.stderr
    assert not clone.stamped


def test_moved_folder_is_made_anew(clone: Clone) -> None:
    """The scripts in .venv name the folder where it was made."""
    clone.make_ready()
    (clone.venv / ".mimbench-owned").write_text("/somewhere/else\n")
    (clone.venv / ".mimbench-ready").write_text("0\n")
    done = clone.setup()
    assert "removing the old environment" in done.stderr
    assert "made in /somewhere/else" in done.stderr
    assert not (clone.root / ".venv.removed").exists()


def test_linked_environment_is_used_as_it_is(clone: Clone, tmp_path: Path) -> None:
    clone.stub(tmp_path / "shared" / "bin" / "python", f'exec {PYTHON} "$@"')
    clone.venv.symlink_to(tmp_path / "shared")
    done = clone.setup()
    assert done.returncode == 0
    assert f"a link to {tmp_path / 'shared'}" in done.stderr
    assert sorted(p.name for p in (tmp_path / "shared").iterdir()) == ["bin"]


def test_incomplete_linked_environment_is_refused_and_kept(clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "precious").touch()
    clone.venv.symlink_to(tmp_path / "shared")
    assert "was not made by ./setup.sh and does not hold all" in failure(clone.setup())
    assert (tmp_path / "shared" / "precious").exists()


def test_foreign_environment_is_used_if_it_is_complete(clone: Clone) -> None:
    clone.stub(clone.venv / "bin" / "python", f'exec {PYTHON} "$@"')
    done = clone.setup()
    assert done.returncode == 0
    assert "did not make it, so its versions are not checked" in done.stderr
    assert not clone.stamped


def test_incomplete_foreign_environment_is_left_alone(clone: Clone) -> None:
    clone.venv.mkdir()
    (clone.venv / "precious").touch()
    assert "move it away" in failure(clone.setup())
    assert (clone.venv / "precious").exists()


def test_second_set_up_waits_for_the_first(clone: Clone) -> None:
    clone.python(venv="exit 7")
    with (clone.root / ".setup.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [str(clone.tools / "bash"), str(clone.root / "setup.sh")],
            env=clone.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None
        assert "another setup.sh is at work here" in waiting.stderr.readline()
        assert not clone.venv.exists()
    assert waiting.wait(timeout=60) == 1
    assert "making" in waiting.stderr.read()


def test_finished_set_up_leaves_the_command(clone: Clone, tmp_path: Path) -> None:
    """A whole set-up but for the downloads: pip and uv do nothing, and the packages are ours."""
    site = tmp_path / "site packages"
    site.mkdir()
    ours = (
        f'case "$*" in *get_path*) echo "{site}"; exit ;; *pip*) exit ;; '
        f'*" - "*) exec {PYTHON} "$@" ;; esac\nexec {PYTHON} "$@"'
    )
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    uv = next(line.split()[0].removeprefix("uv==") for line in lines if line.startswith("uv=="))
    clone.stub(tmp_path / "template" / "python", ours)
    clone.stub(
        tmp_path / "template" / "uv",
        f'case "$*" in --version) echo "uv {uv}" ;; esac',
    )
    (clone.tools / "cp").symlink_to(str(shutil.which("cp")))
    clone.python(
        venv=f'mkdir -p "{clone.venv}/bin"; cp "{tmp_path}"/template/* "{clone.venv}/bin"; exit'
    )
    (site / "detectron2-0.dist-info").mkdir()
    done = clone.setup()
    assert done.returncode == 0, done.stderr
    assert clone.stamped
    assert (site / "mimbench.pth").read_text() == f"{clone.root}\n"
    command = clone.venv / "bin" / "mimbench"
    shown = subprocess.run(
        [command, "--version"], cwd="/", capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("mimbench 0.")
    command.unlink()
    again = clone.setup()
    assert "nothing to do" not in again.stderr
    assert command.exists()
    assert "nothing to do" in clone.setup().stderr
