#!/usr/bin/env bash
# Sets up, builds, and runs the main job: a one-step generator of Fashion-MNIST images, trained on this machine.
#   ./quickstart.sh         trains inductive moment matching; writes runs/quickstart/samples.png and a table
#   ./quickstart.sh flow    trains flow matching for the same seconds and adds its rows
# Repeating a command resumes it, or says that it is done. SIGMA_QUICK=1: the same commands in under 90 s (run quick).
set -euo pipefail
cd "$(dirname "$0")"

what=${1:-imm}
case "$what" in
  imm | flow) ;;
  *)
    echo "quickstart: expected nothing or flow, got $what" >&2
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

build/sigma train "recipes/fashion/$name.toml" --run "runs/$name"
build/sigma sample "runs/$name" --steps 1 --guidance 1.5 -o "runs/$name/samples.png"
echo "Inductive moment matching:"
build/sigma eval "runs/$name" --steps 1,2,4 --guidance 1.5 --count "$count"

if [[ "$what" == flow ]]; then
  build/sigma train "recipes/fashion/$name-flow.toml" --run "runs/$name-flow"
  build/sigma sample "runs/$name-flow" --steps 32 --guidance 1.5 -o "runs/$name-flow/samples.png"
  echo "Flow matching, trained for about the same time:"
  build/sigma eval "runs/$name-flow" --steps 1,2,4,8,32 --guidance 1.5 --count "$count"
fi
echo "samples: runs/$name/samples.png"
