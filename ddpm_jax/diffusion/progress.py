"""A progress bar that a compiled loop can move; nothing of it is compiled in unless asked for."""

import functools

import jax
import tqdm


def report(left: jax.Array, total: int) -> None:
  """Inside a traced loop: `left` steps of `total` are still to come."""
  jax.debug.callback(functools.partial(_move, total), left)


_bars: dict[int, tqdm.tqdm] = {}


def _move(total: int, left: jax.Array) -> None:
  """Callbacks may come late, out of order, or once per device: a bar only ever goes forward, and ends once."""
  done = total - int(left)
  if total not in _bars:
    if done == total > 1:
      return  # another device's last word
    _bars[total] = tqdm.tqdm(total=total, unit="step", mininterval=1.0)
  bar = _bars[total]
  bar.update(max(0, done - bar.n))
  if done == total:
    _bars.pop(total).close()
