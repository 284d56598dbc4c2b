"""NPR-DPM on a finished network (Bao et al. 2022, "Estimating the Optimal Covariance with Imperfect Mean ..."): a second
head learns E[(eps - eps_hat)^2 | x_t], the variance that the network's mean really needs; the network itself stays.

CIFAR-10 in the paper (linear schedule, K = 10/25/50/100/200): FID 32.35/10.55/6.18/4.52/3.57 for NPR-DDPM,
13.34/5.38/3.95/3.53/3.42 for NPR-DDIM, 5.40/4.64/4.25/3.98/3.79 bits/dim. 500,000 steps of a head of two layers.

    ddpm-jax train --config npr --config.train.backbone=runs/mnist --workdir runs/mnist_npr

Data, levels and network are those of the backbone. ImageNet-64 and LSUN use this simple head too.
"""

from ddpm_jax.config import default
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The second stage; "smoke" is the same in seconds, for tests."""
  return second_stage("residual", variant)


def second_stage(second: str, variant: str = ""):
  """The authors' training of the head `second`: "residual", "second_moment" or "hessian"."""
  _, smoke = variants(variant)
  config = default()
  config.network = dict(name="two_headed", complex=False)
  config.prediction.second = second
  config.loss = dict(name="second_head")
  config.optimizer.learning_rate = 1e-4
  config.train.update(total_steps=500_000, batch_size=128, checkpoint_every=5000)
  # 10 steps need all the help of their covariance; 2 grey levels: Analytic-DPM section 5, for DDPM on linear schedules
  config.sampling.update(grid="uniform", steps=50, covariance="optimal", cap_pixels=2.0)
  config.evaluation.update(grid="uniform", steps=50, last_row="full_chain")
  if smoke:
    config.train.update(total_steps=4, batch_size=16, checkpoint_every=2, log_every=2, preview_images=4)
    config.sampling.steps = config.evaluation.steps = 5
  return config
