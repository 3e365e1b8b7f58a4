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
tests() { # BINARY PATTERN...: each pattern matches a test, and all of them pass
  local binary=$1 pattern
  shift
  for pattern in "$@"; do
    "$binary" --gtest_list_tests --gtest_filter="$pattern" | grep '^  ' >/dev/null ||
      { echo "$id: ${binary##*/} has no test $pattern" >&2; exit 1; }
  done
  "$binary" --gtest_filter="$(IFS=:; echo "$*")" --gtest_brief=1
}

id=${1:-}
shift || true
case "$id" in
  R1) python crashes kills "$@" ;;
  R2) python crashes faults ;;
  R3) python crashes resume ;;
  R6)
    seconds=${1:-60}
    names=("$root"/tests/fuzz/*.cpp)
    names=("${names[@]##*/}")
    names=("${names[@]%.cpp}")
    if [[ -n ${2:-} ]]; then
      [[ " ${names[*]} " == *" $2 "* ]] || { echo "R6: no fuzzer $2; there are: ${names[*]}" >&2; exit 2; }
      names=("$2")
    fi
    asan
    found=$root/build-asan/fuzz # grows from call to call
    for name in "${names[@]}"; do
      mkdir -p "$found/$name"
      log=$found/$name.log
      status=0
      "$root/build-asan/fuzz_$name" -max_total_time="$seconds" -timeout=1 -rss_limit_mb=512 -max_len=4096 -print_final_stats=1 \
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
    tests "$root/build-asan/parsers_test" 'Header.*' 'Idx.*' 'Png.*' 'Jpeg.*' 'Provenance.*' 'ImageRecord.*'
    tests "$build/io_test" 'Safetensors.*'
    ;;
  R8) python inputs full_disk ;;
  R9) python inputs bad_images ;;
  R10)
    tests "$build/cli_test" 'Errors.*NonFinite*'
    tests "$build/train_test" 'AdamW.*NonFinite*'
    ;;
  R11) tests "$build/train_test" 'LoadTensors.*' ;;
  R12) python crashes signals "$@" ;;
  R13) python crashes restarts "$@" ;;
  *)
    sed -n '2,/^set/{/^#/p}' "$0" | sed 's/^# \{0,1\}//'
    exit 2
    ;;
esac
