#!/usr/bin/env bash
# clang-tidy with the checks of .clang-tidy over the library's sources (a few minutes on two cores), or over the files named.
set -euo pipefail
cd "$(dirname "$0")/.."
files=("$@")
if ((${#files[@]} == 0)); then mapfile -t files < <(git ls-files 'sigma/*.cpp'); fi
# The precompiled header was made by the compiler for itself: tidy reads the plain header instead.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -E 's/-Winvalid-pch//; s/-Xclang -include-pch -Xclang [^ "]+\.pch//; s/-fpch-instantiate-templates//; s/-Xclang -fno-pch-timestamp//' \
  build/compile_commands.json >"$work/compile_commands.json"
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy-19 --quiet -p "$work" 2>/dev/null
