"""P2 weighting on FFHQ, 256x256 pixels (Choi et al. 2022), by a small ADM that samples in 1000 steps.

    ddpm-jax sample --weights ffhq-p2 --seeds 0-15
    ddpm-jax train  --config ffhq_p2 --workdir runs/ffhq_p2

The network and its sampling are ADM's. The loss is ADM's with the square weighted by 1 / (k + snr)^gamma; the paper has
k = 1 and gamma = 1 or 0.5 (`--config.loss.mse_weight.gamma=0.5`). The 500,000 training steps are not the authors' number.
"""

from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants
from ddpm_jax.configs.imagenet64_adm import adm


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = adm(256, channel_mult=(1, 1, 2, 2, 4, 4))
  config.data.name = "./ffhq256"
  config.network.update(channels=128, num_res_blocks=1, attention_resolutions=(16,))
  config.loss.mse_weight = dict(name="p2", gamma=1.0, k=1.0)
  config.optimizer.learning_rate = 2e-5
  config.train.update(total_steps=500_000, batch_size=8, class_conditional=False)
  config.sampling.grid = "full"
  return shrink(config) if smoke else config
