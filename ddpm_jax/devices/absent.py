"""Devices that this machine does not have, for compiling ahead of time: TPU slices and NVIDIA GPUs.

The compilers come with `jax[tpu]` and `jax[cuda12]` and need neither a device nor a driver.
"""

import os
import re
import warnings

import jax
import numpy as np
from jax.experimental import topologies

from ddpm_jax.devices.chips import GPUS, Gpu
from ddpm_jax.errors import UserError

# With these, libtpu does not look for the slice of this machine, does not warn that there is none, and takes no lock.
_NOWHERE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_LOG_DIR": "disabled",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(topology: str) -> list[jax.Device]:
  """The devices of a TPU slice such as "v5e:4x4", or of GPUs, "h100:8" on one host or "h100:4x8" on 4 hosts of 8.

  Raises:
    UserError: without the compiler, or for a slice that does not exist.
  """
  name, _, shape = topology.partition(":")
  for gpu in GPUS:
    if gpu.name == name:
      return _gpus(gpu, topology, shape)
  return _tpus(topology, shape)


def _gpus(gpu: Gpu, topology: str, shape: str) -> list[jax.Device]:
  match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", shape)
  if match is None:
    raise UserError(f"{topology} is not a number of GPUs: write {gpu.name}:8, or {gpu.name}:4x8 for 4 hosts of 8.")
  hosts = int(match[1] or 1)
  per_host = int(match[2])
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      description = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=gpu.target_config(), topology=f"1x{hosts}x{per_host}"
      )
  except Exception as error:
    why = str(error).strip().splitlines()[0][:120]
    raise UserError(
      f"Planning for {topology} needs the compiler for NVIDIA GPUs: pip install 'ddpm_jax[cuda]'. It needs no GPU. ({why})"
    ) from None
  return list(description.devices)


def _tpus(topology: str, shape: str) -> list[jax.Device]:
  for variable, value in _NOWHERE.items():
    os.environ.setdefault(variable, value)
  chips = [int(n) for n in shape.split("x") if n.isdigit()]
  one_host = {"chips_per_host_bounds": [*chips, 1][:3]} if np.prod(chips) == 1 else {}
  try:
    return list(topologies.get_topology_desc(topology, "tpu", **one_host).devices)
  except Exception as error:
    why = str(error).strip().splitlines()[0]
    if "not installed" in why:
      raise UserError(
        f"Planning for {topology} needs libtpu, the TPU's compiler: pip install 'ddpm_jax[tpu]'. It needs no TPU."
      ) from None
    raise UserError(
      f"{topology} is not a TPU slice or a number of GPUs ({why}): write v5e:4x4, v5p:2x2x4, v6e:8x8, h100:8 or h100:4x8."
    ) from None
