#!/usr/bin/env bash
# All checks: ruff, pyright, then the tests, whose summary is the last line. With arguments only
# the tests, the arguments going to pytest: ./run_tests.sh tests/test_files.py -k atomic
# MIMBENCH_TEST_WORKERS=4 ./run_tests.sh runs four tests at a time (default: the number of cores, at most 4).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
./setup.sh

# One thread each: the workers share the cores, and results do not depend on how many there are.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
export MIMBENCH_REQUIRE_ALL=1   # a framework that cannot be imported is a failure, never a skip

problems=""
if [ "$#" -eq 0 ]; then
  .venv/bin/ruff check || problems="ruff check"
  .venv/bin/ruff format --check || problems="${problems:+$problems, }ruff format"
  .venv/bin/pyright || problems="${problems:+$problems, }pyright"
  cores="$(getconf _NPROCESSORS_ONLN)"
  workers="${MIMBENCH_TEST_WORKERS:-$((cores < 4 ? cores : 4))}"
  set -- --numprocesses "$workers" --dist worksteal
fi
status=0
.venv/bin/python -m pytest "$@" || status=$?
if [ -n "$problems" ]; then
  echo "run_tests.sh: problems reported above by: $problems" >&2
  exit 1
fi
exit "$status"
