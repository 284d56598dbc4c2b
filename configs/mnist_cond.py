"""The `mnist` run with classes, of which a tenth is hidden in training: for classifier-free guidance (Ho & Salimans 2022).

ddpm-jax train  --config mnist_cond --workdir runs/mnist_cond
ddpm-jax sample --workdir runs/mnist_cond --seeds 0-99 --classes 3,5 --config.sampling.guidance.scale=2
ddpm-jax sample --workdir runs/mnist_cond --seeds 0-99 --config.sampling.guidance.kind=None          no guidance
"""

from ddpm_jax.configs import mnist


def get_config(variant: str = ""):
  """The run; "smoke" is the same in a minute, on the embedded digits."""
  config = mnist.get_config(variant)
  config.train.update(class_conditional=True, label_dropout=0.1)
  if variant != "smoke":
    config.train.total_steps = 3000
  config.sampling.guidance.update(kind="classifier_free", scale=2.0)
  return config
