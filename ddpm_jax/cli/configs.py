"""Lists the configs that come with the package, with one line each.

ddpm-jax configs
ddpm-jax train --config digits --workdir runs/digits
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """This command has no flags of its own."""
  del parser


def run(args: argparse.Namespace) -> int:
  del args
  from ddpm_jax import config

  found = {name: config.about(path) for name, path in config.available().items()}
  width = max(map(len, found))
  for name, line in found.items():
    print(f"{name:{width}}  {line}")
  print("\nUse one as --config NAME, or NAME:smoke for a run of seconds. A path to a .py file works too.")
  return 0
