#!/usr/bin/env bash
# Make .venv beside this file hold everything that mimbench needs. Safe to run again: with nothing
# to do it returns at once. MIMBENCH_PYTHON=/path/to/python3.12 chooses the Python.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
venv="$root/.venv"
owned="$venv/.mimbench-owned"   # this script made the folder, so it may also rebuild it
ready="$venv/.mimbench-ready"   # digest of what was installed; written last
log="$root/.setup.log"
lock="$root/requirements.lock"
detectron2_lock="$root/requirements-detectron2.lock"
needed_gib=8

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: FAILED: %s\n' "$*" >&2; exit 1; }

# Prints the digest of everything that decides what .venv holds; fails when a package is missing.
# The folder is part of it: a moved environment has scripts that point at the old place.
fingerprint() {
  "$venv/bin/python" -I - "$root" "$lock" "$detectron2_lock" "$root/setup.sh" 2>/dev/null <<'PY'
import hashlib, importlib.util, pathlib, sys
names = "torch torchvision timm detectron2 mmengine mmcv mmseg faiss pycocotools pytest".split()
missing = [name for name in names if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"missing: {missing}")
digest = hashlib.sha256(f"{sys.version}\n{sys.argv[1]}\n".encode())
for path in sys.argv[2:]:
    digest.update(hashlib.sha256(pathlib.Path(path).read_bytes()).digest())
print(digest.hexdigest())
PY
}

is_ready() {
  [ -f "$ready" ] && [ -x "$venv/bin/python" ] && [ -x "$venv/bin/mimbench" ] && [ "$(fingerprint)" = "$(cat "$ready")" ]
}

python_version() { "$1" -I -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
in_range() { case "$1" in 3.10.* | 3.11.* | 3.12.* | 3.13.*) true ;; *) false ;; esac; }
has_venv() { "$1" -I -c 'import ensurepip, venv' 2>/dev/null; }

# Sets `python`: MIMBENCH_PYTHON if given, else the first usable one of: the Python that .venv was
# made with, python3, python3.13 ... python3.10.
choose_python() {
  local name version seen="" bare=""
  local candidates=(python3 python3.13 python3.12 python3.11 python3.10)
  if [ -n "${MIMBENCH_PYTHON:-}" ]; then
    candidates=("$MIMBENCH_PYTHON")
  elif [ -x "$venv/bin/python" ]; then
    name="$("$venv/bin/python" -I -c 'import sys; print(sys._base_executable)' 2>/dev/null || true)"
    candidates=(${name:+"$name"} "${candidates[@]}")
  fi
  for name in "${candidates[@]}"; do
    version="$(python_version "$name" || true)"
    if [ -n "$version" ] && in_range "$version"; then
      if has_venv "$name"; then python="$name"; return; fi
      bare="${bare:-$name ($version)}"
    elif [ -n "$version" ]; then
      seen="${seen:+$seen, }$name is $version"
    fi
  done
  if [ -n "$bare" ]; then
    fail "$bare cannot make a virtual environment: its modules venv and ensurepip are missing." \
      "On Debian or Ubuntu: sudo apt install python3-venv; or name another one:" \
      "MIMBENCH_PYTHON=/path/to/python3.12 ./setup.sh"
  fi
  fail "no Python from 3.10 to 3.13 found (${seen:-${candidates[0]} does not run})." \
    "Install one of them, or name it: MIMBENCH_PYTHON=/path/to/python3.12 ./setup.sh"
}

free_gib() { df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }'; }

# Downloads are unpacked in uv's cache and linked into .venv, so one of the two must not be full.
check_space() {
  local free cache
  free="$(free_gib "$root")"
  if [ "$free" -lt "$needed_gib" ]; then
    fail "the disk that holds $root has $free GiB free; the environment needs about" \
      "$needed_gib GiB. Free some space, or clone the repository onto a larger disk."
  fi
  cache="${XDG_CACHE_HOME:-${HOME:-/}/.cache}"
  if [ -z "${UV_CACHE_DIR:-}" ] && { [ ! -d "$cache" ] || [ "$(free_gib "$cache")" -lt "$needed_gib" ]; }; then
    export UV_CACHE_DIR="$venv/.uv-cache"
    say "little room under $cache: downloads go through $UV_CACHE_DIR and are deleted afterwards"
  fi
}

# Runs a command, its output to the terminal and the log; on failure says what a person can do.
logged() {
  if ! "$@" 2>&1 | tee -a "$log" >&2; then explain; fi
}

explain() {
  if grep -qiE 'no space left|disk quota exceeded|errno 28' "$log"; then
    fail "the disk is full. Free about $needed_gib GiB under $root (and in uv's cache, usually" \
      "~/.cache/uv; UV_CACHE_DIR=/larger/disk moves it), then run ./setup.sh again. Log: $log"
  elif grep -qiE 'certificate|tlsv1|ssl.?error' "$log"; then
    fail "the package index answered with a certificate that is not trusted. Behind a proxy, set" \
      "SSL_CERT_FILE and PIP_CERT to its certificate, then run ./setup.sh again. Log: $log"
  elif grep -qiE 'name resolution|resolve host|dns error|new connection|connect(ion)? (error|refused|timed out)|could not connect|network is unreachable|error sending request|failed to fetch|proxy|timed out' "$log"; then
    fail "the package index cannot be reached: no network, or a proxy is needed (HTTPS_PROXY) or" \
      "a mirror (UV_DEFAULT_INDEX and PIP_INDEX_URL). Then run ./setup.sh again. Log: $log"
  elif grep -qiE 'hash mismatch|do not match the hashes' "$log"; then
    fail "a downloaded file is not the one in the lock file, so nothing of it was installed. Clear" \
      "the caches ($venv/bin/uv cache clean) or leave the mirror, then run ./setup.sh again. Log: $log"
  fi
  fail "an installation step did not work; its last lines are above, all of them in $log." \
    "Running ./setup.sh again goes on where this one stopped."
}

# One set-up at a time. The lock belongs to the open file, so it ends with this shell however it
# ends; Python takes it because `flock` is not everywhere.
take_lock() {
  exec 9>"$root/.setup.lock"
  "$python" -I - <<'PY' || true
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("setup: another setup.sh is at work here; waiting for it", file=sys.stderr, flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError as error:
    print(f"setup: this disk cannot lock files ({error}); going on without", file=sys.stderr)
PY
}

# Leaves a .venv with a working Python and pip in it.
make_venv() {
  local wanted present
  wanted="$(python_version "$python")"
  present="$(python_version "$venv/bin/python" || true)"
  # A changed lock is installed over what is there; another Python or folder needs a new start.
  if [ -e "$venv" ] && { [ "$present" != "$wanted" ] || [ "$(cat "$owned")" != "$root" ]; }; then
    say "removing the old environment (Python ${present:-unknown}, made in $(cat "$owned"))"
    rm -rf "$venv.removed"
    mv "$venv" "$venv.removed"
    rm -rf "$venv.removed"
  fi
  rm -f "$ready"
  if [ ! -e "$venv" ]; then check_space; fi
  mkdir -p "$venv"
  printf '%s\n' "$root" >"$owned"
  if ! "$venv/bin/python" -I -m pip --version >/dev/null 2>&1; then
    say "making $venv with Python $wanted"
    logged "$python" -m venv "$venv"
  fi
}

# uv comes from the package index into .venv, at the version and hash that the lock names.
install_uv() {
  local pinned="$venv/.uv.lock"
  awk '/^uv==/ { on = 1 } on { print } on && !/\\$/ { exit }' "$lock" >"$pinned"
  if [ "uv==$("$venv/bin/uv" --version 2>/dev/null | awk '{ print $2 }')" = "$(awk 'NR == 1 { print $1 }' "$pinned")" ]; then
    return
  fi
  say "installing $(awk 'NR == 1 { print $1 }' "$pinned")"
  logged "$venv/bin/python" -I -m pip install --quiet --disable-pip-version-check --retries 2 \
    --require-hashes --no-deps --only-binary uv --requirement "$pinned"
}

install_packages() {
  local site
  say "installing the locked packages (about 7 GB on disk; minutes when they must be downloaded)"
  logged "$venv/bin/uv" pip install --python "$venv/bin/python" --require-hashes \
    --build-constraints "$lock" --requirement "$lock"
  site="$("$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  if ls "$site" | grep -qiE '^(__editable__.*)?detectron2-.*(dist-info|pth)$|^detectron2\.egg-link$'; then
    say "keeping the detectron2 build that is already installed"
  else
    say "installing detectron2"
    logged "$venv/bin/uv" pip install --require-hashes --no-deps --python "$venv/bin/python" \
      --python-version 3.10 --python-platform x86_64-manylinux_2_28 \
      --target "$site" --requirement "$detectron2_lock"
  fi
  printf '%s\n' "$root" >"$site/mimbench.pth"
}

# The command `mimbench`. It and the path entry above stand in for an editable build, which would
# need the network. The first two lines are shell and Python at once: a `#!` line cannot name a
# path with blanks.
install_command() {
  "$venv/bin/python" -I - "$venv/bin" <<'PY'
import pathlib, shlex, sys
folder = pathlib.Path(sys.argv[1])
python = shlex.quote(str(folder / "python"))
script = folder / "mimbench"
script.write_text(f"""#!/bin/sh
'''exec' {python} "$0" "$@"
' '''
import sys
from mimbench.__main__ import main
sys.exit(main())
""")
script.chmod(0o755)
PY
}

# An environment that this script did not make is used, never changed.
use_foreign() {
  local what="$venv"
  if [ -L "$venv" ]; then what="$venv (a link to $(readlink "$venv"))"; fi
  if ! fingerprint >/dev/null; then
    fail "$what was not made by ./setup.sh and does not hold all that mimbench needs. Complete it" \
      "from requirements.lock, or move it away (mv '$venv' '$venv.old') and run ./setup.sh again."
  fi
  say "using $what as it is: ./setup.sh did not make it, so its versions are not checked"
}

is_foreign() { [ -L "$venv" ] || { [ ! -e "$owned" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; }; }

main() {
  if is_foreign; then use_foreign; return; fi
  if [ -z "${MIMBENCH_PYTHON:-}" ] && is_ready; then say "nothing to do: $venv is ready"; return; fi
  [ -w "$root" ] || fail "$root cannot be written to, and .venv belongs there. Clone the repository" \
    "into a folder of your own and run ./setup.sh there."
  choose_python
  take_lock
  if is_ready && [ "$(python_version "$venv/bin/python")" = "$(python_version "$python")" ]; then
    say "nothing to do: $venv is ready"
    return
  fi
  : >"$log"
  make_venv
  install_uv
  install_packages
  install_command
  rm -rf "$venv/.uv-cache"
  fingerprint >"$ready.part" || fail "the packages are installed but not all of them are found; see $log"
  mv "$ready.part" "$ready"
  say "ready: $venv ($("$venv/bin/python" -V)). Next: ./run_all.sh --demo"
}

main
