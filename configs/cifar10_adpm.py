"""Analytic-DPM's networks for CIFAR-10 (Bao et al. 2022, table 2): "linear" and "cosine" schedule, 1000 steps.

FID with 10 / 25 / 50 / 100 / 200 / 400 / 1000 steps, linear: DDPM 44.45/21.83/15.21/10.94/8.23/6.43/5.11, Analytic-DDPM
34.26/11.60/7.25/5.40/4.01/3.62/4.03, DDIM 21.31/10.70/7.74/6.08/5.07/4.61/4.13, Analytic-DDIM 14.00/5.81/4.04/3.55/3.39/
3.50/3.74; cosine: 34.76/16.18/11.11/8.38/6.66/5.65/4.92, 22.94/8.50/5.50/4.45/4.04/3.96/4.31, 34.34/16.68/10.48/7.94/6.69/
5.78/4.89, 26.43/9.96/6.02/4.88/4.92/5.00/4.66. 52.5 M parameters, batch 128; of 500,000 steps the best by FID, 400,000 and
160,000, were published. Summed losses, no flips, and the network is told n = 1 ... 1000.

    ddpm-jax train  --config cifar10_adpm --workdir runs/cifar10_adpm
    ddpm-jax sample --weights cifar10-adpm-linear --seeds 0-63 --config.sampling.covariance=optimal \\
                    --config.sampling.moments=400000_n_samples_None.ms_eps.pth --config.sampling.cap_pixels=2.0
"""

from ddpm_jax.config import default
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The variant "linear" or "cosine", each also with "-smoke"."""
  schedule, smoke = variants(variant, ("linear", "cosine"))
  config = default()
  config.data.update(name="cifar10", image_size=32)
  config.schedule.name = schedule
  config.network = dict(
    name="unet_adm", channels=128, channel_mult=(1, 2, 2, 2), num_res_blocks=3, attention_resolutions=(16, 8), dropout=0.3
  )
  config.prediction.time_shift = 0
  config.loss = dict(name="simple", reduce="sum")
  config.optimizer.learning_rate = 1e-4
  config.ema.warmup = False
  config.train.update(total_steps=500_000, batch_size=128, checkpoint_every=10_000, keep_every=10_000)
  config.sampling.update(grid="uniform", steps=50, keep_eps=True, rounding="round")
  config.evaluation.last_row = "full_chain"
  return shrink(config) if smoke else config
