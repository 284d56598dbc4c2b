"""DDPM++ on CIFAR-10 with the continuous VP-SDE (Song et al. 2021), in steps of 1/1000, as Extended-Analytic-DPM samples it.

61.8 M parameters, four blocks a level; the network is told 999 n / 1000. Under NPR- and SN-DPM it is the backbone of
cifar10-vpsde-npr and -sn, with 2 grey levels of noise at most in the last step (1 with DDIM).

    ddpm-jax train  --config cifar10_vpsde --workdir runs/cifar10_vpsde
    ddpm-jax sample --weights cifar10-vpsde-sn --seeds 0-63

score_sde trained it on continuous times for 950,000 steps of batch 128 with warm-up, clipping and flips; here levels are
the thousand that sampling visits.
"""

from ddpm_jax.config import default
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = default()
  config.data.update(name="cifar10", flip=True, image_size=32)
  config.schedule.name = "vp_sde"
  config.network = dict(
    name="ncsnpp", channels=128, channel_mult=(1, 2, 2, 2), num_res_blocks=4, attention_resolutions=(16,), dropout=0.1
  )
  config.prediction.update(time_scale=0.999, time_shift=0)
  config.optimizer.update(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0)
  config.ema.warmup = False
  config.train.update(total_steps=950_000, batch_size=128, checkpoint_every=10_000)
  config.sampling.update(grid="uniform", steps=50, keep_eps=True, rounding="round")
  config.evaluation.last_row = "full_chain"
  return shrink(config) if smoke else config
