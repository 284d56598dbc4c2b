"""Bilinear resizing as the two Inception codes do it, without antialiasing.

Pixel i of `new` lies at position p(i) among `old` pixels, between floor(p) and the next one:

    TensorFlow 1 ("legacy")              p = i old / new                       (align_corners and half_pixel_centers off)
    PyTorch (align_corners = False)      p = max((i + 1/2) old / new - 1/2, 0)

The legacy form shifts the picture by half a pixel to the upper left and repeats the last one; no resize of JAX does.
"""

import jax
import jax.numpy as jnp
import numpy as np


def legacy_bilinear(images: jax.Array, size: int) -> jax.Array:
  """float32 [B, H, W, C] -> [B, size, size, C] as tf.image.resize_bilinear of TensorFlow 1."""
  return _bilinear(images, size, lambda i, scale: i * scale)


def half_pixel_bilinear(images: jax.Array, size: int) -> jax.Array:
  """float32 [B, H, W, C] -> [B, size, size, C] as torch.nn.functional.interpolate(mode="bilinear")."""
  half = np.float32(0.5)
  return _bilinear(images, size, lambda i, scale: np.maximum((i + half) * scale - half, np.float32(0)))


def _bilinear(images, size, position):
  for axis in (2, 1):  # a row is interpolated before two rows are: the order of both originals
    old = images.shape[axis]
    where = position(np.arange(size, dtype=np.float32), np.float32(old) / np.float32(size))
    lower = np.minimum(where.astype(np.int32), old - 1)
    weight = (where - lower).reshape([-1 if a == axis else 1 for a in range(images.ndim)])
    near, far = (jnp.take(images, index, axis) for index in (lower, np.minimum(lower + 1, old - 1)))
    images = near + (far - near) * weight
  return images
