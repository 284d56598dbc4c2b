"""OCM-DPM on a finished network (Ou et al. 2025, "Improving Probabilistic Diffusion Models with Optimal Diagonal Covariance
Matching"). A second head learns the diagonal of the network's Jacobian by random probes. The network itself is frozen.

CIFAR-10 in the paper (linear schedule, K = 10/25/50/100/200): FID 24.94/9.19/5.95/4.36/3.48 and
5.32/4.63/4.25/3.97/3.78 bits/dim.

    ddpm-jax train --config ocm --config.train.backbone=runs/mnist --workdir runs/mnist_ocm

Each training step also costs one backward pass through the frozen network.
"""

from ddpm_jax.configs.npr import second_stage


def get_config(variant: str = ""):
  """The second stage. "smoke" is the same in seconds, for tests."""
  return second_stage("hessian", variant)
