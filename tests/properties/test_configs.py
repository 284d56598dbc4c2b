"""Every config of a published model: it is complete, and its small variant makes a training step and a sampler."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax import build, configs
from ddpm_jax import config as config_files
from ddpm_jax.configs.digits import VARIANTS as VARIANTS_OF_DIGITS
from ddpm_jax.convert import registry
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import train

FOLDER = pathlib.Path(configs.__file__).parent
PUBLISHED = sorted(path.stem for path in FOLDER.glob("[a-z]*.py") if "_published" in path.read_text())
VARIANTS = [f"{name}:smoke" for name in PUBLISHED if name != "consistency"] + [
  "consistency:imagenet64_edm-smoke",
  "cifar10_iddpm:vlb-smoke",
  "imagenet64_iddpm:cond-smoke",
  "imagenet256_adm:uncond-smoke",
  "lsun_adm:horse_nodropout-smoke",
  "cifar10_adpm:cosine-smoke",
]
# one of each kind of network, loss and sampler of levels: tracing takes a second each
TRACED = (
  "celeba64_ddim",
  "cifar10_iddpm:vlb",
  "cifar10_vpsde",
  "imagenet64_adm",
  "imagenet256_adm_upsampler",
  "imagenet_classifier",
)


@pytest.mark.parametrize("spec", VARIANTS)
def test_small_variants_of_published_configs_make_a_step_and_a_sampler(spec):
  config = config_files.load(spec)
  run = train.prepare(config)
  build.sampler(run.config) if not build.is_classifier(config) else build.loss(run.config)
  if not spec.startswith(TRACED):
    return
  info = run.source.info
  count = config.train.batch_size
  small = config.data.low_res_size or 1
  of_size = lambda size: jax.ShapeDtypeStruct((count, size, size, info.channels), jnp.uint8)
  everything = {"label": jax.ShapeDtypeStruct((count,), jnp.int32), "low_res": of_size(small)}
  batch = {"image": of_size(info.image_size)} | {name: everything[name] for name in build.conditions(run.config)}
  state = jax.eval_shape(run.init)
  after, _ = jax.eval_shape(run.step, state, batch)
  assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)


@pytest.mark.parametrize("variant", VARIANTS_OF_DIGITS)
def test_variants_of_digits(variant):
  config = config_files.load(f"digits:{variant}-smoke")
  build.loss(config)
  build.sampler(config)
  build.bound_covariance(config)
  assert config.schedule.name == ("cosine" if variant.startswith("cosine") else "linear")


def test_consistency_models_are_sampled_and_not_trained():
  config = config_files.load("consistency:smoke")
  build.sampler(config)
  with pytest.raises(UserError, match="Consistency models are sampled here, not trained"):
    train.prepare(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_complete_and_belong_to_a_file(name):
  config = config_files.load(name)
  assert config.train.total_steps > 0 and config.data.image_size and config.ema.warmup in (True, False)
  text = (FOLDER / f"{name}.py").read_text()
  assert f"--config {name}" in text  # the command to paste
  used = {spec.partition(":")[0] for e in registry.PUBLISHED.values() for spec in (e.config_name, e.backbone or "")}
  assert name in used or name == "celebahq_ddpm"  # whose weights were never converted by pesser


def test_unknown_variants_are_refused():
  with pytest.raises(UserError, match="no variant 'church'; choose from bedroom, cat, horse"):
    config_files.load("lsun_adm:church")
