"""Bits per dimension, as OpenAI's and Ho's `calc_bpd_loop` count them, with their noise."""

import numpy as np
import pytest
from reference import Stored, experiment, nhwc, openai

from ddpm_jax.diffusion import grid, noise, schedule, steps
from ddpm_jax.diffusion.likelihood import bits_per_dim, prior_term, rate_distortion

# float32 in both. The references' KL adds -1 + ... + 1, which costs up to 3e-7 in a term: nothing in a total, but half
# of the prior's 1e-5 may be that.
CLOSE = dict(rtol=1e-4, atol=5e-7)


def bound(built, clip, x_0, draws):
  keys = noise.image_keys(np.arange(len(x_0)))  # not used: the noise is given
  return bits_per_dim(keys, built.denoiser(clip), built.kernel, built.steps, x_0, noise=Stored(draws))


@pytest.mark.parametrize("name", "abcd")
def test_openai(golden, name):
  data = golden("losses_openai")
  group = f"calc_bpd_loop/{name}"
  args = data.args(group)
  ours = bound(openai(args), args["clip_denoised"], *(nhwc(data[f"{group}/{name}"]) for name in ("x_start", "noise")))
  theirs = {"prior": "prior_bpd", "terms": "vb", "x0_mse": "xstart_mse", "eps_mse": "mse", "total": "total_bpd"}
  for mine, their in theirs.items():
    np.testing.assert_allclose(getattr(ours, mine), data[f"{group}/{their}"], **CLOSE, err_msg=mine)


@pytest.mark.parametrize("var", ["fixedsmall", "fixedlarge"])
def test_ho(golden, var):
  data = golden("ho_tf")
  group = f"calc_bpd_loop/{var}"
  inputs = "calc_bpd_loop/fixedsmall"
  levels = schedule.from_betas(data[f"{inputs}/betas"])
  table = steps.gaussian(levels, grid.full(levels.T))
  # There noise and columns are by increasing t.
  ours = bound(experiment(table, "eps", var), True, data[f"{inputs}/x_start"], data[f"{inputs}/noise"][::-1])
  np.testing.assert_allclose(ours.terms[:, ::-1], data[f"{group}/terms_bpd"], **CLOSE)
  np.testing.assert_allclose(ours.x0_mse[:, ::-1], data[f"{group}/mse"], **CLOSE)
  np.testing.assert_allclose(ours.prior, data[f"{group}/prior_bpd"], **CLOSE)
  np.testing.assert_allclose(ours.total, data[f"{group}/total_bpd"], **CLOSE)
  # The curve: a receiver that has x_t has not paid for the step from x_t, which the recorded sum includes.
  curve = rate_distortion(ours)
  paid = (data[f"{group}/derived_rate_bpd"] - data[f"{group}/terms_bpd"])[:, ::-1]
  np.testing.assert_allclose(curve.rate, paid.mean(0), **CLOSE)
  rmse = np.sqrt((data[f"{group}/derived_distortion_rmse255"][:, ::-1] ** 2).mean(0))
  np.testing.assert_allclose(curve.rmse, rmse, **CLOSE)


@pytest.mark.parametrize("name", ["linear_T1000", "cosine_T1000", "linear_T50"])
def test_prior_term(golden, name):
  data = golden("losses_openai")
  (kind, T) = name.split("_T")
  x_0 = nhwc(data["inputs/x_start"])
  levels = schedule.SCHEDULES[kind](int(T))
  np.testing.assert_allclose(prior_term(x_0, levels.level(levels.T)), data[f"prior_bpd/{name}"], **CLOSE)
