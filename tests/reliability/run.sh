#!/usr/bin/env bash
# The full reliability tests of one process; docs/reliability.md has the table. Needs a build (./test.sh build).
#   tests/reliability/run.sh R1 [KILLS] [SEED]  kill -9 at random moments
#   tests/reliability/run.sh R2                 every write, fsync, rename, close of a save fails (needs strace)
#   tests/reliability/run.sh R3                 exact resume
#   tests/reliability/run.sh R6 [SECONDS] [NAME]   fuzzers, SECONDS each (build-asan, made here)
#   tests/reliability/run.sh R7                 negative corpora of file formats
#   tests/reliability/run.sh R8                 full disk (needs root: mounts 8 MB of tmpfs)
#   tests/reliability/run.sh R9                 bad images
#   tests/reliability/run.sh R10                NaN in the loss
#   tests/reliability/run.sh R11                tensors that do not fit
#   tests/reliability/run.sh R12 [SIGNALS]      SIGINT, SIGTERM, second signals
#   tests/reliability/run.sh R13 [STEPS] [RESTARTS]   many steps and restarts
# SIGMA_BUILD: the folder of the build (default build).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/${SIGMA_BUILD:-build}
export PYTHONDONTWRITEBYTECODE=1

python() { # MODULE FUNCTION ARGUMENTS
  local module=$1 function=$2
  shift 2
  cd "$root/tests/reliability"
  python3 -c "import sys, $module; $module.$function(*map(int, sys.argv[1:]))" "$@"
}
asan() {
  [[ -f $root/build-asan/build.ninja ]] || (cd "$root" && cmake --preset asan >/dev/null)
  ninja -C "$root/build-asan" >/dev/null
}

id=${1:-}
shift || true
case "$id" in
  R1) python crashes kills "$@" ;;
  R2) python crashes faults ;;
  R3) python crashes resume ;;
  R6)
    asan
    seconds=${1:-60}
    found=$root/build-asan/fuzz # grows from call to call
    for binary in "$root"/build-asan/fuzz_*${2:-}; do
      [[ -x $binary && ! -d $binary ]] || continue
      name=${binary##*/fuzz_}
      mkdir -p "$found/$name"
      log=$found/$name.log
      status=0
      "$binary" -max_total_time="$seconds" -timeout=1 -rss_limit_mb=512 -max_len=4096 -print_final_stats=1 \
        -artifact_prefix="$found/$name-" "$found/$name" "$root/tests/fuzz/corpus/$name" >"$log" 2>&1 || status=$?
      echo "R6: $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs," \
        "$(sed -n 's/^stat::peak_rss_mb: *//p' "$log") MB, slowest $(sed -n 's/^stat::slowest_unit_time_sec: *//p' "$log") s," \
        "exit $status"
      if ((status)); then
        tail -n 40 "$log" >&2
        exit 1
      fi
    done
    ;;
  R7)
    asan
    "$root/build-asan/parsers_test" --gtest_filter='Header.*:Idx.*:Png.*:Jpeg.*:Provenance.*' --gtest_brief=1
    "$build/io_test" --gtest_filter='Safetensors.*' --gtest_brief=1
    ;;
  R8) python inputs full_disk ;;
  R9) python inputs bad_images ;;
  R10)
    "$build/cli_test" --gtest_filter='*NonFinite*' --gtest_brief=1
    "$build/train_test" --gtest_filter='*NonFinite*' --gtest_brief=1
    ;;
  R11) "$build/train_test" --gtest_filter='LoadTensors.*' --gtest_brief=1 ;;
  R12) python crashes signals "$@" ;;
  R13) python crashes restarts "$@" ;;
  *)
    sed -n '2,/^set/{/^#/p}' "$0" | sed 's/^# \{0,1\}//'
    exit 2
    ;;
esac
