#!/usr/bin/env bash
# Downloads what a GPU machine without a package index lacks, as wheels for Python 3.12.
#
#   bench/gpu/pack.sh [FOLDER]          default: wheels/ ; copy it and this repository to the machine
#
# The machine is expected to have torch 2.11, torchvision, timm, scikit-learn, matplotlib and pytest.
# faiss-gpu is left out where it would not fit the limit; run.sh then skips that part by name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder="${1:-wheels}"
limit_mib="${MIMBENCH_PACK_MIB:-60}"
python="${MIMBENCH_PYTHON:-python3}"
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
mkdir -p "$folder"

# Prints NAME==VERSION of a package as the lock files have it.
locked() { awk -v name="$1" -F'[= ;\\\\]+' 'tolower($1) == name { print $1 "==" $2; exit }' \
  requirements.lock requirements-detectron2.lock; }

fetch() {
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$1" \
    --implementation cp "${platforms[@]}" --dest "$folder" "$2"
}

# A pure-Python package that is published as source only: built here, once.
build() { "$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$1"; }

size_mib() { du -sm "$folder" | cut -f1; }

for name in fvcore iopath yacs portalocker omegaconf antlr4-python3-runtime hydra-core pycocotools \
  faster-coco-eval termcolor ftfy onedl-mmengine onedl-mmcv onedl-mmsegmentation addict yapf \
  beartype prettytable platformdirs wcwidth; do
  wanted="$(locked "$name")"
  if [ -z "$wanted" ]; then echo "pack.sh: '$name' is in no lock file" >&2; exit 1; fi
  fetch 3.12 "$wanted" 2>/dev/null || build "$wanted"
done
# its compiled part is for another Python and is not used
fetch 3.10 "$(locked sal-detectron2)"

faiss="$(locked faiss-gpu)"
part="$(mktemp -d)"
trap 'rm -rf "$part"' EXIT
if "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp "${platforms[@]}" --dest "$part" "$faiss" 2>/dev/null &&
  [ $(($(size_mib) + $(du -sm "$part" | cut -f1))) -le "$limit_mib" ]; then
  mv "$part"/*.whl "$folder"/
else
  echo "pack.sh: $faiss does not fit $limit_mib MiB; run.sh skips what needs it" >&2
fi
if [ "$(size_mib)" -gt "$limit_mib" ]; then
  echo "pack.sh: $folder is $(size_mib) MiB, the limit is $limit_mib (MIMBENCH_PACK_MIB)" >&2
  exit 1
fi
echo "pack.sh: $(ls "$folder" | wc -l) wheels, $(size_mib) MiB in $folder"
