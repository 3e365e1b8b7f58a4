#!/usr/bin/env bash
# Sets up, builds, and runs the main job: a one-step generator of Fashion-MNIST images, trained on this machine.
#   ./quickstart.sh         trains inductive moment matching; writes runs/quickstart/samples.png and a table
#   ./quickstart.sh flow    trains flow matching for the same seconds and adds its rows
#   ./quickstart.sh maetok  trains a tokenizer in two stages, then the generator on its latents, and measures both
# Repeating a command resumes it, or says that it is done. SIGMA_QUICK=1: the same commands in under 90 s (run quick).
set -euo pipefail
cd "$(dirname "$0")"

what=${1:-imm}
case "$what" in
  imm | flow | maetok) ;;
  *)
    echo "quickstart: expected nothing, flow or maetok, got $what" >&2
    exit 2
    ;;
esac
./test.sh build

name=quickstart
count=5000
if [[ "${SIGMA_QUICK:-0}" == 1 ]]; then
  name=quick
  count=1000
fi

if [[ "$what" == maetok ]]; then
  prefix=""
  short=()
  if [[ "${SIGMA_QUICK:-0}" == 1 ]]; then
    prefix=quick-
    short=(--set train.images=6400)
  fi
  runs=runs/$prefix
  build/sigma train recipes/fashion/maetok.toml --run "${runs}maetok" "${short[@]}"
  build/sigma train recipes/fashion/maetok-decoder.toml --run "${runs}maetok-decoder" "${short[@]}" \
    --set "train.start_from=${runs}maetok"
  echo "MAETok, its decoder trained on:"
  build/sigma eval "${runs}maetok-decoder" --count "$count"
  build/sigma train recipes/fashion/maetok-imm.toml --run "${runs}maetok-imm" "${short[@]}" \
    --set "generator.tokenizer=${runs}maetok-decoder"
  build/sigma sample "${runs}maetok-imm" --steps 1 --guidance 1.5 -o "${runs}maetok-imm/samples.png" -f
  echo "Inductive moment matching on its latents:"
  build/sigma eval "${runs}maetok-imm" --steps 1,2,4 --guidance 1.5 --count "$count"
  echo "samples: ${runs}maetok-imm/samples.png"
  exit 0
fi

build/sigma train "recipes/fashion/$name.toml" --run "runs/$name"
build/sigma sample "runs/$name" --steps 1 --guidance 1.5 -o "runs/$name/samples.png" -f
echo "Inductive moment matching:"
build/sigma eval "runs/$name" --steps 1,2,4 --guidance 1.5 --count "$count"

if [[ "$what" == flow ]]; then
  build/sigma train "recipes/fashion/$name-flow.toml" --run "runs/$name-flow"
  build/sigma sample "runs/$name-flow" --steps 32 --guidance 1.5 -o "runs/$name-flow/samples.png" -f
  echo "Flow matching, trained for about the same time:"
  build/sigma eval "runs/$name-flow" --steps 1,2,4,8,32 --guidance 1.5 --count "$count"
fi
echo "samples: runs/$name/samples.png"
