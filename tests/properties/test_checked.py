"""Every typo and impossible value is refused in one sentence before the first step; so is what would change nothing."""

import json

import pytest

from ddpm_jax import build, config, fields
from ddpm_jax.build import configure
from ddpm_jax.config import default, from_dict, override
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import train

HYBRID = ("prediction.second=range", "loss.name=hybrid")

REFUSED = {  # assignments to digits:smoke, and a part of the sentence
  "a solver": (["sampling.solver=nope"], "sampling.solver 'nope' is unknown"),
  "a clipping": (["sampling.clip=x1"], "sampling.clip = 'x1' should be one of x0, dynamic, none"),
  "a rounding": (["sampling.rounding=up"], "sampling.rounding = 'up' should be one of truncate, round"),
  "a grid": (["sampling.grid=unifrom"], "did you mean 'uniform'?"),
  "a grid of bits/dim": (["evaluation.grid=ful"], "did you mean 'full'?"),
  "a covariance": (["sampling.covariance=optimum"], "did you mean 'optimal'?"),
  "a covariance of bits/dim": (["evaluation.covariance=posterio"], "did you mean 'posterior'?"),
  "a decoder": (["evaluation.last_row=last"], "should be one of chain, full_chain"),
  "eta": (["sampling.eta=2"], "eta = 2.0"),
  "more steps than levels": (["sampling.grid=uniform", "sampling.steps=21"], "21 steps do not fit a chain of T = 20"),
  "more sections than levels": (["sampling.grid=30"], "cannot give 30"),
  "batches of no samples": (["sampling.batch_size=0"], "sampling.batch_size = 0 should be at least 1"),
  "batches of no bits/dim": (["evaluation.batch_size=-1"], "should be at least 1"),
  "a kind of guidance": (["sampling.guidance.kind=classifer"], "should be one of classifier, classifier_free, autoguidance"),
  "guidance by no run": (["sampling.guidance.kind=autoguidance"], "needs sampling.guidance.model"),
  "guidance without null labels": (["sampling.guidance.kind=classifier_free"], "knows the null label"),
  "a form of guidance": (
    ["sampling.guidance.kind=classifier", "sampling.guidance.model=x", "sampling.guidance.form=man"],
    "should be one of mean, score",
  ),
  "an empty interval": (
    ["sampling.guidance.kind=classifier", "sampling.guidance.model=x", "sampling.guidance.interval=(9,1)"],
    "is empty",
  ),
  "an interval above all levels": (
    ["sampling.guidance.kind=classifier", "sampling.guidance.model=x", "sampling.guidance.interval=(30,40)"],
    "holds no level",
  ),
  "a covariance of a head that is not there": (["sampling.covariance=learned_range"], 'the second head "range"'),
  "bits/dim by a head that is not there": (["evaluation.covariance=learned_diagonal"], 'the second head "log_var"'),
  "a cap of nothing": (["sampling.cap_pixels=0"], "sampling.cap_pixels = 0.0 should be above 0"),
  "a test split": (["data.test_split=nope"], "data.test_split = 'nope' cannot be opened"),
  "a training split": (["data.train_split=trian"], "trian"),
  "a crop": (["data.crop=center"], "crop"),
  "a handling of bad images": (["data.corrupt=ignore"], "should be one of error, skip"),
  "hidden labels": (
    ["train.class_conditional=True", "train.label_dropout=2"],
    "label_dropout = 2.0 should be at",
  ),
  "nothing but hidden labels": (
    ["train.class_conditional=True", "train.label_dropout=1.0"],
    "label_dropout = 1.0 should be at least 0 and below 1",
  ),
  "another number of classes": (["data.num_classes=3"], "digits has 10 classes"),
  "hidden labels of nobody": (["train.label_dropout=0.1"], "train.label_dropout=0.1 means nothing"),
  "noise on no images": (["train.low_res_noise=0.1"], "means nothing without low-resolution images"),
  "no residual blocks": (["network.num_res_blocks=0"], "network.num_res_blocks = 0 should be at least 1"),
  "no groups": (["network.groups=0"], "network.groups = 0 should be at least 1"),
  "no channels": (["network.channels=0"], "network.channels = 0 should be at least 1"),
  "levels that are a number": (["network.channel_mult=2"], "should be a tuple or a list, such as (1, 2)"),
  "a level without channels": (["network.channel_mult=(0,1)"], "network.channel_mult = (0, 1) should be above 0"),
  "a dropout of all": (["network.dropout=1.0"], "network.dropout = 1.0 should be at least 0 and below 1"),
  "a policy of remat": (["network.remat=some"], "remat"),
  "an attention": (["network.attention=flash"], "attention"),
  "a time that stands still": (["prediction.time_scale=0"], "prediction.time_scale = 0.0 should be above 0"),
  "a prediction": (["prediction.mean=epsilon"], "prediction.mean 'epsilon' is unknown"),
  "a second head": (["prediction.second=rang"], "rang"),
  "a head that the loss does not train": (["prediction.second=range"], "set loss.name=hybrid"),
  "a log_var that the loss does not train": (["prediction.second=log_var"], "does not train the head"),
  "an NPR head that the loss does not train": (["prediction.second=residual"], "set loss.name=second_head"),
  "a head under a fixed covariance": ([*HYBRID, "loss.covariance=posterior"], "leave loss.covariance out"),
  "a loss of a head that is not there": (["loss.name=second_head"], "set prediction.second"),
  "a variance that is not there": (["loss.name=hybrid"], 'set prediction.second = "range"'),
  "a weight below 0": ([*HYBRID, "loss.weight=-1"], "loss.weight = -1 should be above 0"),
  "a head that nothing trains": ([*HYBRID, "loss.weight=0"], "loss.weight = 0 should be above 0"),
  "an argument of another loss": (["loss.weight=1.0"], "has no field 'weight'"),
  "a reduction": (["loss.reduce=median"], "median"),
  "an argument of another schedule": (["schedule.max_beta=0.9"], "has no field 'max_beta'"),
  "one end of a schedule": (["schedule.start=None"], "takes both ends"),
  "no levels": (["schedule.T=1"], "schedule.T = 1 should be at least 2"),
  "half a level": (["schedule.T=20.5"], "schedule.T=20.5 should be an integer"),
  "an argument of another time sampler": (["time_sampler.kept=5"], "has no field 'kept'"),
  "a learning rate": (["optimizer.learning_rate=0"], "learning_rate"),
  "a decay": (["optimizer.decay=cosin"], "cosin"),
  "a warm-up longer than the run": (["optimizer.warmup_steps=4"], "4"),
  "an average that forgets nothing": (["ema.rates=(1.0,)"], "1.0"),
  "batches of nothing": (["train.batch_size=0"], "train.batch_size = 0 should be at least 1"),
  "a batch that devices do not divide": (["train.per_device_batch=0"], "should be at least 1"),
  "previews of nothing": (["train.preview_images=0"], "should be at least 1"),
  "previews of no steps": (["train.preview_steps=0"], "should be at least 1"),
  "no checkpoints kept": (["train.keep=0"], "train.keep = 0 should be at least 1"),
  "a negative seed": (["seed=-1"], "seed = -1 should be at least 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_cannot_work_is_refused_before_its_first_step(name):
  assignments, sentence = REFUSED[name]
  with pytest.raises(UserError) as refusal:
    train.prepare(configure(config.load("digits:smoke"), assignments)).arguments()
  said = str(refusal.value)
  assert sentence in said and "\n" not in said and len(said) < 300, said


FREE = ("train.class_conditional=True", "train.label_dropout=0.1", "sampling.guidance.kind=classifier_free")

IDLE = {
  "eta of a solver": (["sampling.solver=heun", "sampling.grid=uniform", "sampling.steps=5", "sampling.eta=0.5"], "heun"),
  "a cap of a solver": (
    ["sampling.solver=heun", "sampling.grid=uniform", "sampling.steps=5", "sampling.cap_pixels=2"],
    "heun",
  ),
  "steps of no cap": (["sampling.cap_steps=2"], "without a cap"),
  "costs of another grid": (["sampling.costs=x.npz"], "dp_vb"),
  "an eps that nothing moves": (["sampling.clip=none", "sampling.keep_eps=True"], "where nothing is clipped"),
  "a range where nothing is clipped": (["sampling.clip=none", "sampling.clip_range=2"], 'sampling.clip="none"'),
  "a quantile of fixed clipping": (["sampling.clip_quantile=0.9"], "set sampling.clip=dynamic"),
  "a largest threshold of fixed clipping": (["sampling.clip_max=2"], "set sampling.clip=dynamic"),
  "a cap on steps without noise": (["sampling.eta=0", "sampling.cap_pixels=2"], "at eta = 0"),
  "a projection of linear guidance": ([*FREE, "sampling.guidance.norm=2"], "set sampling.guidance.rule=apg"),
  "a parallel part of linear guidance": ([*FREE, "sampling.guidance.parallel=1"], "set sampling.guidance.rule=apg"),
  "a rescaling of linear guidance": ([*FREE, "sampling.guidance.rescale=0.2"], "set sampling.guidance.rule=rescaled"),
  "the fading of nothing": ([*FREE, "sampling.guidance.fade=0.5"], "set sampling.guidance.perturbed"),
  "blocks that nothing perturbs": ([*FREE, "sampling.guidance.blocks=('up',)"], "perturbed_attention"),
  "a share of embedded data": (["data.holdout=0.5"], "not a folder or zip"),
  "labels of embedded data": (["data.labels=folders"], "not a folder or zip"),
  "a spread that eps does not know": (["prediction.sigma_data=0.3"], "set prediction.mean=edm"),
  "classes that follow from the data": (["network.num_classes=3"], "follows from data and labels"),
  "widths of averages that are not kept": (["ema.widths=(0.05,0.1)"], "set train.keep_every"),
  "the scale of no guidance": (["sampling.guidance.scale=2"], "without guidance"),
  "a guide of classifier-free guidance": (
    ["sampling.guidance.kind=classifier_free", "sampling.guidance.model=runs/x"],
    "without a second network",
  ),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_would_change_nothing_is_refused(name):
  assignments, sentence = IDLE[name]
  with pytest.raises(UserError, match="means nothing") as refusal:
    configure(config.load("digits:smoke"), assignments)
  assert sentence in str(refusal.value)


def test_a_run_can_be_sampled_with_perturbed_attention():
  run = configure(config.load("mnist:smoke"), ["sampling.guidance.kind=perturbed_attention"])
  build.check(run)


ABSURD = {
  "data.image_size": 100_000,
  "data.channels": 10**9,
  "data.num_classes": 10**9 + 1,
  "schedule.T": 10**9,
  "network.channels": 10**9,
  "network.num_res_blocks": 10**9,
  "sampling.batch_size": 10**12,
  "sampling.steps": 10**9,
  "train.batch_size": "many",
  "sampling.clip": 3,
  "data.flip": None,
}


@pytest.mark.parametrize("path", ABSURD)
def test_a_checkpoint_of_absurd_sizes_is_refused(path):
  stored = json.loads(json.dumps(config.load("digits").to_dict()))
  section, name = path.split(".")
  stored[section][name] = ABSURD[path]
  with pytest.raises(UserError, match="The checkpoint's config cannot be used: " + path):
    from_dict(stored)


def test_a_damaged_config_of_a_checkpoint_is_one_sentence():
  with pytest.raises(UserError, match="is damaged: its section 'data'"):
    from_dict({"data": 5})
  with pytest.raises(UserError, match="has a section 'dta'"):
    from_dict({"dta": {}})


def test_every_field_is_declared_once_and_says_what_it_means():
  made = default().to_dict()
  for path, field in fields.FIELDS.items():
    node = made
    for name in path.split("."):
      node = node[name]
    assert node == field.default and field.about
    field.check(path, field.default) if path != "train.total_steps" else None


def test_heads_by_number_can_be_had_from_the_command_line():
  made = configure(config.load("imagenet64_adm"), ["network.head_channels=None", "network.num_heads=8"])
  assert build.model(made, 3, 1000).heads(384) == 8


@pytest.mark.parametrize("name", [name for name in config.available() if name not in ("npr", "sn", "mnist_npr", "mnist_sn")])
def test_every_config_passes(name):
  build.check(config.load(name))


def test_the_published_schedules_and_solvers_pass():
  for name in ("cosine", "sigmoid", "quad", "const", "warmup", "vp_sde"):
    build.check(configure(config.load("cifar10_ddpm"), [f"schedule.name={name}"]))
  for name in build.SOLVERS:
    if name.startswith("dpm_v3"):  # which needs a file of trajectories
      continue
    changes = ["schedule.name=vp_sde"] if name.startswith("euler") else []
    steps = [] if name == "gaussian" else ["sampling.steps=10"]
    build.check(configure(config.load("cifar10_ddpm"), [*changes, f"sampling.solver={name}", *steps]))
  build.check(override(config.load("cifar10_ddpm"), ["sampling.covariance=optimal"]))  # whose moments are measured later
