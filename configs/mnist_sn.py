"""SN-DPM on the MNIST network: its second head learns E[v^2 | x_t], v what that network predicts. See mnist_npr.

ddpm-jax train --config mnist_sn --workdir runs/mnist_sn        # on runs/mnist, of ddpm-jax train --config mnist
"""

from ddpm_jax.configs.mnist_npr import on_mnist


def get_config(variant: str = ""):
  """The run; "smoke" is the same in seconds, on a backbone of mnist:smoke."""
  return on_mnist("second_moment", variant)
