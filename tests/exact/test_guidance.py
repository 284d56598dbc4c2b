"""Guidance where everything is known: pixels from a mixture of three Gaussians, the classes being its components."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ddpm_jax.diffusion import dpm_solver, grid, noise, schedule, steps
from ddpm_jax.diffusion.covariance import Optimal, learned_range
from ddpm_jax.diffusion.guidance import Autoguidance, Classifier, ClassifierFree, ClassifierScore, ShiftMean
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.losses import NoisyClassifier, NoisyLowRes
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.prediction import Eps, Network, Prediction
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.second_heads import TwoHeads
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.transforms import ClipX0
from ddpm_jax.errors import UserError

WEIGHT, MEAN, VAR = (np.float32(a) for a in ((0.5, 0.3, 0.2), (-0.7, 0.1, 0.8), (0.03, 0.02, 0.05)))
MIXTURE = Mixture(WEIGHT, MEAN, VAR)
NULL = 3
S = schedule.linear(1000)


def levels_of(time):
  return S.level(jnp.asarray(time, jnp.int32) + 1)


def logits(params, x, time, cond=None):
  """log p(y) p(x_t | y) of one pixel, up to a constant."""
  level = levels_of(time)
  alpha = level.alpha[:, None]
  sigma = level.sigma[:, None]
  x = x.reshape(-1, 1)
  var = alpha**2 * VAR[None] + sigma**2
  return jnp.log(WEIGHT)[None] - 0.5 * (jnp.log(var) + (x - alpha * MEAN[None]) ** 2 / var)


def conditional_eps(weights, x, time, cond):
  """E[eps | x_t, y]; label NULL means any. weights [4,3]: the mixture of each label."""
  each = jax.vmap(lambda w, x, level: Mixture(w, MEAN, VAR)(x[None], level).eps[0])
  return each(weights[cond["label"]], x, levels_of(time))


CLASSIFIER = Classifier(None, logits)
NETWORK = Network(np.append(np.eye(3, dtype=np.float32), WEIGHT[None], axis=0), conditional_eps)


@pytest.fixture(scope="module")
def states():
  """(x_t, level, cond): states of every class at many levels, one level per image."""
  n = np.array([1, 5, 30, 100, 300, 600, 900, 1000] * 3)
  cond = {"label": np.repeat(np.arange(3, dtype=np.int32), 8)}
  level = S.level(n)
  x_0 = MIXTURE.sample(jax.random.key(0), (24, 1, 1, 1))
  return level.diffuse(x_0, jax.random.normal(jax.random.key(1), x_0.shape)), level, cond


@jax.jit
def believe(denoiser, x_t, level, cond=None):
  return denoiser(x_t, level, cond)


def assert_beliefs(ours, theirs, level):
  """Within float32 rounding of states and of gradients, both below 8, where eps is divided by sigma and x0 by alpha."""
  np.testing.assert_array_less(np.abs(ours.eps - theirs.eps).ravel(), 1e-5 + 5e-7 / level.sigma)
  np.testing.assert_array_less(np.abs(ours.x0 - theirs.x0).ravel(), 1e-5 / level.alpha)


def test_score_of_the_exact_classifier_turns_the_mixture_into_the_class(states):
  guided = ClassifierScore(MIXTURE, CLASSIFIER, 1.0)
  assert_beliefs(believe(guided, *states), believe(NETWORK, *states), states[1])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_both_kinds_of_guidance_agree_by_bayes(states, scale):
  free = believe(ClassifierFree(NETWORK, scale, {"label": NULL}), *states)
  assert_beliefs(believe(ClassifierScore(MIXTURE, CLASSIFIER, scale), *states), free, states[1])


def test_classifier_free_at_scales_one_and_zero(states):
  x_t, level, cond = states
  free = lambda scale: believe(ClassifierFree(NETWORK, scale, {"label": NULL}), *states)
  assert_beliefs(free(1.0), believe(NETWORK, *states), level)
  assert_beliefs(free(0.0), believe(MIXTURE, x_t, level), level)


# An Euler step is of first order: 1000 of them leave 1.1 % of a deviation; 60 steps of 2M, of second order, 0.08 %.
@pytest.mark.parametrize(
  "sampler, error",
  [
    (GaussianSampler(steps.gaussian(S, grid.full(1000), eta=0.0), ReverseKernel()), 0.02),
    (Solver(dpm_solver.multistep(S, grid.log_snr(S, 60), 2)), 0.002),
  ],
  ids=["ddim", "2M"],
)
def test_guided_flow_draws_from_the_class(sampler, error):
  """The flow of a Gaussian class is affine in x_T, so three points show the mean and deviation of all samples."""
  top = S.level(np.array(1000))
  x_T = top.alpha * MEAN[:, None] + np.sqrt(top.alpha**2 * VAR[:, None] + top.sigma**2) * np.array([-1, 0, 1], np.float32)
  cond = {"label": jnp.repeat(jnp.arange(3), 3)}
  guided = ClassifierScore(MIXTURE, CLASSIFIER, 1.0)
  x = sample(noise.image_keys(np.arange(9)), guided, sampler, x_T.reshape(9, 1, 1, 1), cond)[0].reshape(3, 3)
  std = VAR**0.5
  np.testing.assert_allclose((x[:, 0] + x[:, 2]) / 2, x[:, 1], atol=1e-4)
  np.testing.assert_allclose(x[:, 1], MEAN, atol=1e-5)  # on the mean's own path every step is exact, up to rounding
  np.testing.assert_array_less(np.abs((x[:, 2] - x[:, 0]) / 2 - std), error * std)


@struct.dataclass
class OneStream:
  """Noise of the whole batch from one key, which is faster than one per image."""

  key: jax.Array

  def __call__(self, row, x):
    return jax.random.normal(jax.random.fold_in(self.key, row.t.n), x.shape)


def test_shifted_mean_draws_from_the_class():
  """Algorithm 1 is exact to first order in the variance of a step; 1000 steps leave little else."""
  count = 1024
  label = jnp.arange(3 * count) % 3
  kernel = ShiftMean(ReverseKernel(Optimal()), CLASSIFIER, 1.0)
  sampler = GaussianSampler(steps.gaussian(S, grid.full(1000)), kernel)
  x_T = jax.random.normal(jax.random.key(0), (3 * count, 1, 1, 1))
  x = sample(None, MIXTURE, sampler, x_T, {"label": label}, noise=OneStream(jax.random.key(1)))[0].ravel()
  for y in range(3):
    drawn = x[label == y]
    # 4 standard errors, and one more for the bias of first order
    np.testing.assert_allclose(drawn.mean(), MEAN[y], atol=5 * (VAR[y] / count) ** 0.5)
    np.testing.assert_allclose(drawn.var(), VAR[y], rtol=5 * (2 / count) ** 0.5)


def test_interval_and_scales_per_image(states):
  x_t, level, cond = states
  inside = (30 <= level.n) & (level.n <= 600)
  for guided, off in [
    (lambda scale, interval: ClassifierScore(MIXTURE, CLASSIFIER, scale, interval), 0.0),
    (lambda scale, interval: ClassifierFree(NETWORK, scale, {"label": NULL}, interval), 1.0),
    (lambda scale, interval: Autoguidance(NETWORK, MIXTURE, scale, interval), 1.0),
  ]:
    per_image = guided(jnp.where(inside, 2.0, off), (0, 1000))
    assert_beliefs(believe(guided(2.0, (30, 600)), *states), believe(per_image, *states), level)


def test_autoguidance_goes_from_the_weak_network_to_the_good_one_and_beyond(states):
  x_t, level, _ = states
  beliefs = {scale: believe(Autoguidance(NETWORK, MIXTURE, scale), *states) for scale in (0.0, 1.0, 3.0)}
  good = believe(NETWORK, *states)
  weak = believe(MIXTURE, x_t, level)
  assert_beliefs(beliefs[0.0], weak, level)
  assert_beliefs(beliefs[1.0], good, level)
  np.testing.assert_allclose(beliefs[3.0].eps, good.eps + 2 * (good.eps - weak.eps), atol=1e-4)  # 3 x eps's rounding


def test_classifier_free_is_one_call_of_pairs_and_keeps_the_rest_of_the_condition():
  seen = []

  def apply(params, x, time, cond):
    seen.append(jax.tree.map(np.asarray, (x, time, cond)))
    return jnp.concatenate([x * cond["label"][:, None, None, None], x + cond["low_res"]], axis=-1)

  network = Network(None, apply, TwoHeads.named(Eps(), "range"))
  x_t = jnp.asarray([1.0, 2.0]).reshape(2, 1, 1, 1)
  cond = {"label": jnp.asarray([5, 7]), "low_res": 10 * x_t}
  pred = ClassifierFree(network, 3.0, {"label": NULL})(x_t, S.level(np.array([10, 20])), cond)
  ((x, time, passed),) = seen
  np.testing.assert_array_equal(x.ravel(), [1, 1, 2, 2])
  np.testing.assert_array_equal(time, [9, 9, 19, 19])
  np.testing.assert_array_equal(passed["label"], [5, NULL, 7, NULL])
  np.testing.assert_array_equal(passed["low_res"].ravel(), [10, 10, 20, 20])
  np.testing.assert_allclose(pred.eps.ravel(), [3 + 3 * (5 - 3), 2 * (3 + 3 * (7 - 3))])
  np.testing.assert_allclose(pred.var_frac.ravel(), [(11 + 1) / 2, (22 + 1) / 2])  # the conditional half's


def test_learned_variance_scales_the_shift():
  row = jax.tree.map(lambda column: column[500], steps.gaussian(S, grid.full(1000)))
  x_t = jnp.full((2, 1, 1, 1), 0.3)
  v = jnp.asarray([0.0, 1.0]).reshape(2, 1, 1, 1)
  pred = Prediction(x_t, x_t, var_frac=v)
  kernel = ReverseKernel(learned_range)
  shifted = ShiftMean(kernel, lambda x, level, cond: jnp.ones_like(x), 2.0)(x_t, row, pred)
  shift = (shifted.mean - kernel(x_t, row, pred).mean).ravel()
  # The shift is a hundredth of the mean it is added to.
  np.testing.assert_allclose(shift, 2 * np.exp([row.log_var_min, row.log_var_max]), rtol=1e-4)


def test_changing_scale_or_interval_compiles_nothing():
  sampler = GaussianSampler(steps.gaussian(S, grid.uniform(1000, 5)), ReverseKernel())
  x_T = jnp.ones((2, 1, 1, 1))
  cond = {"label": jnp.asarray([0, 2])}
  traces = []

  def counting(params, x, time, cond=None):
    traces.append(0)
    return logits(params, x, time)

  def run(scale, interval):
    denoiser = ClassifierScore(MIXTURE, Classifier(None, counting), scale, interval)
    sample(noise.image_keys(np.arange(2)), denoiser, sampler, x_T, cond)
    return len(traces)

  assert run(1.0, (0, 1000)) == run(4.0, (0, 1000)) == run(4.0, (100, 200)) == 1


def test_classifier_in_bfloat16_gives_a_float32_gradient(states):
  half = Classifier(None, lambda params, x, time: logits(params, x, time).astype(jnp.bfloat16))
  grad = believe(half, *states)
  assert grad.dtype == jnp.float32
  # 8 bits of logits up to 60, times the slope of the softmax
  exact = believe(CLASSIFIER, *states)
  np.testing.assert_allclose(grad, exact, atol=0.02 * np.abs(exact).max())


def test_guidance_out_of_pure_noise_is_finite():
  """At alpha = 0 a network of eps says nothing of x_0; clipped, it is left to the next levels."""
  level = schedule.jsd(10).level(np.array(10))
  x_t = jnp.linspace(-2, 2, 4).reshape(4, 1, 1, 1)
  network = Network(None, lambda params, x, time, cond: jnp.sin(x))
  cond = {"label": jnp.zeros(4, jnp.int32)}
  gradient = jax.tree_util.Partial(lambda x, level, cond: jnp.ones_like(x))
  for guided in (
    ClipX0(ClassifierFree(network, 2.0, {"label": NULL})),
    ClipX0(Autoguidance(network, network, 2.0)),
    ClassifierScore(ClipX0(network), gradient, 2.0),
  ):
    assert np.isfinite(believe(guided, x_t, level, cond).x0).all()


def test_missing_labels_are_refused(states):
  x_t, level, _ = states
  with pytest.raises(UserError, match="label"):
    ClassifierFree(NETWORK, 1.0, {"label": NULL})(x_t, level)
  with pytest.raises(UserError, match="label"):
    CLASSIFIER(x_t, level, None)


# ---------------------------------------------------------------- training the classifier


def test_classifier_loss_is_the_cross_entropy_of_noisy_images():
  chain = steps.gaussian(S, grid.full(1000))
  count = 1000
  n = jnp.arange(1, 1001)
  label = jnp.arange(count) % 3
  x_0, eps = jax.random.normal(jax.random.key(0), (2, count, 1, 1, 1))
  loss, parts = NoisyClassifier(chain).given(eps, CLASSIFIER, x_0, n, {"label": label})
  log_p = jax.nn.log_softmax(logits(None, S.level(n).diffuse(x_0, eps), n - 1))
  np.testing.assert_allclose(loss, -log_p[np.arange(count), label], rtol=1e-5)
  np.testing.assert_array_equal(parts["top1"], log_p.argmax(1) == label)
  np.testing.assert_array_equal(parts["top5"], 1)  # of three classes
  for q in range(4):  # every level once
    np.testing.assert_allclose(parts[f"top1_q{q}"].mean(), parts["top1"][250 * q : 250 * (q + 1)].mean(), rtol=1e-6)
    np.testing.assert_allclose(parts[f"cross_entropy_q{q}"].mean(), loss[250 * q : 250 * (q + 1)].mean(), rtol=1e-5)


def test_quarters_of_a_chain_that_four_does_not_divide():
  chain = steps.gaussian(schedule.linear(30), grid.full(30))
  n = jnp.arange(1, 31)
  flat = Classifier(None, lambda params, x, time: jnp.zeros((len(x), 7)))
  zeros = jnp.zeros((30, 1, 1, 1))
  _, parts = NoisyClassifier(chain).given(zeros, flat, zeros, n, {"label": jnp.zeros(30, jnp.int32)})
  for q in range(4):
    np.testing.assert_allclose(parts[f"cross_entropy_q{q}"].mean(), np.log(7), rtol=1e-6)


def test_low_res_is_noised_afresh_for_each_image():
  class Shown:
    def __call__(self, keys, network, x_0, n, cond):
      return cond["low_res"], cond["label"]

  low_res = jnp.ones((2000, 2, 2, 1))
  label = jnp.arange(2000)
  keys = noise.image_keys(np.arange(2000))
  seen, passed = NoisyLowRes(Shown(), 0.3)(keys, None, None, None, {"low_res": low_res, "label": label})
  np.testing.assert_array_equal(passed, label)
  assert abs((seen - 1).std() / 0.3 - 1) < 0.03  # 4 standard errors of 8000 draws
  assert abs(np.corrcoef(seen[:-1].ravel(), seen[1:].ravel())[0, 1]) < 0.05
