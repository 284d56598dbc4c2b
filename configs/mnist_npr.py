"""NPR-DPM on the MNIST network: its second head learns E[(v - v_hat)^2 | x_t], v what that network predicts.

No paper has this row. The head of two layers trains in a third of its backbone's time; the table is made by `study`.

    ddpm-jax train   --config mnist_npr --workdir runs/mnist_npr        # on runs/mnist, of ddpm-jax train --config mnist
    ddpm-jax moments --workdir runs/mnist --images 2000 --costs marginal
    ddpm-jax study   --workdir runs/mnist --npr runs/mnist_npr --sn runs/mnist_sn --steps 10,25,50,100,200 \\
                     --trajectories even,optimal --costs runs/mnist/evaluation/costs_marginal.npz
"""

from ddpm_jax.configs.npr import second_stage


def get_config(variant: str = ""):
  """The run; "smoke" is the same in seconds, on a backbone of mnist:smoke."""
  return on_mnist("residual", variant)


def on_mnist(second: str, variant: str = ""):
  """The second stage, sized for CPUs: a faster rate and fewer steps than the authors' 500,000 at 1e-4."""
  config = second_stage(second, variant)
  config.train.backbone = "runs/mnist"
  config.optimizer.update(learning_rate=1e-3, decay="cosine")
  config.ema.rates = (0.999,)
  if variant != "smoke":
    config.train.update(total_steps=2000, checkpoint_every=1000)
  return config
