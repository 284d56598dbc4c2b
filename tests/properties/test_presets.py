"""Samplers by name: what --sampler, --steps, --eta and --guidance set, and that no choice of the config is in the way."""

import logging

import numpy as np
import pytest

from ddpm_jax import build, config
from ddpm_jax.build import Request, configure
from ddpm_jax.config import override
from ddpm_jax.diffusion import grid
from ddpm_jax.errors import UserError


def published(**second):
  """The config of CIFAR-10's DDPM, whose covariance is "marginal"."""
  made = config.load("cifar10_ddpm")
  with made.prediction.ignore_type():
    made.prediction.update(second)
  return made


NEEDS = {"iddpm": "range", "npr": "residual", "npr-ddim": "residual", "sn": "second_moment", "sn-ddim": "second_moment"}


@pytest.mark.parametrize("name", [name for name in build.presets() if not name.startswith("dpm_v3")])  # it needs a file
def test_every_preset_makes_a_sampler_of_the_steps_that_are_asked_for(name, tmp_path):
  made = published(second=NEEDS.get(name))
  if name.startswith("euler"):
    made.schedule.name = "vp_sde"
  configure(made, [], Request(sampler=name, steps=7))
  if name.startswith("analytic"):
    file = tmp_path / "moments.npy"
    np.save(file, np.full(1000, 0.9))
    override(made, [f"sampling.moments={file}"])
  steps = build.sampler(made).steps
  calls = {"heun": 13, "midpoint": 13, "dpm++2s": 7}  # Heun asks twice, but for the last step
  assert len(steps.left) == calls.get(name, 7)


def test_ddim_in_short_is_ddim_in_full():
  short = configure(published(), [], Request(sampler="ddim", steps=50))
  full = override(published(), ["sampling.grid=uniform", "sampling.steps=50", "sampling.eta=0"])
  ours = build.sampler(short)
  theirs = build.sampler(full)
  for field, column in vars(theirs.steps).items():
    np.testing.assert_array_equal(getattr(ours.steps, field), column) if isinstance(column, np.ndarray) else None
  assert ours.kernel == theirs.kernel and list(ours.steps.t.n) == list(grid.uniform(1000, 50)[:-1])


def test_an_explicit_assignment_wins_over_a_preset():
  made = configure(published(), ["sampling.eta=0.5", "sampling.grid=quadratic"], Request(sampler="ddim", steps=20))
  assert made.sampling.eta == 0.5 and made.sampling.grid == "quadratic" and made.sampling.steps == 20
  assert configure(published(), ["sampling.steps=20"], Request(sampler="ddpm")).sampling.grid == "uniform"


def test_what_the_config_chose_for_another_method_gives_way(caplog):
  caplog.set_level(logging.INFO)
  made = override(published(), ["sampling.eta=0"])  # which "marginal" does not allow
  assert made.sampling.covariance is None and "sampling.covariance=marginal gives way to None" in caplog.text
  made = override(made, ["sampling.covariance=marginal"])
  assert made.sampling.eta == 1
  learned = override(config.load("digits"), ["prediction.second=range", "loss.name=hybrid", "loss.weight=1.0"])
  assert build.bound_covariance(learned) == "learned_range"
  solver = override(config.load("cifar10_adpm"), ["sampling.solver=dpm++2m", "sampling.guidance.form=None"])
  assert not solver.sampling.keep_eps
  quick = configure(config.load("cifar10_iddpm"), [], Request(steps=50))
  assert quick.sampling.grid == "50" and len(build.grid(quick)) == 51


def test_another_schedule_does_not_inherit_the_arguments_of_the_old_one(caplog):
  caplog.set_level(logging.INFO)
  made = override(config.load("digits"), ["schedule.name=sigmoid"])
  assert made.schedule.to_dict() == {"name": "sigmoid", "T": 250}
  assert "dropped end=0.08, start=0.0001, which belonged to linear" in caplog.text
  made = override(config.load("digits"), ["schedule.end=0.05", "schedule.name=sigmoid"])
  assert made.schedule.to_dict() == {"name": "sigmoid", "T": 250, "end": 0.05}
  assert build.schedule(override(config.load("digits"), ["schedule.name=cosine"])).T == 250
  kept = override(config.load("digits"), ["schedule.name=linear", "schedule.T=300"])
  assert kept.schedule.to_dict() == {"name": "linear", "T": 300, "start": 1e-4, "end": 0.08}


def test_another_network_keeps_what_it_knows_and_drops_the_rest():
  made = configure(config.load("imagenet64_adm"), ["network.name=unet_ddpm", "network.groups=8"])
  assert "head_channels" not in made.network and made.network.channels == 192 and made.network.groups == 8
  with pytest.raises(UserError, match="has no field 'head_channels'"):
    build.model(configure(config.load("imagenet64_adm"), ["network.name=unet_ddpm", "network.head_channels=8"]), 3, 1000)


REFUSED = {
  "an unknown sampler": (dict(sampler="dimm"), "Sampler 'dimm' is unknown; did you mean 'ddim'"),
  "no steps": (dict(steps=0), "--steps 0 is not a number of steps"),
  "too many steps": (dict(sampler="ddim", steps=1001), "1001 steps do not fit a chain of T = 1000"),
  "a head that is not there": (dict(sampler="npr"), "second head 'residual', and this one has none"),
  "eta of a solver": (dict(sampler="dpm++2m", eta=0.5), 'sampling.eta=0.5 means nothing to the solver "dpm++2m"'),
  "guidance by nothing": (dict(guidance=2.0), "--guidance needs something that guides"),
  "two guides": (dict(classifier="a", weaker="b"), "cannot both guide"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_requests_that_cannot_be_met_are_refused(name):
  asked, sentence = REFUSED[name]
  with pytest.raises(UserError) as refusal:
    build.sampler(configure(published(), [], Request(**asked)))
  assert sentence in str(refusal.value) and len(str(refusal.value)) < 300


def test_guidance_in_short():
  made = configure(published(), [], Request(guidance=2, classifier="runs/c", sampler="ddim", steps=5))
  guidance = made.sampling.guidance
  assert (guidance.kind, guidance.scale, guidance.model) == ("classifier", 2.0, "runs/c")
  assert guidance.interval is None and guidance.form is None and guidance.step is None
  made = configure(config.load("mnist_cond"), [], Request(guidance=3))
  assert made.sampling.guidance.kind == "classifier_free" and made.sampling.guidance.scale == 3
