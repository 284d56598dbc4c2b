"""A network of one's own: any Flax module with this signature; then every config can name it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax import build, config, models


class Perceptron(nn.Module):
  out_channels: int  # the image's channels, twice so many with a second head; the config works it out
  width: int = 64

  @nn.compact
  def __call__(self, x, time, cond=None, *, train=False):
    h = jnp.concatenate([x.reshape(len(x), -1), time[:, None] / 1000], axis=1)
    h = nn.silu(nn.Dense(self.width)(h))
    return nn.Dense(x[0, ..., :1].size * self.out_channels)(h).reshape(*x.shape[:-1], self.out_channels)

  def check_size(self, height, width):
    """Raises UserError for images that the network cannot take; this one takes all."""


models.NETWORKS["perceptron"] = Perceptron
cfg = config.default()
cfg.network = dict(name="perceptron", width=32)
module = build.model(cfg, channels=1, num_classes=None)
network = build.network(cfg, module, build.initial_params(module, jax.random.key(0), 8, 1))
pred = network(jnp.zeros((2, 8, 8, 1)), build.schedule(cfg).level(500))
print("believes in images of shape", pred.x0.shape)
