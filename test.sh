#!/usr/bin/env bash
# Sets up, builds, and runs the tests.
#   ./test.sh            everything but the tests labelled ablation or gate
#   ./test.sh build      builds only
#   ./test.sh NAME       the tests whose name contains NAME: golden, io, train, ...
# SIGMA_CUDA=1: builds for NVIDIA GPUs too (build-cuda; needs nvcc).
set -euo pipefail
cd "$(dirname "$0")"

scripts/setup.sh
preset=release
folder=build
if [[ "${SIGMA_CUDA:-0}" == 1 ]]; then
  preset=cuda
  folder=build-cuda
fi
# Quiet when nothing is to be done; the whole story when something fails.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [[ ! -f $folder/build.ninja ]]; then
  cmake --preset "$preset" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
fi
ninja -C "$folder" >"$log" 2>&1 || { grep -v '^\[' "$log" >&2; exit 1; }

case "${1:-}" in
  build) ;;
  "") ctest --test-dir "$folder" --output-on-failure -LE "ablation|gate" ;;
  *) ctest --test-dir "$folder" --output-on-failure -R "$1" ;;
esac
