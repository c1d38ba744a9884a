#!/usr/bin/env bash
# The README's two commands, on nothing but a clone: an empty home, no environment of the caller's
# but PATH and what package installers need, no cache, no .venv. Takes the install and a demo (15
# to 25 minutes) and 8 GB; the folder is kept when something fails.
#   tests/support/clean_clone.sh [FOLDER]     FOLDER must be empty or absent; default: a new one in $TMPDIR
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
place="${1:-$(mktemp -d)}"
mkdir -p "$place"
place="$(cd "$place" && pwd -P)"
[ -z "$(ls -A "$place")" ] || { echo "$place is not empty" >&2; exit 2; }
mkdir "$place/home" "$place/tmp"
git clone --quiet "$root" "$place/mimbench"

kept=()
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE PIP_CERT UV_INDEX_URL UV_DEFAULT_INDEX \
  UV_CONFIG_FILE HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy SSL_CERT_FILE \
  REQUESTS_CA_BUNDLE MIMBENCH_PYTHON; do
  if [ -n "${!name:-}" ]; then kept+=("$name=${!name}"); fi
done

# the commands are read from the README, so that it is the README that is tested
mapfile -t commands < <(sed -n '/^```$/,/^```$/p' "$root/README.md" | grep '^\./run_' | sed 's/ *#.*//' | head -n 2)
[ "${#commands[@]}" -eq 2 ] || { echo "README.md does not begin with two commands" >&2; exit 1; }
cd "$place/mimbench"
for command in "${commands[@]}"; do
  echo "== $command" >&2
  began=$SECONDS
  env -i HOME="$place/home" TMPDIR="$place/tmp" PATH="$PATH" LANG=C.UTF-8 "${kept[@]}" bash -c "$command"
  echo "== $command: done in $((SECONDS - began)) s" >&2
done
rm -rf "$place"
