"""Samplers, and the one loop that runs them.

A sampler is a frozen pytree with a table `steps` [K] and

    init(x_T) -> state;    step(noise, state, row, denoise, cond) -> (state, Prediction);    image(state) -> x

`sample` walks the tables with `lax.scan`: the whole trajectory is one program, compiled once for all weights, guidance
scales, etas and grids of one length.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.noise import PerImage
from ddpm_jax.diffusion.progress import report
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError


@struct.dataclass
class GaussianSampler:
  """Draws x_s from the reverse kernel, row by row: DDPM, DDIM, IDDPM, Analytic-DPM, NPR, SN; upwards, the inversion.

  The step into level 0 adds no noise (DDPM algorithm 2).
  """

  steps: GaussianSteps
  kernel: Any = ReverseKernel()

  def init(self, x_T):
    return x_T

  def step(self, noise, x_t, row, denoise, cond):
    pred = denoise(x_t, row.t, cond)
    p = self.kernel(x_t, row, pred, cond)
    std = jnp.where(row.s.n > 0, jnp.exp(0.5 * p.log_var), 0.0)
    return p.mean + std * noise(row, x_t), pred

  def image(self, x):
    return x


@functools.partial(jax.jit, static_argnames=("save", "save_every", "progress"))
def sample(
  keys: jax.Array,
  denoiser: Callable,
  samplers: Any,
  x_T: jax.Array,
  cond: Any = None,
  *,
  save: Callable | None = None,
  save_every: int = 1,
  noise: Callable | None = None,
  progress: bool = False,
) -> tuple[jax.Array, Any]:
  """Runs one sampler, or several one after the other, from x_T to the end of their grids.

  Args:
    keys: [B], one per image.
    denoiser: (x_t, level, cond) -> Prediction; a pytree.
    samplers: a sampler or a sequence of them; each has its own scan.
    x_T: float32 [B,H,W,C].
    cond: what the denoiser is conditioned on.
    save: (x, prediction) -> anything, kept along the way; progressive decoding is `lambda x, pred: pred.x0`. Static:
      pass the same function object to avoid another compilation.
    save_every: keep the states that have 0, save_every, 2 save_every, ... steps left (Ho's progressive samples use 50),
      so that memory is K / save_every states.
    noise: (row, x) -> standard normal like x, instead of one stream per image; a pytree.
    progress: show a bar; costs a callback to the host per step. Nothing when False.

  Returns:
    (x [B,H,W,C], saved) with saved of leading size ceil(K / save_every), in sampling order; a list of them when there
    are several samplers, None without `save`.

  Raises:
    UserError: if save_every is not positive.
  """
  if save_every < 1:
    raise UserError(f"save_every = {save_every} must be at least 1, which keeps every state.")
  noise = PerImage(keys) if noise is None else noise
  several = isinstance(samplers, Sequence)
  saved, x = [], x_T
  for sampler in samplers if several else [samplers]:
    x, kept = _run(sampler, noise, denoiser, x, cond, save, save_every, progress)
    saved.append(kept)
  return x, (None if save is None else saved if several else saved[0])


def _run(sampler, noise, denoiser, x, cond, save, save_every, progress):
  total = len(sampler.steps.left)

  def step(carry, row):
    state, kept = carry
    state, pred = sampler.step(noise, state, row, denoiser, cond)
    if save is not None:
      # A slot is overwritten until the step that belongs to it: slot k ends with k * save_every steps left.
      slot = len(jax.tree.leaves(kept)[0]) - 1 - row.left // save_every
      kept = jax.tree.map(lambda old, new: old.at[slot].set(new), kept, save(sampler.image(state), pred))
    if progress:
      report(row.left, total)
    return (state, kept), None

  state, kept = sampler.init(x), None
  if save is not None:
    row = jax.tree.map(lambda column: column[0], sampler.steps)
    state_and_pred = jax.eval_shape(lambda s: sampler.step(noise, s, row, denoiser, cond), state)
    shapes = jax.eval_shape(lambda s, pred: save(sampler.image(s), pred), *state_and_pred)
    kept = jax.tree.map(lambda a: jnp.zeros((-(-total // save_every), *a.shape), a.dtype), shapes)
  (state, kept), _ = jax.lax.scan(step, (state, kept), sampler.steps)
  return sampler.image(state), kept
