#!/usr/bin/env bash
# Set up, then run every benchmark for each checkpoint: ./run_all.sh --demo, ./run_all.sh ckpt.pth
# It stays in the caller's folder, so relative paths mean what they mean there.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
"$root/setup.sh"

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1   # from 3.11 on: no module of the caller's folder hides one of ours
exec "$root/.venv/bin/python" -m mimbench run "$@"
