"""Several commands of ddpm-jax in one of several processes, which meet once: commands.py JSON, a list of argument lists."""

import argparse
import json
import sys

from ddpm_jax.cli import environment, main

alone = argparse.Namespace(coordinator=None, processes=None, process=None, wait=300.0)
environment.prepare(alone)
environment.prepare = lambda args, **options: None
for command in json.loads(sys.argv[1]):
  if code := main.run(command):
    sys.exit(code)
