"""A progress bar for compiled loops."""

import jax
import tqdm


class StepBars:
  """Shows one bar per running loop. Pass it as `progress` to samplers.sample or likelihood.bits_per_dim.

  Compiled programs hold a reference to it, so use one instance (`STEPS`): another one compiles another program.
  """

  def __init__(self):
    self._bars: dict[int, tqdm.tqdm] = {}

  def __call__(self, total: int, left: jax.Array) -> None:
    """Moves the bar of a loop of `total` steps, of which `left` remain.

    Calls can be late or out of order, and come once per device. A bar therefore only moves forward and ends once.
    """
    done = total - int(left)
    if total not in self._bars:
      if done == total > 1:
        return  # the last step, reported by another device
      self._bars[total] = tqdm.tqdm(total=total, unit="step", mininterval=1.0)
    bar = self._bars[total]
    bar.update(max(0, done - bar.n))
    if done == total:
      self._bars.pop(total).close()


STEPS = StepBars()
