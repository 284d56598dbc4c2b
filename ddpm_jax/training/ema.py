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

from ddpm_jax.errors import UserError


def init(params: Any, rates: tuple[float, ...]) -> dict[str, Any]:
  """One copy of `params` per rate, keyed by str(rate).

  Raises:
    UserError: if a rate is not in [0, 1) or given twice.
  """
  for rate in rates:
    if not 0 <= rate < 1 or rates.count(rate) > 1:
      raise UserError(f"EMA rates {rates} must be distinct, at least 0 and below 1, such as (0.999, 0.9999).")
  return {str(rate): jax.tree.map(jnp.copy, params) for rate in rates}


def update(ema: dict[str, Any], params: Any, updates: jax.Array, *, warmup: bool = True) -> dict[str, Any]:
  """The averages after one more update. `updates` [] is the number of updates before it."""

  def average(rate: str, old: Any) -> Any:
    gap = 1 - float(rate)
    if warmup:
      gap = jnp.maximum(gap, 9 / (10 + updates.astype(jnp.float32)))
    return jax.tree.map(lambda e, p: e + gap * (p - e), old, params)

  return {rate: average(rate, old) for rate, old in ema.items()}
