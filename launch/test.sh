#!/usr/bin/env bash
# Runs the tests from a clone: creates a virtual environment in .venv-test, installs, runs ruff and pytest.
#   PYTHON=python3.12 bash launch/test.sh        another interpreter
#   EXTRA_PACKAGES="torch safetensors" bash launch/test.sh -m torch      only the tests that need PyTorch
#   bash launch/test.sh tests/exact -k samplers  arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv-test}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install -qq --upgrade pip
# shellcheck disable=SC2086  # a list of packages
[ -z "${EXTRA_PACKAGES:-}" ] || "$venv/bin/python" -m pip install -qq $EXTRA_PACKAGES
"$venv/bin/python" -m pip install -qq --editable '.[dev]'
"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
exec env JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" "$venv/bin/python" -m pytest -n "${WORKERS:-auto}" "$@"
