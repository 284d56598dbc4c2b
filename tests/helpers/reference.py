"""The experiments behind the golden numbers: their closed-form networks, stored noise, and arguments in our terms.

The networks (tests/golden/index.json, `dummy_models`) are pointwise, so the layout of images does not matter, except
that a second head is concatenated on the last axis: bring NCHW arrays to NHWC with `nhwc` first. All have the signature
of a network, apply(params, x, time [B], cond); the only parameter is the offset of `var`.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion import covariance, grid, prediction, schedule, second_heads, steps
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.transforms import ClipX0

_C = json.loads((pathlib.Path(__file__).parents[1] / "golden/index.json").read_text())["dummy_models"]["coefficients"]


def poly(params, x, time, cond=None):
  """a x cos(t / b) + c x^2: an eps or x_0 of no particular sense; trajectories need clipping."""
  c = _C["poly"]
  return c["a"] * x * jnp.cos(_wide(time, x) / c["b"]) + c["c"] * x**2


def stable(params, x, time, cond=None):
  """x cos(t / b2) + c2 sin(2 x): trajectories stay bounded without clipping."""
  c = _C["stable"]
  return x * jnp.cos(_wide(time, x) / c["b2"]) + c["c2"] * jnp.sin(2 * x)


def var(params, x, time, cond=None):
  """voff + amp sin(kx x + t / kt): v of a learned range (voff = 0) or a log-variance (voff = -5)."""
  c = _C["var"]
  return params + c["amp"] * jnp.sin(c["kx"] * x + _wide(time, x) / c["kt"])


def npr(params, x, time, cond=None):
  """n0 (1 + sin(kx x + t / kt)): a head for E[(eps - eps_hat)^2]."""
  c = _C["npr"]
  return c["n0"] * (1 + jnp.sin(c["kx"] * x + _wide(time, x) / c["kt"]))


def sn(params, x, time, cond=None):
  """s0 + s1 sin(kx x + t / kt): a head for E[eps^2]."""
  c = _C["sn"]
  return c["s0"] + c["s1"] * jnp.sin(c["kx"] * x + _wide(time, x) / c["kt"])


@functools.cache  # the same function object for the same heads, so that jit does not compile anew
def two_heads(mean, second):
  """A network with both outputs side by side on the last axis."""
  return lambda params, x, time, cond=None: jnp.concatenate([head(params, x, time, cond) for head in (mean, second)], -1)


def named(model: str):
  """The network that a group's args call "poly", "stable+var" and so on."""
  heads = [{"poly": poly, "stable": stable, "var": var, "npr": npr, "sn": sn}[name] for name in model.split("+")]
  return two_heads(*heads) if len(heads) == 2 else heads[0]


def nhwc(x: np.ndarray) -> np.ndarray:
  """[..., C, H, W] -> [..., H, W, C]."""
  return np.moveaxis(x, -3, -1)


@struct.dataclass
class Stored:
  """The noise of a recorded run: draws [K,B,...] in sampling order."""

  draws: jax.Array

  def __call__(self, row, x):
    return jnp.asarray(self.draws)[len(self.draws) - 1 - row.left]


# How OpenAI's enums and Ho's strings are called here. x_prev depends on the chain.
MEANS = {
  "EPSILON": lambda table: prediction.Eps(),
  "START_X": lambda table: prediction.X0(),
  "PREVIOUS_X": prediction.x_prev,
  "eps": lambda table: prediction.Eps(),
  "xstart": lambda table: prediction.X0(),
  "xprev": prediction.x_prev,
}
COVARIANCES = {
  "FIXED_SMALL": covariance.posterior,
  "FIXED_LARGE": covariance.marginal,
  "LEARNED_RANGE": covariance.learned_range,
  "LEARNED": covariance.learned_diagonal,
  "fixedsmall": covariance.posterior,
  "fixedlarge": covariance.marginal,
  "learned": covariance.learned_diagonal,
}
SECOND_HEADS = {"LEARNED_RANGE": "range", "LEARNED": "log_var", "learned": "log_var"}
OFFSETS = {"range": 0.0, "log_var": -5.0}


@struct.dataclass
class Experiment:
  """A process of OpenAI's code: the table of its chain, the network, and its reverse kernel."""

  steps: steps.GaussianSteps
  network: prediction.Network
  kernel: ReverseKernel

  def denoiser(self, clip: bool):
    """What p_mean_variance believes. A network of x_prev is never clipped: that would move its mean."""
    return ClipX0(self.network) if clip and not isinstance(_first(self.network), prediction.XPrev) else self.network


def experiment(table, mean: str, var: str, model: str = "poly", time=prediction.TimeScale()) -> Experiment:
  """mean and var in the words of either code; a second head is added to the model where the variance is learned."""
  parameterization = MEANS[mean](table)
  params = None
  if kind := SECOND_HEADS.get(var):
    parameterization = second_heads.TwoHeads.named(parameterization, kind)
    params = np.float32(OFFSETS[kind])
    model = model.removesuffix("+var") + "+var"
  network = prediction.Network(params, named(model), parameterization, time)
  return Experiment(table, network, ReverseKernel(COVARIANCES[var]))


def openai(args: dict, eta: float | None = None) -> Experiment:
  """The experiment of a group's args (`create_gaussian_diffusion` of OpenAI's two repositories)."""
  T = args["T"]
  spec = args.get("timestep_respacing")
  levels = schedule.SCHEDULES[args["schedule_name"]](T)
  table = steps.gaussian(levels, grid.sections(T, spec) if spec else grid.full(T), 1.0 if eta is None else eta)
  model = args.get("model", "poly").removesuffix("+var")
  time = prediction.TimeScale(1000 / T if args["rescale_timesteps"] else 1.0)
  return experiment(table, args["model_mean_type"], args["model_var_type"], model, time)


def _first(network):
  """The parameterization of the first head."""
  return getattr(network.parameterization, "mean", network.parameterization)


def _wide(time, x):
  return jnp.reshape(time, time.shape + (1,) * (x.ndim - 1))


def coupled(x, t):
  """The model `coupled` of the methods_* numbers: an eps that mixes neighboring pixels. x [B,C,H,W]; t is a scalar."""
  return (
    x * (0.15 + 0.78 * jnp.sin(t / 640.0))
    + 0.1 * jnp.sin(2 * x + t / 120.0)
    + 0.12 * jnp.sin(x + jnp.roll(x, 1, 3) - jnp.roll(x, 1, 2))
  )
