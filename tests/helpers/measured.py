"""Measurements over a data set with stored noise, shared by the tests of Analytic-DPM and Extended-Analytic-DPM."""

import jax
import numpy as np
from reference import Stored

from ddpm_jax.diffusion import grid, moments, step_costs, steps
from ddpm_jax.diffusion.covariance import log_posterior_21


def after_the_step(x, pred):
  """For sample(save=...)."""
  return x


def costs_of_all_steps(chain, denoiser, covariance, x_0, noise):
  """The table of step_costs in nats per image, from noise [T,B,...] of levels 1 ... T."""
  rows = steps.gaussian(chain, grid.full(chain.T))
  keys = jax.random.split(jax.random.key(0), len(x_0))
  lower = step_costs.to_lower(chain, rows.t.n)
  last = log_posterior_21(chain)
  terms = jax.jit(step_costs.terms, static_argnames="covariance")
  columns = terms(keys, denoiser, covariance, rows, lower, x_0, last_log_var=last, noise=Stored(noise[::-1]))
  table = np.full((chain.T + 1, chain.T + 1), np.inf)
  for t, column in zip(rows.t.n, np.asarray(columns, np.float64), strict=True):
    table[:t, t] = column[:t]
  return table * x_0[0].size * np.log(2)


def second_moments(network, chain, x_0, noise, batch_size):
  """|eps_hat|^2 / d as [T, images], from noise [T * batches, B, ...], level after level."""
  rows = steps.gaussian(chain, grid.full(chain.T))
  keys = jax.random.split(jax.random.key(0), batch_size)
  measure = jax.jit(moments.second_moments)
  batches = len(x_0) // batch_size
  parts = [
    measure(keys, network, rows, x_0[b * batch_size : (b + 1) * batch_size], noise=Stored(noise[b::batches][::-1]))
    for b in range(batches)
  ]
  return np.concatenate(parts, axis=2)[::-1, 0]
