"""The config of the notebooks' short variants: a network of one level on the embedded digits, compiled in seconds."""

from ddpm_jax.configs import digits


def get_config(variant: str = ""):
  """The quickstart's in miniature."""
  config = digits.get_config("smoke")
  config.network.update(channel_mult=(1,), attention_resolutions=())
  return config
