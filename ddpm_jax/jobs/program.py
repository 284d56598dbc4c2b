"""Exports a sampler as one program from seeds and labels to pixels, in a file that runs with JAX alone.

The file is written by `jax.export`: StableHLO for every platform, with the weights inside. Steps, image size, and
guidance are fixed; the number of images is not. JAX reads such files for at least six months after the release that wrote
them, and a release up to three weeks older than the one that wrote them reads them too (JAX's export documentation).
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ddpm_jax import __version__, build
from ddpm_jax.config import nearest
from ddpm_jax.data import images as pixels
from ddpm_jax.devices import mesh
from ddpm_jax.diffusion.noise import PerImage, image_keys
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.errors import UserError
from ddpm_jax.files.atomic import writing
from ddpm_jax.files.tables import as_json
from ddpm_jax.jobs.trained import Trained

PLATFORMS = ("cpu", "cuda", "tpu")


def program(trained: Trained, platforms: Sequence[str] = PLATFORMS) -> export.Exported:
  """The whole sampler of config.sampling: (seeds uint32 [B], labels int32 [B] if it takes any) -> uint8 [B,H,W,C].

  Image i comes from seeds[i] as in `Trained.sample`, and B is chosen at every call. Unlike `Trained.sample`, a
  program cannot raise for samples that are not finite: they become pixels.

  Raises:
    UserError: for an unknown platform, or a network that enlarges images.
  """
  for name in platforms:
    if name not in PLATFORMS:
      raise UserError(f"Platform {name!r} is unknown; {nearest(name, PLATFORMS)}")
  if trained.config.data.low_res_size is not None:
    raise UserError("This network enlarges small images, and its program would need them: export the previous stage.")
  build.check_draws(trained.config)
  trained = trained.with_moments()
  denoiser, sampler = build.sampling(trained.config, trained.network, trained.guide)
  denoiser, sampler = jax.tree.map(mesh.to_host, (denoiser, sampler))
  rounding = trained.config.sampling.rounding
  takes_labels = trained.labels([0]) is not None

  def draw(seeds: jax.Array, *labels: jax.Array) -> jax.Array:
    keys = image_keys(seeds)
    cond = {"label": labels[0]} if labels else None
    x, _ = sample(keys, denoiser, sampler, PerImage(keys).initial(trained.image_shape), cond)
    return pixels.to_uint8(x, rounding)

  (batch,) = export.symbolic_shape("batch")
  arguments = [jax.ShapeDtypeStruct((batch,), jnp.uint32)]
  if takes_labels:
    arguments.append(jax.ShapeDtypeStruct((batch,), jnp.int32))
  return export.export(jax.jit(draw), platforms=platforms)(*arguments)


def save(trained: Trained, path: str | os.PathLike, platforms: Sequence[str] = PLATFORMS) -> dict[str, Any]:
  """Writes the program to `path` and a description to `path` + ".json". Returns the description."""
  path = pathlib.Path(path)
  exported = program(trained, platforms)
  data = exported.serialize()
  about = {
    "sha256": hashlib.sha256(data).hexdigest(),
    "bytes": len(data),
    "inputs": ["seeds uint32 [batch]", "labels int32 [batch]"][: len(exported.in_avals)],
    "output": f"uint8 [batch, {', '.join(map(str, trained.image_shape))}]",
    "classes": trained.config.data.num_classes if len(exported.in_avals) > 1 else None,
    "platforms": list(platforms),
    "sampling": as_json(trained.config.sampling.to_dict()),
    "step": trained.step,
    "weights": trained.weights,
    "calling_convention": exported.calling_convention_version,
    "jax": jax.__version__,
    "ddpm_jax": __version__,
  }
  with writing(path) as temporary:
    temporary.write_bytes(data)
  with writing(path.with_name(path.name + ".json")) as temporary:
    temporary.write_text(json.dumps(about, indent=2))
  return about


def draw(path: str | os.PathLike, seeds: Sequence[int], labels: Sequence[int] | None = None) -> np.ndarray:
  """Runs a program from a file: images uint8 [N,H,W,C]. docs/export.md does the same with JAX alone."""
  exported = export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
  inputs = [np.asarray(seeds, np.uint32)]
  if labels is not None:
    inputs.append(np.asarray(labels, np.int32))
  return np.asarray(exported.call(*inputs))
