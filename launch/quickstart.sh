#!/usr/bin/env bash
# From a clone to generated digits: creates a virtual environment in .venv, installs, trains a DDPM on scikit-learn's handwritten
# digits, samples and evaluates. Two CPU cores need less than four minutes after the installation.
#   PYTHON=python3.12 bash launch/quickstart.sh [WORKDIR]          default WORKDIR: runs/quickstart
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
workdir=${1:-runs/quickstart}
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install -qq --upgrade pip
"$venv/bin/python" -m pip install -qq --editable .
ddpm() { "$venv/bin/ddpm-jax" "$@"; }

SECONDS=0
ddpm train --config digits --workdir "$workdir"
echo "trained after $SECONDS s"
ddpm sample --workdir "$workdir" --seeds 0-63 --formats grid,strip,gif --out "$workdir/samples" \
  --beside "sampler=ddim steps=50"
echo "sampled after $SECONDS s"
ddpm evaluate --workdir "$workdir" --likelihood 128 --distance 360 | tee "$workdir/summary.txt"

cat <<EOF

Done in $SECONDS s. In $workdir:
  samples/grid.png                64 generated digits, 250 ancestral steps
  samples/denoising.png, .gif     what the network believed about eight of them at each step
  samples/beside.png              the same seeds with 50 DDIM steps beside them
  evaluation/bits_per_dim.png     where the bits of held-out digits go
  evaluation/rate_distortion.png  what a receiver sees for the bits paid
  summary.txt                     the numbers above
Another sampler, with the same network:
  $venv/bin/ddpm-jax sample --workdir $workdir --sampler ddim --steps 20
EOF
