"""DDPM on CelebA-HQ, 256x256 pixels (Ho et al. 2020, appendix B). The paper shows its samples and gives no FID.

114 M parameters, 500,000 steps of batch 64; on a TPU v3-8 at 2.2 steps a second. As LSUN's, with flips.

    ddpm-jax train  --config celebahq_ddpm --workdir runs/celebahq
    ddpm-jax sample --workdir runs/celebahq --seeds 0-63
"""

from ddpm_jax.configs import lsun_ddpm
from ddpm_jax.configs._published import shrink
from ddpm_jax.configs._variants import variants


def get_config(variant: str = ""):
  """The config; "smoke" is a variant that runs in seconds, for tests."""
  _, smoke = variants(variant)
  config = lsun_ddpm.get_config()
  config.data.update(name="celeba_hq256", flip=True)
  config.train.total_steps = 500_000
  return shrink(config) if smoke else config
