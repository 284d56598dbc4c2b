"""Training losses and the importance sampler of levels, as in OpenAI's, Ho's and the DDIM implementations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from reference import COVARIANCES, SECOND_HEADS, experiment, nhwc, poly

from ddpm_jax.diffusion import grid, losses, schedule, steps
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import vlb_term
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.diffusion.time_sampling import LossHistory, LossSecondMoment

MEANS = ("EPSILON", "START_X", "PREVIOUS_X")
VARIANCES = ("FIXED_SMALL", "FIXED_LARGE", "LEARNED", "LEARNED_RANGE")
CASES = list(itertools.product(("MSE", "RESCALED_MSE", "KL", "RESCALED_KL"), MEANS, VARIANCES))
ON_A_GRID = [
  ("MSE", "EPSILON", "FIXED_LARGE"),
  ("RESCALED_MSE", "EPSILON", "LEARNED_RANGE"),
  ("RESCALED_KL", "EPSILON", "LEARNED_RANGE"),
  ("KL", "START_X", "FIXED_SMALL"),
]
HO_CASES = [
  (kind, mean, var)
  for kind in ("mse", "kl")
  for mean in ("eps", "xstart", "xprev")
  for var in ("fixedsmall", "fixedlarge", "learned")
  if (kind, var) != ("mse", "learned")
]


def tolerance(p, x_0, row, scale=1.0):
  """[B] how far two float32 evaluations of one term of the bound, times `scale`, may be apart, beside 1e-4 of its size.

  p is the reverse transition. The references' KL adds -1 + ... + 1, which costs 3e-7. Their probability of a pixel, and
  ours, is a difference of two CDFs and good to 1.2e-7 absolutely: nothing where the network is good, much where it gives
  pixels 1e-7.
  """
  logit = lambda edge: 2 * np.sqrt(2 / np.pi) * (edge + 0.044715 * edge**3)
  z = (np.asarray(x_0, np.float64) - p.mean) * np.exp(-0.5 * np.asarray(p.log_var, np.float64))
  half = 1 / 255 * np.exp(-0.5 * np.asarray(p.log_var, np.float64))
  below = np.where(x_0 < -0.999, 0, scipy.special.expit(logit(z - half)))
  above = np.where(x_0 > 0.999, 1, scipy.special.expit(logit(z + half)))
  width = np.log(np.maximum(above - below + 1.2e-7, 1e-12)) - np.log(np.maximum(above - below - 1.2e-7, 1e-12))
  return scale * np.where(np.ravel(row.s.n) == 0, width.mean((1, 2, 3)) / np.log(2), 3e-7)


def assert_close(ours, theirs, atol, name=""):
  excess = np.abs(ours - theirs) - 1e-4 * np.abs(theirs) - atol
  assert (excess <= 0).all(), f"{name}: {ours} should be {theirs} within {atol}"


def loss_of(kind: str, var: str, table: steps.GaussianSteps):
  """OpenAI's LossType, or Ho's "mse" and "kl", over a chain of K steps."""
  kernel = ReverseKernel(COVARIANCES[var])
  K = len(table.left)
  match kind:
    case "MSE" | "RESCALED_MSE" | "mse":
      weight = K / 1000 if kind == "RESCALED_MSE" else 1.0
      return losses.Hybrid(table, weight, kernel) if var in SECOND_HEADS else losses.Simple(table)
    case "KL" | "kl":
      return losses.Vlb(table, kernel)
    case "RESCALED_KL":
      return losses.Vlb(table, kernel, scale=float(K))


def evaluate(table, cases, eps, x_0, n):
  """By case: the loss and its parts in the words of the references, and how far float32 may miss the bound's part."""

  @jax.jit
  def run(eps, x_0, n):
    row = table.leaving(n)
    x_t = row.t.diffuse(x_0, eps)
    results = {}
    for kind, mean, var in cases:
      built = experiment(table, mean, var)
      total, parts = loss_of(kind, var, table).given(eps, built.network, x_0, n)
      ours = {"loss": total, "mse": parts.get("mse"), "vb": parts.get("vlb")}
      results[kind, mean, var] = ours, built.kernel(x_t, row, built.network(x_t, row.t))
    return results, row

  results, row = run(eps, x_0, n)
  for case, (ours, p) in results.items():
    match loss_of(case[0], case[2], table):
      case losses.Vlb(scale=factor) | losses.Hybrid(weight=factor):
        pass
      case losses.Simple():
        factor = 0.0  # no term of the bound
    results[case] = ours, tolerance(p, x_0, row, factor)
  return results


def check(ours, tolerance, theirs):
  """theirs: name -> recorded [B], of "loss", and of its parts "mse" and "vb" where there are two."""
  for name in theirs:
    assert_close(ours[name], theirs[name], 1e-6 if name == "mse" else tolerance + 1e-6, name)
  assert set(theirs) in ({"loss"}, {"loss", "mse"}, {"loss", "mse", "vb"})


@pytest.fixture(scope="module")
def inputs(golden):
  data = golden("losses_openai")
  return nhwc(data["inputs/x_start"]), nhwc(data["inputs/noise"]), data["inputs/t"] + 1


@pytest.fixture(scope="module")
def linear():
  return steps.gaussian(schedule.linear(1000), grid.full(1000))


@pytest.fixture(scope="module")
def ours(linear, inputs):
  x_0, eps, n = inputs
  return evaluate(linear, CASES, eps, x_0, n)


@pytest.fixture(scope="module")
def ours_on_a_grid(golden, inputs):
  x_0, eps, _ = inputs
  table = steps.gaussian(schedule.linear(1000), grid.sections(1000, "250"))
  return evaluate(table, ON_A_GRID, eps, x_0, table.t.n[::-1][golden("losses_openai")["training_losses_spaced/t"]])


@pytest.fixture(scope="module")
def ours_of_ho(golden, linear):
  data = golden("ho_tf")
  return evaluate(linear, HO_CASES, data["inputs/noise"], data["inputs/x_start"], data["inputs/t"] + 1)


def recorded(data, group):
  return {name.split("/")[-1]: data[name] for name in data.arrays.files if name.startswith(f"{group}/")}


@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_training_losses(golden, ours, case):
  check(*ours[case], recorded(golden("losses_openai"), "/".join(("training_losses", *case))))


@pytest.mark.parametrize("case", ON_A_GRID, ids="/".join)
def test_training_losses_on_a_grid(golden, ours_on_a_grid, case):
  check(*ours_on_a_grid[case], recorded(golden("losses_openai"), "/".join(("training_losses_spaced", *case))))


@pytest.mark.parametrize("case", HO_CASES, ids="/".join)
def test_training_losses_of_ho(golden, ours_of_ho, case):
  check(*ours_of_ho[case], {"loss": golden("ho_tf")["/".join(("training_losses", *case))]})


@pytest.mark.parametrize("mean, var, clip", list(itertools.product(MEANS[:2], VARIANCES, (1, 0))))
def test_terms_of_the_bound(golden, linear, inputs, mean, var, clip):
  x_0, eps, n = inputs
  built = experiment(linear, mean, var)
  row = linear.leaving(n)
  x_t = row.t.diffuse(x_0, eps)
  beliefs = built.denoiser(clip)(x_t, row.t)
  ours = vlb_term(built.kernel, x_0, x_t, row, beliefs)
  theirs = golden("losses_openai")[f"vb_terms_bpd/{mean}/{var}/clip{clip}/output"]
  assert_close(ours, theirs, tolerance(built.kernel(x_t, row, beliefs), x_0, row))


def test_loss_of_the_ddim_code(golden, linear):
  data = golden("ddim_repo")
  group = "noise_estimation_loss"
  x_0 = nhwc(data[f"{group}/x0"])
  eps = nhwc(data[f"{group}/e"])
  loss, _ = losses.Simple(linear, "sum").given(eps, Network(None, poly), x_0, data[f"{group}/t"] + 1)
  np.testing.assert_allclose(loss, data[f"{group}/loss_keepdim"], rtol=1e-5)  # sums of 108 float32 squares
  np.testing.assert_allclose(loss.mean(), data[f"{group}/loss"], rtol=1e-5)


def test_loss_second_moment_sampler(golden):
  data = golden("losses_openai")
  group = "loss_second_moment_resampler"
  args = data.args(group)
  sampler = LossSecondMoment(args["num_timesteps"], args["history_per_term"], args["uniform_prob"])
  update = jax.jit(sampler.update)
  probabilities = jax.jit(sampler.probabilities)
  state = sampler.init()
  for ts, loss, weights in zip(data[f"{group}/ts"], data[f"{group}/losses"], data[f"{group}/weights"], strict=True):
    state = update(state, jnp.asarray(ts + 1), jnp.asarray(loss, jnp.float32))
    # float32 histories of float64 losses; all ones are the reference's uniform weights before every level is known
    np.testing.assert_allclose(probabilities(state), weights / weights.sum(), rtol=1e-5)
  seen = np.minimum(state.count, args["history_per_term"])
  np.testing.assert_array_equal(seen, data[f"{group}/loss_counts"])
  # There the history is a queue, here a ring: the same losses, rotated.
  np.testing.assert_allclose(np.sort(state.losses, 1), np.sort(data[f"{group}/loss_history"], 1), rtol=1e-6)
  index = data[f"{group}/sample_indices"]
  p = probabilities(state)
  np.testing.assert_allclose(1 / (sampler.T * p[index]), data[f"{group}/sample_weights"], rtol=1e-5)
  n, weight = sampler.sample(state, jax.random.key(0), 64)
  np.testing.assert_allclose(weight, 1 / (sampler.T * p[n - 1]), rtol=1e-6)
  assert isinstance(state, LossHistory)
