"""Improved DDPM on LSUN bedroom, 256x256 pixels: FID 4.24 with 1000 steps (ADM, table 5), 6.02 with 90 (Analytic-DPM).

113.7 M parameters, 1.2 M steps of batch 128 at learning rate 1e-4; "bs64" is the other published run, 2.4 M steps at 2e-5
(of batch 64 by its name, 128 by the README). One head, no scale and shift, linear schedule of 1000 steps.

    ddpm-jax train  --config lsun_iddpm --workdir runs/lsun_iddpm
    ddpm-jax sample --weights lsun-bedroom-iddpm --seeds 0-15
"""

from ddpm_jax.config import default
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The run "bs128" or "bs64", each also with "-smoke"."""
  which, smoke = variants(variant, ("bs128", "bs64"))
  config = default()
  config.data.update(name="lsun_bedroom256", image_size=256)
  config.network = dict(
    name="unet_adm",
    channels=128,
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=(16,),
    num_heads=1,
    scale_shift=False,
  )
  config.prediction.second = "range"
  config.loss = dict(name="hybrid", weight=1.0)
  config.optimizer.learning_rate = 1e-4
  config.ema.warmup = False
  config.train.update(total_steps=1_200_000, batch_size=128, checkpoint_every=10_000)
  if which == "bs64":
    config.optimizer.learning_rate = 2e-5
    config.train.update(total_steps=2_400_000, batch_size=64)
  config.sampling.batch_size = 16
  return shrink(config) if smoke else config
