"""Bits/dim by number of steps for every covariance that a network and its heads give.

    ddpm-jax train   --config digits --workdir runs/digits
    ddpm-jax moments --workdir runs/digits --images 1024 --per_pixel
    ddpm-jax train   --config ocm --config.train.backbone=runs/digits --workdir runs/digits_ocm
    python benchmarks/covariances.py --workdir runs/digits --head OCM=runs/digits_ocm --out benchmarks/covariances.json

Each --head NAME=RUN adds a row. All rows use the same test images and the same noise. The file has means and standard errors
over images.
"""

import argparse
import json
import pathlib
import time

import numpy as np

import ddpm_jax

ROWS = {  # name: (covariance, other fields of the sampling section)
  "fixed small": ("posterior", {}),
  "fixed large": ("marginal", {}),
  "Analytic, Gamma": ("optimal", {}),
  "Analytic, residual": ("optimal", dict(residual=True)),
  "per pixel, Gamma": ("optimal_diagonal", {}),
  "per pixel, residual": ("optimal_diagonal", dict(residual=True)),
  "Jacobian, 4 probes, floor 1/3": ("jacobian", dict(residual=True, jacobian=dict(probes=4, floor=1 / 3))),
}
EXACT = {  # one product with the Jacobian per pixel
  "Jacobian, exact, no floor": ("jacobian", dict(residual=True, jacobian=dict(probes=0, floor=0.0))),
  "Jacobian, exact, floor 1/10": ("jacobian", dict(residual=True, jacobian=dict(probes=0, floor=0.1))),
  "Jacobian, exact, floor 1/3": ("jacobian", dict(residual=True, jacobian=dict(probes=0, floor=1 / 3))),
}


def bits(trained, source, K: int, images: int, covariance: str, sampling: dict) -> dict:
  """The bound of K even steps: mean and standard error over the images."""
  began = time.monotonic()
  evaluation = dict(grid="uniform", steps=K, last_row="full_chain", covariance=covariance)
  total = np.asarray(trained.changed(sampling=sampling, evaluation=evaluation).bits_per_dim(source, images).total)
  error = total.std(ddof=1) / len(total) ** 0.5
  return {"mean": float(total.mean()), "standard_error": float(error), "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, help="the network, with moments of each pixel")
  parser.add_argument("--head", action="append", default=[], metavar="NAME=RUN", help="a second head on it")
  parser.add_argument("--steps", default="5,10,25,50", help="numbers of steps (default %(default)s)")
  parser.add_argument("--images", type=int, default=64, help="test images (default %(default)s)")
  parser.add_argument("--exact", action="store_true", help="also the exact diagonal of the Jacobian")
  parser.add_argument("--out", required=True, type=pathlib.Path)
  args = parser.parse_args()
  rows = ROWS | EXACT if args.exact else ROWS
  plain = ddpm_jax.load(args.workdir)
  moments = dict(moments=str(pathlib.Path(args.workdir) / "evaluation" / "moments.npz"))
  runs = [(name, plain, covariance, moments | fields) for name, (covariance, fields) in rows.items()]
  runs += [(name, ddpm_jax.load(path), "optimal", {}) for name, path in (text.split("=", 1) for text in args.head)]
  source = plain.dataset(plain.config.data.test_split)
  table = {}
  for name, trained, covariance, sampling in runs:
    table[name] = {}
    for K in map(int, args.steps.split(",")):
      found = bits(trained, source, K, args.images, covariance, sampling)
      table[name][K] = found
      print(
        f"{name:32} K = {K:3d}  {found['mean']:7.3f} +- {found['standard_error']:.3f}  ({found['seconds']} s)", flush=True
      )
    result = {"step": plain.step, "weights": plain.weights, "images": args.images, "bits_per_dim": table}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
