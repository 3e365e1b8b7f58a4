#!/usr/bin/env bash
# clang-tidy with the checks of .clang-tidy: over the torch-free sources (a minute), the files named, or --all (torch's headers
# cost half a minute a file).
set -euo pipefail
cd "$(dirname "$0")/.."
files=("$@")
if [[ "${1:-}" == --all ]]; then mapfile -t files < <(git ls-files 'sigma/*.cpp')
elif ((${#files[@]} == 0)); then
  mapfile -t files < <(grep -o 'sigma/[a-z0-9_/]*\.cpp' cmake/Parsers.cmake; git ls-files 'sigma/*/kernels/*.cpp')
fi
# The precompiled header was made by the compiler for itself, and would bring torch into every file: tidy goes without.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -E 's/-Winvalid-pch//; s/-Xclang -include-pch -Xclang [^ "]+\.pch//; s/-Xclang -include -Xclang [^ "]+cmake_pch\.hxx//; s/-fpch-instantiate-templates//; s/-Xclang -fno-pch-timestamp//' \
  build/compile_commands.json >"$work/compile_commands.json"
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy-19 --quiet -p "$work" 2>/dev/null
