"""The closed-form networks that the golden numbers were made with (tests/golden/index.json, `dummy_models`).

Each is pointwise, so the layout of images does not matter, except that a second head is concatenated on the last axis:
bring NCHW arrays to NHWC with `nhwc` first. All have the signature of a network, apply(params, x, time [B], cond); the
only parameter is the offset of `var`, so that one compiled program serves both of its meanings.
"""

import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np

_C = json.loads((pathlib.Path(__file__).parent / "golden/index.json").read_text())["dummy_models"]["coefficients"]


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


def _wide(time, x):
  return jnp.reshape(time, time.shape + (1,) * (x.ndim - 1))
