#!/usr/bin/env bash
# Installs what Sigma needs to build and run: Debian packages by apt, the torch wheel into .venv.
# Idempotent, quiet when nothing is missing, works offline when all is there. Exit 2: something is missing and cannot
# be installed from here (no root and no sudo).
#   SIGMA_CUDA=1   the full torch wheel with NVIDIA's libraries (also chosen when a GPU is present)
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=2.11.0
packages=(
  clang-19 lld-19 libomp-19-dev libclang-rt-19-dev clang-format-19 clang-tidy-19 cmake ninja-build ccache
  python3 python3-venv ca-certificates
  libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libfmt-dev libpng-dev libjpeg62-turbo-dev zlib1g-dev
  libssl-dev libgtest-dev libbenchmark-dev dataset-fashion-mnist
)

missing=()
for package in "${packages[@]}"; do
  [[ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" == "install ok installed" ]] || missing+=("$package")
done
if ((${#missing[@]})); then
  if ((EUID == 0)); then sudo=()
  elif sudo -n true 2>/dev/null; then sudo=(sudo)
  else
    echo "setup: these Debian packages are missing, and without root they cannot be installed:" >&2
    echo "  ${missing[*]}" >&2
    echo "setup: as root, run: apt-get install ${missing[*]}" >&2
    exit 2
  fi
  echo "setup: installing ${missing[*]}" >&2
  log=$(mktemp)
  if ! { "${sudo[@]}" apt-get update -q &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "setup: apt-get failed; the whole log is $log" >&2
    exit 2
  fi
  rm -f "$log"
fi

# The wheel serves as the C++ library. Without a GPU, two small NVIDIA packages are enough to load it.
full=${SIGMA_CUDA:-0}
if [[ -z "${SIGMA_CUDA:-}" ]] && command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then full=1; fi
have=""
[[ -f .venv/sigma-torch ]] && have=$(<.venv/sigma-torch)
want="$torch_version cpu"
if ((full)); then want="$torch_version cuda"; fi
if [[ "$have" != "$want" && ! ("$full" == 0 && "$have" == "$torch_version cuda") ]]; then
  echo "setup: installing torch $torch_version into .venv ($([[ $full == 1 ]] && echo "with" || echo "without") CUDA)" >&2
  [[ -x .venv/bin/pip ]] || /usr/bin/python3 -m venv .venv
  pip=(.venv/bin/pip --disable-pip-version-check install --quiet)
  if ((full)); then "${pip[@]}" "torch==$torch_version" numpy
  else "${pip[@]}" --no-deps "torch==$torch_version" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85; fi
  echo "$want" >.venv/sigma-torch
fi
