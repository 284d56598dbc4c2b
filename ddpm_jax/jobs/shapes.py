"""Shapes with shardings in place of arrays: enough to compile a program, and nothing is allocated."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.devices import mesh as layout
from ddpm_jax.sizes import ImageSize, pair


def images(config: ConfigDict, batch: int, mesh: Mesh, dtype: Any = jnp.float32, size: ImageSize | None = None) -> Any:
  """Images [B, H, W, C] of data.image_size, or of `size`."""
  sides = pair(size or config.data.image_size)
  return jax.ShapeDtypeStruct((batch, *sides, config.data.channels), dtype, sharding=layout.over_batch(mesh))


def labels(batch: int, mesh: Mesh) -> dict[str, Any]:
  """Labels [B]."""
  return {"label": jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=layout.over_batch(mesh))}


def conditions(config: ConfigDict, batch: int, mesh: Mesh) -> dict[str, Any]:
  """The inputs of the network beside image and time."""
  cond = {}
  if "label" in build.conditions(config):
    cond |= labels(batch, mesh)
  if config.data.low_res_size is not None:
    cond["low_res"] = images(config, batch, mesh, size=config.data.low_res_size)
  return cond


def training_batch(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
  """The batch of a training step. Images are uint8, unless the host also downsampled them for super-resolution."""
  dtype = jnp.uint8 if config.data.low_res_size is None else jnp.float32
  batch = config.train.batch_size
  return {"image": images(config, batch, mesh, dtype)} | conditions(config, batch, mesh)
