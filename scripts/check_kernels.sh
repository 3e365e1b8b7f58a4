#!/usr/bin/env bash
# Compiles every CUDA file that stands without torch, for the least GPU it is for (*_hopper*: sm_90a; all others: sm_80),
# and fails on an error, a warning, a spill or a stack frame. No GPU needed; without nvcc it says so and passes.
set -euo pipefail
cd "$(dirname "$0")/.."
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
if [[ ! -x $nvcc ]]; then
  echo "kernels: no nvcc here, skipped"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() {  # nvcc, file, architecture, folder for what is made
  local log
  log="$4/$(basename "$2").$3.txt"
  if ! "$1" -std=c++17 -O3 -I. -gencode "arch=compute_$3,code=sm_$3" -Xptxas -v -Xcompiler -Wall -c "$2" -o "$log.o" >"$log" 2>&1; then
    cat "$log"
    echo "FAIL $2 sm_$3: does not compile"
    return 1
  fi
  # A line of properties belongs to the kernel named above it.
  awk -v file="$2" -v arch="$3" '
    /Compiling entry function|Function properties for/ { match($0, /_Z[A-Za-z0-9_]+/); name = substr($0, RSTART, RLENGTH) }
    /warning|Warning/ { print "FAIL " file " sm_" arch ": " $0; bad = 1 }
    /bytes stack frame/ && !/ 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/ {
      print "FAIL " file " sm_" arch ": " name ": " $0; bad = 1 }
    /Used [0-9]+ registers/ { kernels++; match($0, /Used [0-9]+/); n = substr($0, RSTART + 5, RLENGTH - 5); if (n + 0 > most) most = n + 0 }
    END { if (!bad) print "ok   " file " sm_" arch ": " kernels + 0 " kernels, at most " most + 0 " registers"; exit bad }' "$log"
}
export -f check

for file in $(git ls-files --cached --others --exclude-standard 'sigma/**/*.cu'); do
  if grep -qE '#include *[<"](torch|ATen|c10)/' "$file"; then continue; fi
  if [[ $file == *_hopper* ]]; then arch=90a; else arch=80; fi
  printf "%s %s\n" "$file" "$arch"
done | xargs -P "$(nproc)" -L 1 bash -c 'check "$0" "$2" "$3" "$1"' "$nvcc" "$work" || bad=1
exit "${bad:-0}"
