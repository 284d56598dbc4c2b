"""The forward process, predictions and reverse kernels, as in OpenAI's and Ho's implementations.

Their arithmetic is float32 with other groupings of the same terms, so numbers agree to a few roundings of the largest
value in an array: 1e-5 of it, unless said otherwise.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from reference import experiment, nhwc, openai

from ddpm_jax.diffusion import grid, schedule, steps
from ddpm_jax.diffusion.gaussian import Gaussian, standard_normal
from ddpm_jax.diffusion.prediction import eps_from_x0, x0_from_eps, x_prev
from ddpm_jax.diffusion.schedule import like
from ddpm_jax.diffusion.transforms import ClipX0

MEANS = ("EPSILON", "START_X", "PREVIOUS_X")
VARIANCES = ("FIXED_SMALL", "FIXED_LARGE", "LEARNED", "LEARNED_RANGE")
HO_MEANS = ("eps", "xstart", "xprev")
HO_VARIANCES = ("fixedsmall", "fixedlarge", "learned")


def assert_close(ours, theirs, tolerance=1e-5, name=""):
  ours = np.broadcast_to(ours, theirs.shape)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=name)


@pytest.fixture(scope="module")
def linear():
  return steps.gaussian(schedule.linear(1000), grid.full(1000))


@pytest.fixture(scope="module")
def openai_inputs(golden):
  data = golden("gaussian_openai")
  x_start, x, noise = (nhwc(data[f"inputs/{name}"]) for name in ("x_start", "x", "noise"))
  return x_start, x, noise, data["inputs/t"] + 1


def test_forward_process(golden, linear, openai_inputs):
  x_0, x_t, eps, n = openai_inputs
  row = linear.leaving(n)
  data = golden("gaussian_openai")
  level = row.t
  wide = like(row, x_0)
  prev = x_prev(linear)
  ours = {
    "q_sample": level.diffuse(x_0, eps),
    "q_mean_variance.mean": wide.t.alpha * x_0,
    "q_mean_variance.variance": wide.t.sigma**2,
    "q_posterior_mean_variance.mean": prev.target(x_0, eps_from_x0(x_0, x_t, level), level),
    "q_posterior_mean_variance.variance": wide.var,
    "q_posterior_mean_variance.log_variance_clipped": wide.log_var_min,
    "predict_xstart_from_eps": x0_from_eps(eps, x_t, level),
    "predict_xstart_from_xprev": prev.decode(eps, x_t, level).x0,
    "predict_eps_from_xstart": eps_from_x0(x_0, x_t, level),
  }
  for name, array in ours.items():
    assert_close(array, nhwc(data[f"q/{name}"]), name=name)


def check_p_mean_variance(theirs, built, x, row, mean, var, clip):
  """theirs(name) -> the recorded array, or None where nothing was recorded."""
  beliefs = built.denoiser(clip)(x, row.t)
  p = built.kernel(x, row, beliefs)
  wide = like(row, x)
  # What is reported as "variance" is not always the exponential of what is used: fixed-small says 0 on the last row, and
  # Ho's fixed-large says beta there.
  reported = {"FIXED_SMALL": wide.var, "fixedsmall": wide.var, "fixedlarge": jnp.exp(wide.log_var_max)}
  ours = {
    "mean": p.mean,
    "log_variance": p.log_var,
    "variance": reported.get(var, jnp.exp(p.log_var)),
    "pred_xstart": (ClipX0(built.network) if clip else built.network)(x, row.t).x0,
  }
  for name, array in ours.items():
    if (recorded := theirs(name)) is not None:
      # A network of x_prev goes through x0 = (out - c_xt x_t) / c_x0 and back, which costs alpha_s / c_x0 ~ 100 roundings.
      x_prev_mean = name == "mean" and mean in ("PREVIOUS_X", "xprev")
      assert_close(array, recorded, 3e-5 if x_prev_mean else 1e-5, name)


@pytest.mark.parametrize("mean, var, clip", list(itertools.product(MEANS, VARIANCES, (1, 0))))
def test_p_mean_variance(golden, linear, openai_inputs, mean, var, clip):
  data = golden("gaussian_openai")
  group = f"p_mean_variance/{mean}/{var}/clip{clip}"
  _, x, _, n = openai_inputs
  names = data.groups[group]["arrays"]
  built = experiment(linear, mean, var, data.args(group)["model"].removesuffix("+var"))
  theirs = lambda name: nhwc(data[f"{group}/{name}"]) if name in names else None
  check_p_mean_variance(theirs, built, x, linear.leaving(n), mean, var, clip)


@pytest.mark.parametrize(
  "mean, var", [("EPSILON", "LEARNED_RANGE"), ("START_X", "FIXED_SMALL"), ("PREVIOUS_X", "FIXED_LARGE")]
)
def test_p_mean_variance_on_a_grid(golden, openai_inputs, mean, var):
  data = golden("gaussian_openai")
  group = f"p_mean_variance_spaced/{mean}/{var}"
  built = openai(data.args(group))
  row = built.steps.leaving(np.asarray(built.steps.t.n)[::-1][data[f"{group}/t"]])
  theirs = lambda name: nhwc(data[f"{group}/{name}"])
  check_p_mean_variance(theirs, built, openai_inputs[1], row, mean, var, clip=True)


@struct.dataclass
class HalvedAndShifted:
  """The `denoised_fn` of the recording, 0.5 z + 0.25: any change of x0 is one more denoiser around a denoiser."""

  inner: object

  def __call__(self, x_t, level, cond=None):
    pred = self.inner(x_t, level, cond)
    return pred.replace(x0=0.5 * pred.x0 + 0.25)


def test_denoised_fn_is_a_denoiser_around_a_denoiser(golden, linear, openai_inputs):
  data = golden("gaussian_openai")
  (_, x, _, n) = openai_inputs
  built = experiment(linear, "EPSILON", "FIXED_LARGE")
  row = linear.leaving(n)
  beliefs = ClipX0(HalvedAndShifted(built.network))(x, row.t)
  assert_close(beliefs.x0, nhwc(data["p_mean_variance/denoised_fn/pred_xstart"]))
  assert_close(built.kernel(x, row, beliefs).mean, nhwc(data["p_mean_variance/denoised_fn/mean"]))


def test_forward_process_of_ho(golden, linear):
  data = golden("ho_tf")
  x_0, x_t, noise, n = (data[f"inputs/{name}"] for name in ("x_start", "x", "noise", "t"))
  level = linear.leaving(n + 1).t
  prev = x_prev(linear)
  assert_close(level.diffuse(x_0, noise), data["q/q_sample"])
  assert_close(prev.target(x_0, eps_from_x0(x_0, x_t, level), level), data["q/posterior_mean"])
  assert_close(x0_from_eps(noise, x_t, level), data["q/predict_xstart_from_eps"])
  assert_close(prev.decode(noise, x_t, level).x0, data["q/predict_xstart_from_xprev"])


@pytest.mark.parametrize("mean, var, clip", list(itertools.product(HO_MEANS, HO_VARIANCES, (1, 0))))
def test_p_mean_variance_of_ho(golden, linear, mean, var, clip):
  data = golden("ho_tf")
  group = f"p_mean_variance/{mean}/{var}/clip{clip}"
  row = linear.leaving(data["inputs/t"] + 1)
  theirs = lambda name: data[f"{group}/{name}"] if f"{group}/{name}" in data.arrays else None
  check_p_mean_variance(theirs, experiment(linear, mean, var), data["inputs/x"], row, mean, var, clip)


def test_kl_of_gaussians(golden):
  data = golden("losses_openai")
  mean1, logvar1, mean2, logvar2 = (data[f"normal_kl/{name}"] for name in ("mean1", "logvar1", "mean2", "logvar2"))
  ours = Gaussian(mean1, logvar1)
  # theirs adds -1 + ... in float32: one rounding of the largest summand
  np.testing.assert_allclose(ours.kl(Gaussian(mean2, logvar2)), data["normal_kl/kl"], rtol=2e-6, atol=2e-7)
  np.testing.assert_allclose(ours.kl(standard_normal()), data["normal_kl/kl_to_std_normal"], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("file", ["losses_openai", "ho_tf"])
def test_log_probability_of_pixels(golden, file):
  data = golden(file)
  group = "discretized_gaussian_log_likelihood"
  x, means, log_scales, log_probs = (data[f"{group}/{name}"] for name in ("x", "means", "log_scales", "log_probs"))
  ours = Gaussian(means, 2 * log_scales).log_prob_of_pixels(x)
  # Where a probability p is a difference of two CDFs near 1, its rounding is 6e-8 / p; compare probabilities there.
  np.testing.assert_allclose(np.exp(ours), np.exp(log_probs), rtol=1e-5, atol=2e-7)
  likely = log_probs > np.log(1e-2)
  np.testing.assert_allclose(ours[likely], log_probs[likely], rtol=0, atol=3e-5)
  assert likely.any() and (np.asarray(ours)[log_probs < -27] < -27).all()


def test_normal_distribution_function(golden):
  z, cdf = (golden("losses_openai")[f"approx_standard_normal_cdf/{name}"] for name in ("x", "cdf"))
  black = np.float32(-1)  # its bin reaches to minus infinity: the probability is the distribution function itself
  ours = jnp.exp(Gaussian(black + np.float32(1 / 255) - z, jnp.zeros(())).log_prob_of_pixels(jnp.full_like(z, black)))
  np.testing.assert_allclose(ours, cdf, rtol=0, atol=5e-7)  # z itself is rounded twice on the way
