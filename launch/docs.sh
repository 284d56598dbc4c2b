#!/usr/bin/env bash
# Builds the documentation into build/docs from a bare clone, in its own virtual environment, .venv-docs. Warnings are errors:
# a broken link, an unknown name, a docstring that does not parse.
#   bash launch/docs.sh            bash launch/docs.sh serve      (reloads while you write)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv-docs}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
# Only the tools: docstrings are read, nothing of the package is imported.
"$venv/bin/python" -m pip install -qq "mkdocs>=1.6,<2" "mkdocstrings[python]>=0.30" "ruff>=0.9"
exec "$venv/bin/python" -m mkdocs "${@:-build}" --strict
