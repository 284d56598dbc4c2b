#!/usr/bin/env bash
# Runs the notebooks from top to bottom and stores their outputs. Each begins by installing the package where it is missing,
# so that in a fresh environment this is what Colab does. Prints the seconds that each took. Progress bars are not stored.
#   bash launch/colab/run.sh                  all of them, in a new environment, .venv-notebooks
#   VENV=.venv bash launch/colab/run.sh 1_tour.ipynb
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
venv=${VENV:-../../.venv-notebooks}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install -qq nbconvert ipykernel
for notebook in "${@:-$(echo [1-9]_*.ipynb)}"; do
  for name in $notebook; do
    SECONDS=0
    TQDM_DISABLE=1 "$venv/bin/python" -m nbconvert --log-level=WARN --to notebook --execute --inplace "$name" \
      --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.record_timing=False \
      --NotebookExporter.preprocessors=nbconvert.preprocessors.CoalesceStreamsPreprocessor
    echo "$name: $SECONDS s"
  done
done
