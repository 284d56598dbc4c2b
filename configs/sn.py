"""SN-DPM on a finished network (Bao et al. 2022): a second head learns E[eps^2 | x_t]; the network itself stays.

CIFAR-10 in the paper (linear schedule, K = 10/25/50/100/200): FID 24.06/6.91/4.63/3.67/3.31 for SN-DDPM,
12.19/4.28/3.39/3.23/3.22 for SN-DDIM. Its bits/dim are high, 30.79/11.83/7.13/5.24/4.39: it is made for quality.

    ddpm-jax train --config sn --config.train.backbone=runs/mnist --workdir runs/mnist_sn

ImageNet-64 and LSUN use the complex head, --config.network.complex=True.
"""

from ddpm_jax.configs.npr import second_stage


def get_config(variant: str = ""):
  """The second stage; "smoke" is the same in seconds, for tests."""
  return second_stage("second_moment", variant)
