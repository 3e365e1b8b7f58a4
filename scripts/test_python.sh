#!/usr/bin/env bash
# Tests torch.ops.sigma from Python (python/test_ops.py). The default set-up has no Python torch that runs, so this
# makes an environment of its own, .venv-python, with the full wheel (4 GB; once).
#   SIGMA_PYTHON=PATH   a Python with torch 2.11 instead
set -euo pipefail
cd "$(dirname "$0")/.."

./test.sh build
python=${SIGMA_PYTHON:-.venv-python/bin/python}
if [[ ! -x "$python" ]]; then
  /usr/bin/python3 -m venv .venv-python
  .venv-python/bin/pip --disable-pip-version-check install --quiet torch==2.11.0 numpy
fi
# The compiler of torch.compile.
export CXX=${CXX:-clang++-19} PYTHONPATH=$PWD/python
"$python" python/test_ops.py "$@"
