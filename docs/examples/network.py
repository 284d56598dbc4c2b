"""A network of your own: any Flax module with this signature."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax import build, config


class Perceptron(nn.Module):
  out_channels: int  # the image's channels, twice as many with a second head; the config works it out
  width: int = 64

  @nn.compact
  def __call__(self, x, time, cond=None, *, train=False):
    h = jnp.concatenate([x.reshape(len(x), -1), time[:, None] / 1000], axis=1)
    h = nn.silu(nn.Dense(self.width)(h))
    return nn.Dense(x[0, ..., :1].size * self.out_channels)(h).reshape(*x.shape[:-1], self.out_channels)

  def check_size(self, height, width):
    """Raises UserError for images that the network cannot take. This one takes all."""


if __name__ == "__main__":
  cfg = config.default()
  cfg.network = dict(name=f"{__file__}:Perceptron", width=32)
  module = build.model(cfg, channels=1, num_classes=None)
  network = build.network(cfg, module, build.initial_params(module, jax.random.key(0), 8, 1))
  print("predicts images of shape", network(jnp.zeros((2, 8, 8, 1)), build.schedule(cfg).level(500)).x0.shape)
