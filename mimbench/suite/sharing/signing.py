"""Signatures with an SSH key, made and checked by `ssh-keygen`: who published a bundle."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mimbench.system.errors import UserError

NAMESPACE = "mimbench-bundle"
"""Keeps a signature of a bundle from being taken for one of anything else."""
SIGNER = "signer"
KEYS = ("ssh-", "ecdsa-", "sk-")


def sign(text: bytes, key: Path) -> bytes:
    """Return the signature of a text; asks for the key's passphrase where it has one.

    Args:
        text: What is signed.
        key: A private SSH key, or the public half of one that an agent holds.
    """
    if not key.is_file():
        raise UserError(f"{key}: no such key; --sign takes an SSH key such as ~/.ssh/id_ed25519")
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "bundle.json"
        file.write_bytes(text)
        done = _keygen(["sign", "-f", str(key), "-n", NAMESPACE, str(file)])
        if done.returncode:
            raise UserError(f"ssh-keygen could not sign with {key}: {_last(done)}")
        return file.with_name("bundle.json.sig").read_bytes()


def signed_by(text: bytes, signature: bytes, signers: Path) -> str:
    """Return the name of who signed a text, if `signers` lists the key.

    Args:
        text: What was signed.
        signature: What `sign` returned.
        signers: A public key, or an `allowed_signers` file (`man ssh-keygen`).
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sig").write_bytes(signature)
        allowed = folder / "allowed"
        allowed.write_text(_allowed(signers), encoding="utf-8")
        common = ["-n", NAMESPACE, "-s", str(folder / "sig"), "-f", str(allowed)]
        found = _keygen(["find-principals", *common])
        who = found.stdout.decode("utf-8", "replace").strip().splitlines()
        if found.returncode or not who:
            raise UserError(f"the signature is of a key that {signers} does not hold")
        done = _keygen(["verify", "-I", who[0], *common], text)
        if done.returncode:
            raise UserError(f"the signature does not belong to this bundle: {_last(done)}")
        return who[0]


def _allowed(signers: Path) -> str:
    try:
        text = signers.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{signers} is not readable: {error}") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return "".join(f"{SIGNER} {line}\n" if line.startswith(KEYS) else f"{line}\n" for line in lines)


def _keygen(arguments: Sequence[str], text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ssh-keygen", "-Y", *arguments], input=text, capture_output=True, check=False
        )
    except OSError as error:
        raise UserError(f"signatures need ssh-keygen (OpenSSH 8.2 or newer): {error}") from error


def _last(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
