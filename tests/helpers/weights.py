"""Checkpoints of one average only, as converters write them."""

from ddpm_jax.training.checkpoints import Checkpoints


def save_weights(directory, params, config, *, rate, step):
  """Writes `params` as the average of `rate`."""
  checkpoints = Checkpoints(directory)
  checkpoints.save({"ema": {rate: params}}, step, config, wait=True)
  checkpoints.close()
