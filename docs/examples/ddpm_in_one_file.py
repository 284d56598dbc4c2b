"""A whole DDPM on one page, made of the public parts: train on 8x8 digits, then sample with DDPM and with DDIM.

python docs/examples/ddpm_in_one_file.py           about a minute on two CPU cores; writes digits.png
python docs/examples/ddpm_in_one_file.py --steps 5  a few seconds, to see that it runs
"""

import argparse
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import data
from ddpm_jax.data import images
from ddpm_jax.diffusion import grid, losses, noise, schedule, steps
from ddpm_jax.diffusion.covariance import posterior
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.transforms import ClipX0
from ddpm_jax.training import ema

T = 250


class Net(nn.Module):
  """A residual perceptron that predicts the noise, eps_hat(x_t, t). Any function of these arguments will do."""

  width: int = 384

  @nn.compact
  def __call__(self, x, time, cond=None):
    angles = time[:, None] * np.exp(-np.linspace(0, 6, 16, dtype=np.float32))
    emb = nn.silu(nn.Dense(self.width)(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)))
    h = nn.Dense(self.width)(x.reshape(len(x), -1))
    for _ in range(4):
      r = nn.silu(nn.LayerNorm()(h) + nn.Dense(self.width)(emb))
      h = h + nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(r)))
    return nn.Dense(x[0].size, kernel_init=nn.initializers.zeros)(nn.silu(nn.LayerNorm()(h))).reshape(x.shape)


net = Net()


def apply(params, x, time, cond):
  """The network as a plain function, which compares equal from call to call."""
  return net.apply(params, x, time, cond)


@functools.partial(jax.jit, static_argnames="tx")
def train_step(params, opt_state, average, key, x_0, updates, loss, *, tx):
  """One update: draw a level for each image, diffuse the image, predict the noise, compare (algorithm 1)."""
  level_key, noise_key = jax.random.split(key)
  n = jax.random.randint(level_key, (len(x_0),), 1, T + 1)
  keys = jax.random.split(noise_key, len(x_0))
  mean_loss = lambda params: loss(keys, Network(params, apply), x_0, n)[0].mean()
  value, grads = jax.value_and_grad(mean_loss)(params)
  changes, opt_state = tx.update(grads, opt_state)
  params = optax.apply_updates(params, changes)
  return params, opt_state, ema.update(average, params, updates), value


def main(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("--steps", type=int, default=4000, help="training steps")
  parser.add_argument("--out", default="digits.png")
  args = parser.parse_args(argv)

  levels = schedule.linear(T, start=1e-4, end=0.08)  # the betas of DDPM section 4, for fewer levels
  chain = steps.gaussian(levels, grid.full(T))  # DDPM's step: a table with one row per level, eta = 1
  loss = losses.Simple(chain)  # L_simple, eq. 14
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, args.steps)))
  batches = data.train_batches(data.load("digits"), 128)

  params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))
  opt_state = tx.init(params)
  average = ema.init(params, (0.999,))
  for i in range(args.steps):
    x_0 = batches[i]["image"]
    key = jax.random.fold_in(jax.random.key(1), i)
    params, opt_state, average, value = train_step(params, opt_state, average, key, x_0, i, loss, tx=tx)
    if (i + 1) % max(args.steps // 10, 1) == 0:
      print(f"step {i + 1}: loss {value:.4f}")

  denoiser = ClipX0(Network(average["0.999"], apply))
  keys = noise.image_keys(jnp.arange(64))  # image i depends on seed i alone
  x_T = noise.PerImage(keys).initial((8, 8, 1))
  ddpm = GaussianSampler(chain, ReverseKernel(posterior))  # algorithm 2
  ddim = GaussianSampler(steps.gaussian(levels, grid.uniform(T, 50), eta=0.0))  # the same network in 50 steps, no noise
  drawn = [images.grid(images.to_uint8(sample(keys, denoiser, sampler, x_T)[0]), scale=4) for sampler in (ddpm, ddim)]
  images.save_png(args.out, np.concatenate(drawn, axis=1))
  print(f"{args.out}: 64 digits by {T} DDPM steps on the left, by 50 DDIM steps on the right")


if __name__ == "__main__":
  main()
