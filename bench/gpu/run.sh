#!/usr/bin/env bash
# The prepared run: parts in order of importance, each bounded in time, each written at once.
#
#   bench/gpu/run.sh [--minutes 9] [--parts tests,pretrain,...] [--out FOLDER] [--rehearse]
#
# WHEELS names the folder that pack.sh filled (default: wheels/); without it, what is installed is
# used. --rehearse runs every part small, on a CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python="${MIMBENCH_PYTHON:-python3}"
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
wheels="${WHEELS:-wheels}"
if ls "$wheels"/*.whl >/dev/null 2>&1; then
  site="$(mktemp -d)/site"
  # detectron2's wheel is tagged for 3.10; its Python runs unchanged, so it is unpacked past the tag
  for wheel in "$wheels"/sal_detectron2-*.whl; do
    "$python" -m zipfile -e "$wheel" "$site"
  done
  find "$wheels" -name '*.whl' ! -name 'sal_detectron2-*' -print0 |
    xargs -0 "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
      --upgrade --target "$site"
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1
exec "$python" -m bench.gpu "$@"
