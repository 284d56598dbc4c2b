"""How near each solver comes to the flow of a trained network, by evaluations of the network.

    ddpm-jax moments --workdir runs/mnist --flow --config.sampling.clip=none
    python benchmarks/solvers.py --workdir runs/mnist --out benchmarks/solvers \
                                 --config.sampling.flow=runs/mnist/evaluation/flow.npz

All start from the same noise; the truth is Heun with 2 x 400 evaluations on the log-SNR grid. Errors are root mean squares
per pixel of images in [-1, 1]. Nothing is clipped, so that all solve one equation. Writes OUT.json, OUT.md and OUT.png.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
from matplotlib.figure import Figure

import ddpm_jax
from ddpm_jax import build
from ddpm_jax.diffusion.noise import PerImage, image_keys
from ddpm_jax.diffusion.samplers import sample

SOLVERS = {  # name: (solver, grid)
  "DDIM, even steps": ("dpm++1", "uniform"),
  "DDIM": ("dpm++1", "log_snr"),
  "DPM-Solver++ 2M": ("dpm++2m", "log_snr"),
  "DPM-Solver++ 3M": ("dpm++3m", "log_snr"),
  "DPM-Solver++ 2S": ("dpm++2s", "log_snr"),
  "UniPC-2": ("unipc2", "log_snr"),
  "UniPC-3": ("unipc3", "log_snr"),
  "Heun": ("heun", "log_snr"),
  "iPNDM-3": ("ipndm3", "log_snr"),
  "iPNDM-4": ("ipndm4", "log_snr"),
  "DEIS-3": ("deis3", "log_snr"),
  "DEIS-3 (rho)": ("deis3_rho", "log_snr"),
}
OF_FLOW = {  # need ddpm-jax moments --flow
  "DPM-Solver-v3": ("dpm_v3", "log_snr"),
  "DDIM, GITS": ("dpm++1", "gits"),
  "2M, GITS": ("dpm++2m", "gits"),
  "UniPC-3, GITS": ("unipc3", "gits"),
  "iPNDM-3, GITS": ("ipndm3", "gits"),
  "DEIS-3, GITS": ("deis3", "gits"),
  "v3, GITS": ("dpm_v3", "gits"),
}


def images_of(trained, seeds, solver: str, grid: str, steps: int) -> tuple[np.ndarray, int]:
  """(x [B,H,W,C], evaluations of the network)."""
  trained = trained.changed(sampling=dict(solver=solver, grid=grid, steps=steps, clip="none"))
  sampler = build.sampler(trained.config)
  keys = image_keys(np.asarray(seeds, np.uint32))
  denoiser = build.guided(trained.config, trained.network, trained.guide)
  labels = trained.labels(seeds)
  cond = None if labels is None else {"label": np.asarray(labels, np.int32)}
  x = sample(keys, denoiser, sampler, PerImage(keys).initial(trained.image_shape), cond)[0]
  return np.asarray(jax.block_until_ready(x)), len(sampler.steps.left)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--seeds", type=int, default=64, help="images (default %(default)s)")
  parser.add_argument("--steps", default="3,5,8,10,15,20", help="evaluations (default %(default)s)")
  parser.add_argument("--truth", type=int, default=400, help="steps of the reference (default %(default)s)")
  parser.add_argument("--out", required=True, type=pathlib.Path)
  args, overrides = parser.parse_known_args()
  trained = ddpm_jax.load(args.workdir, overrides=[text.removeprefix("--config.") for text in overrides])
  seeds = range(args.seeds)
  T = build.schedule(trained.config).T
  truth, _ = images_of(trained, seeds, "heun", "log_snr", min(args.truth, T))
  wanted = [int(text) for text in args.steps.split(",") if int(text) <= T]
  errors = {}
  chosen = SOLVERS | (OF_FLOW if trained.config.sampling.flow else {})
  for name, (solver, grid) in chosen.items():
    for budget in wanted:
      x, used = images_of(trained, seeds, solver, grid, -(-budget // 2) if solver == "heun" else budget)
      errors.setdefault(name, {})[used] = float(np.sqrt(((x - truth) ** 2).mean()))
    print(name, errors[name], flush=True)

  about = {"images": args.seeds, "weights": trained.weights, "step": trained.step, "errors": errors}
  args.out.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
  lines = ["| solver | " + " | ".join(f"{budget}" for budget in wanted) + " |", "|" + "---|" * (1 + len(wanted))]
  lines += [f"| {name} | " + " | ".join(f"{error:.4f}" for error in row.values()) + " |" for name, row in errors.items()]
  args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
  figure = Figure(figsize=(6, 4.2), layout="constrained")
  axes = figure.subplots()
  for name, row in errors.items():
    axes.loglog(list(row), list(row.values()), "o-", label=name)
  axes.set(xlabel="evaluations of the network", ylabel="RMS error per pixel")
  axes.grid(alpha=0.3, which="both")
  axes.legend(fontsize=8)
  figure.savefig(args.out.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
  main()
