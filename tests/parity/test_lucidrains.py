"""denoising-diffusion-pytorch 2.3.4: noise schedules, losses, steps and trajectories of its authors' code."""

import functools

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import GROUPS, close, close_image, stored
from reference import nhwc

from ddpm_jax import build
from ddpm_jax.convert import convert, lucidrains
from ddpm_jax.diffusion import covariance, losses, schedule, steps
from ddpm_jax.diffusion import loss_weights as weights
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.samplers import GaussianSampler
from ddpm_jax.errors import UserError

SCHEDULES = {"linear": schedule.linear, "cosine": schedule.cosine, "sigmoid": schedule.logistic}
MEANS = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}


def levels_of(args):
  return SCHEDULES[args["beta_schedule"]](args["timesteps"], **args.get("schedule_fn_kwargs", {}))


@pytest.mark.parametrize("group", families.groups("schedule/"))
def test_schedules(group):
  levels = levels_of(GROUPS[group]["args"])
  # families_index.json: float64 tables 1e-10, but 1e-6 where they take the ends of "sigmoid" in float32; float32 tables 1e-6
  rtol = 1e-6 if "sigmoid" in group else 1e-10
  np.testing.assert_allclose(levels.betas, stored(f"{group}/betas64"), rtol=rtol)
  np.testing.assert_allclose(levels.betas, stored(f"{group}/betas"), rtol=1e-6)
  rows = steps.transitions(levels, np.arange(1, levels.T + 1), np.arange(levels.T))
  x_t = rows.c_eps / rows.t.sigma
  # c_x0 - alpha c_eps / sigma cancels to the coefficient of x_0, from terms of about 1 in float32
  np.testing.assert_allclose(x_t, stored(f"{group}/posterior_mean_coef2"), rtol=2e-6, atol=1e-7)
  np.testing.assert_allclose(rows.c_x0 - rows.t.alpha * x_t, stored(f"{group}/posterior_mean_coef1"), rtol=1e-6, atol=3e-7)
  np.testing.assert_allclose(rows.var, stored(f"{group}/posterior_variance"), rtol=1e-6)


@pytest.mark.parametrize("objective", MEANS)
@pytest.mark.parametrize("group", families.groups("schedule/"))
def test_what_the_buffers_tell(group, objective):
  """Loss weights, and the schedule and objective that a checkpoint is recognized by."""
  levels = levels_of(GROUPS[group]["args"])
  mean = MEANS[objective]
  for clipped, made in ((False, weights.snr(levels, mean)), (True, weights.min_snr(levels, mean))):
    loss_weight = stored(f"{group}/loss_weight.{objective}.min_snr_{clipped}")
    # their snr is of float32 buffers: 1 - alpha_bar of the first level has lost three digits
    np.testing.assert_allclose(made[1:], loss_weight, rtol=2e-3)
    np.testing.assert_allclose(made[50:], loss_weight[49:], rtol=2e-6 if levels.T > 50 else 1e-4)
    told = lucidrains.process({"ema_model.betas": stored(f"{group}/betas"), "ema_model.loss_weight": loss_weight})
    name = "logistic" if "sigmoid" in group else GROUPS[group]["args"]["beta_schedule"]
    assert told["prediction"] == {"mean": mean}
    assert told["schedule"]["name"] == ("from_betas" if group.endswith("_kw") else name)
    np.testing.assert_allclose(
      build.process.named.make(schedule.SCHEDULES, told["schedule"], "schedule").betas, levels.betas, rtol=1e-6
    )


def test_loss_weights_of_no_objective():
  told = {"betas": stored("schedule/cosine_T50/betas")}
  with pytest.raises(UserError, match="loss_weight is that of no objective"):
    lucidrains.process(told | {"loss_weight": stored("schedule/cosine_T50/loss_weight.pred_v.min_snr_False") + 1})
  assert lucidrains.process({"betas": told["betas"] * 0.5})["schedule"]["name"] == "from_betas"
  assert lucidrains.process({}) is None


# ---------------------------------------------------------------- steps and losses


@functools.cache
def process_of(unet, beta_schedule, objective, **_):
  """(config, network) of a group's GaussianDiffusion."""
  config = families.conversion(unet).config.copy_and_resolve_references()
  name = "logistic" if beta_schedule == "sigmoid" else beta_schedule
  config.schedule = dict(name=name, T=1000)
  config.prediction.mean = MEANS[objective]
  return config, families.network_of(unet, config)


def process(group):
  args = GROUPS[group]["args"]
  return process_of(args["unet"], args["beta_schedule"], args["objective"])


def chain(config):
  """The full chain. They clamp the posterior variance of the last row, 0, at 1e-20; ours repeats that of the row before."""
  table = steps.gaussian(build.schedule(config), np.arange(1000, -1, -1))
  return table.replace(log_var_min=np.append(table.log_var_min[:-1], np.float32(np.log(1e-20))))


def one_step(group):
  """(transition, x_0, x_s) of the four steps of a group."""
  config, net = process(group)
  n = stored(f"{group}/t") + 1
  kernel = ReverseKernel(covariance.posterior if config.prediction.second is None else covariance.learned_range)
  rows = chain(config).leaving(jnp.asarray(n))
  denoise = build.denoiser(config, net)
  for k in range(len(n)):
    row = jax.tree.map(lambda column: column[k], rows)  # noqa: B023
    x = nhwc(stored(f"{group}/x")[k])
    pred = denoise(x, row.t, None)
    p = kernel(x, row, pred)
    x_s = p.draw(nhwc(stored(f"{group}/noise")[k])) if n[k] > 1 else p.mean
    yield k, p, pred.x0, x_s


@pytest.mark.parametrize("group", families.groups("p_sample/"))
def test_one_step(group):
  for k, _, x0, x_s in one_step(group):
    # x_0 of eps at the last level is divided by alpha = 0.006, and with it 1e-6 of the network's float32
    close_image(x0, nhwc(stored(f"{group}/pred_x_start")[k]), 3e-4 if "noise" in group else 1e-4)
    close_image(x_s, nhwc(stored(f"{group}/out")[k]), 1e-4)


@pytest.mark.parametrize("group", families.groups("p_sample/"))
def test_losses(group):
  config, net = process(group)
  levels = build.schedule(config)
  loss = losses.Simple(chain(config), weight=np.float32(weights.snr(levels, config.prediction.mean)))
  n = jnp.asarray(stored(f"{group}/loss_t") + 1)
  x_0 = nhwc(stored(f"{group}/loss_x_start"))
  found, _ = loss.given(nhwc(stored(f"{group}/loss_noise")), net, x_0, n)
  np.testing.assert_allclose(found, stored(f"{group}/loss"), rtol=2e-4)


@pytest.mark.parametrize("group", families.groups("learned_variance/"))
def test_learned_variance(group):
  for k, p, x0, x_s in one_step(group):
    close_image(x0, nhwc(stored(f"{group}/pred_x_start")[k]), 1e-4)
    close_image(p.mean, nhwc(stored(f"{group}/mean")[k]), 1e-4)
    close(p.log_var, nhwc(stored(f"{group}/log_variance")[k]))
    close_image(x_s, nhwc(stored(f"{group}/out")[k]), 1e-4)
  config, net = process(group)
  n = jnp.asarray(stored(f"{group}/loss_t") + 1)
  loss = losses.Hybrid(chain(config), weight=0.001)
  found, _ = loss.given(nhwc(stored(f"{group}/loss_noise")), net, nhwc(stored(f"{group}/loss_x_start")), n)
  # They clamp the probability of a pixel at 1e-15, OpenAI and we at 1e-12: up to 10 bits at the first level, times 0.001
  atol = np.where(n == 1, 0.001 * np.log2(1e3), 0)
  assert (np.abs(found - stored(f"{group}/loss")) <= 2e-4 * found + atol).all()


@pytest.mark.parametrize("group", families.groups("ddim/"))
def test_ddim(group):
  config, net = process(group)
  times = stored(f"{group}/times").astype(int)
  noise = stored(f"{group}/noise")
  sampler = GaussianSampler(steps.gaussian(build.schedule(config), times + 1, GROUPS[group]["args"]["ddim_sampling_eta"]))
  x = families.draw(build.denoiser(config, net), sampler, nhwc(noise[0]), families.by_row(noise[1:]))
  close_image(x, nhwc(stored(f"{group}/xs")[-1]))


# ---------------------------------------------------------------- a file of its Trainer


def test_a_file_that_the_trainer_wrote():
  """model-1.pt after 13 steps: the average is taken, the schedule and the objective are found."""
  file = families.GOLDEN / "families_lucidrains_trainer.pt"
  x = nhwc(stored("trainer/x"))
  time = jnp.asarray(stored("trainer/t"), jnp.float32)
  for answers, which, out in ((None, "ema/ema_model.model", "out_ema"), ("model", "model", "out_model")):
    conversion = convert.convert(file, overrides=["data.image_size=16"], weights=answers)
    assert conversion.which == which and bool(conversion.rate) == (answers is None)
    assert conversion.config.schedule.to_dict() == {"name": "logistic", "T": 1000}
    assert conversion.config.prediction.mean == "v"
    assert conversion.step == 13
    module = build.model(conversion.config, 3, None)
    close(
      jax.jit(module.apply, compiler_options={"xla_backend_optimization_level": 0})({"params": conversion.params}, x, time),
      nhwc(stored(f"trainer/{out}")),
    )
