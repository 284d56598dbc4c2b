"""Samplers, and the loop that runs them.

A sampler is a frozen pytree with a table `steps` [K] and three functions:

    init(x_T) -> state;    step(noise, state, row, denoise, cond) -> (state, Prediction);    image(state) -> x

`sample` runs the tables with `lax.scan`. The whole trajectory is one program, compiled once for all weights, guidance
scales, etas and grids of the same length.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.noise import Noise, PerImage
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError


@struct.dataclass
class GaussianSampler:
  """Draws x_s from the reverse kernel, row by row: DDPM, DDIM, IDDPM, Analytic-DPM, NPR-DPM and SN-DPM.

  The step into level 0 adds no noise (DDPM algorithm 2). With an upward grid it is DDIM's inversion.
  """

  steps: GaussianSteps
  kernel: Any = ReverseKernel()

  def init(self, x_T: jax.Array) -> jax.Array:
    return x_T

  def step(
    self, noise: Noise, x_t: jax.Array, row: GaussianSteps, denoise: Denoiser, cond: Any
  ) -> tuple[jax.Array, Prediction]:
    pred = denoise(x_t, row.t, cond)
    p = self.kernel(x_t, row, pred, cond)
    return jnp.where(row.s.n > 0, p.draw(noise(row, x_t)), p.mean), pred

  def image(self, x: jax.Array) -> jax.Array:
    return x


@functools.partial(jax.jit, static_argnames=("save", "save_every", "progress"))
def sample(
  keys: jax.Array,
  denoiser: Denoiser,
  samplers: Any,
  x_T: jax.Array,
  cond: Any = None,
  *,
  save: Callable | None = None,
  save_every: int = 1,
  noise: Noise | None = None,
  progress: Callable[[int, jax.Array], None] | None = None,
) -> tuple[jax.Array, Any]:
  """Runs one sampler, or several in a row, from x_T to the end of their grids.

  Args:
    keys: [B], one per image.
    denoiser: (x_t, level, cond) -> Prediction; a pytree.
    samplers: a sampler or a sequence of them. Each has its own scan.
    x_T: float32 [B,H,W,C].
    cond: the condition that the denoiser receives.
    save: (x, prediction) -> any pytree to keep after each step. Progressive decoding is `lambda x, pred: pred.x0`. It is
      static: pass the same function object to avoid another compilation.
    save_every: keep the states with 0, save_every, 2 save_every, ... steps left, which takes the memory of
      K / save_every states. Ho's progressive samples use 50.
    noise: (row, x) -> standard normal noise shaped as x, a pytree. None: one stream per image.
    progress: called on the host after each step with (number of steps, steps left). Calls can be late or out of order, and
      come once per device. It is static, and nothing is compiled in for None.

  Returns:
    (x [B,H,W,C], saved). `saved` has a leading axis of size ceil(K / save_every), in sampling order. It is a list for
    several samplers, and None without `save`.

  Raises:
    UserError: if save_every is not positive.
  """
  if save_every < 1:
    raise UserError(f"save_every = {save_every} must be at least 1 (keep every state).")
  noise = PerImage(keys) if noise is None else noise
  denoiser = _prepared(denoiser)
  several = isinstance(samplers, Sequence)
  saved = []
  x = x_T
  for sampler in samplers if several else [samplers]:
    x, kept = _run(sampler, noise, denoiser, x, cond, save, save_every, progress)
    saved.append(kept)
  return x, (None if save is None else saved if several else saved[0])


def _prepared(denoiser: Denoiser) -> Any:
  """`denoiser`, with the weights of its networks converted outside the loop, where their `apply` knows how."""
  converts = lambda x: hasattr(x, "params") and hasattr(getattr(x, "apply", None), "prepare")
  convert = lambda x: x.replace(params=x.apply.prepare(x.params)) if converts(x) else x
  return jax.tree.map(convert, denoiser, is_leaf=converts)


def _run(
  sampler: Any,
  noise: Noise,
  denoiser: Denoiser,
  x: jax.Array,
  cond: Any,
  save: Callable | None,
  save_every: int,
  progress: Callable[[int, jax.Array], None] | None,
) -> tuple[jax.Array, Any]:
  total = len(sampler.steps.left)

  def step(carry: tuple[Any, Any], row: Any) -> tuple[tuple[Any, Any], None]:
    state, kept = carry
    state, pred = sampler.step(noise, state, row, denoiser, cond)
    if save is not None:
      # Slot k counts from the end: it is overwritten until k * save_every steps are left.
      slot = len(jax.tree.leaves(kept)[0]) - 1 - row.left // save_every
      kept = jax.tree.map(lambda old, new: old.at[slot].set(new), kept, save(sampler.image(state), pred))
    if progress is not None:
      jax.debug.callback(functools.partial(progress, total), row.left)
    return (state, kept), None

  state = sampler.init(x)
  kept = None
  if save is not None:
    row = jax.tree.map(lambda column: column[0], sampler.steps)
    state_and_pred = jax.eval_shape(lambda s: sampler.step(noise, s, row, denoiser, cond), state)
    shapes = jax.eval_shape(lambda s, pred: save(sampler.image(s), pred), *state_and_pred)
    kept = jax.tree.map(lambda a: jnp.zeros((-(-total // save_every), *a.shape), a.dtype), shapes)
  (state, kept), _ = jax.lax.scan(step, (state, kept), sampler.steps)
  return sampler.image(state), kept
