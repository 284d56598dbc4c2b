"""Lists the samplers that --sampler takes, with their usual number of steps.

ddpm-jax samplers
ddpm-jax sample --workdir runs/digits --sampler ddim --steps 50
ddpm-jax sample --workdir runs/digits --sampler my_solvers.py:adams      a solver of your own, see docs/extend.md
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """This command has no flags of its own."""
  del parser


def run(args: argparse.Namespace) -> int:
  del args
  from ddpm_jax import build

  found = build.presets()
  width = max(map(len, found))
  print(f"{'sampler':{width}}  steps  what it is")
  for name, preset in found.items():
    print(f"{name:{width}}  {preset.steps or 'all':>5}  {preset.about}")
  print("\nUse one as --sampler NAME, with --steps K for another number of steps.")
  return 0
