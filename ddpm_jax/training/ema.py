"""Exponential moving averages of the parameters, at several rates.

    ema <- ema + gap (params - ema),   gap = 1 - rate                            (every reference)
                                       gap = max(1 - rate, 9 / (10 + updates))   (with warm-up)

The warm-up, rate <- min(rate, (1 + updates) / (10 + updates)), forgets the random initial weights. Without it, the initial
weights still contribute 1/e to an EMA of rate 0.9999 after 10,000 updates. Averages start as copies of the parameters.
(Ho's code copies them again at the first update. His first learning rate is 0, so the result is the same.)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.training import power_ema


def init(params: Any, rates: tuple[float, ...], widths: tuple[float, ...] = ()) -> dict[str, Any]:
  """One copy of `params` per rate, keyed by str(rate), and per relative width (power_ema.py), keyed by "power_WIDTH".

  Raises:
    UserError: if a rate is not in [0, 1) or occurs twice, or a width is not allowed.
  """
  for rate in rates:
    if not 0 <= rate < 1 or rates.count(rate) > 1:
      raise UserError(f"EMA rates {rates} must be distinct, at least 0 and below 1, such as (0.999, 0.9999).")
  power_ema.exponent(np.asarray(widths))
  names = [str(rate) for rate in rates] + [f"{power_ema.PREFIX}{width}" for width in dict.fromkeys(widths)]
  return {name: jax.tree.map(jnp.copy, params) for name in names}


def update(ema: dict[str, Any], params: Any, updates: jax.Array, *, warmup: bool = True) -> dict[str, Any]:
  """The averages after one more update. `updates` [] is the number of updates before it."""

  def average(name: str, old: Any) -> Any:
    if name.startswith(power_ema.PREFIX):
      gap = 1 - power_ema.decay(1 + updates.astype(jnp.float32), float(name.removeprefix(power_ema.PREFIX)))
      return jax.tree.map(lambda e, p: e + gap * (p - e), old, params)
    gap = 1 - float(name)
    if warmup:
      gap = jnp.maximum(gap, 9 / (10 + updates.astype(jnp.float32)))
    return jax.tree.map(lambda e, p: e + gap * (p - e), old, params)

  return {name: average(name, old) for name, old in ema.items()}
