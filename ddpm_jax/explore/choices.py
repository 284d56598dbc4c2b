"""What there is to choose from on the page, and one line for each control: what it does, with the equation of the paper."""

import dataclasses
from typing import Any

from ddpm_jax import build
from ddpm_jax.errors import UserError
from ddpm_jax.explore import settings
from ddpm_jax.explore.settings import Settings
from ddpm_jax.jobs.trained import Trained

AS_THE_SAMPLER_SAYS = ""

ABOUT = {
  "sampler": "How x_s follows from x_t: x_s = α_s x̂₀ + √(σ_s² − λ²) ε̂ + λ z (DDIM, eq. 12), or a solver of the same flow.",
  "steps": "How many of the T levels x_t = α_t x₀ + σ_t ε (DDPM, eq. 4) are visited (DDIM, section 4.2).",
  "eta": "Noise in each step: λ = η σ_s/σ_t √(1 − α_t²/α_s²). 0 is DDIM, 1 is DDPM (DDIM, eq. 16).",
  "guidance": "ε̂ = ε̂(x_t) + s (ε̂(x_t, y) − ε̂(x_t)). 0 ignores y, 1 is the network (Ho & Salimans, eq. 6, s = 1 + w).",
  "covariance": "λ² + c² Var[x₀ | x_t], where Var is 0 (posterior), σ_t² (marginal), or measured (Analytic-DPM, eq. 10).",
  "seed": "x_T and each z ~ N(0, I) come from the seed (DDPM, algorithm 2). A and B use the same seeds.",
  "last": "The seed at w = 1. The seed at the top of the page is at w = 0 (DDIM, section 5.3).",
  "label": "The class y that the network is told: ε̂(x_t, y) (Ho & Salimans, algorithm 2).",
  "weight": "x_T = (sin((1 − w)θ) x_T¹ + sin(wθ) x_T²) / sin θ, with the angle θ between both (DDIM, eq. 67).",
  "image": "An image x₀ of the test split. It goes up to x_T and down again without noise (DDIM, eq. 14).",
  "source": "An image x₀ of the test split, whose known pixels stay as they are (RePaint, eq. 8).",
  "hidden": "Pixels with m = 0: x_s = m (α_s x₀ + σ_s ε) + (1 − m) x_s (RePaint, eq. 8).",
  "resamples": "How often each stretch is drawn, going back by x_t = α x_s + √(1 − α²) z (RePaint, algorithm 1).",
  "noise": "The noise from which the hidden part is drawn (RePaint, algorithm 1).",
}


@dataclasses.dataclass(frozen=True)
class Choices:
  """What there is to choose from for one network.

  Attributes:
    samplers: names of samplers that it can use.
    covariances: names of covariances.
    T: the largest number of steps.
    classes: (name, number) pairs, or None for a network without labels.
    guides: whether guidance has an effect.
    seeds: how many images are drawn at once.
  """

  samplers: list[str]
  covariances: list[str]
  T: int
  classes: list[tuple[str, int]] | None
  guides: bool
  seeds: int

  def start(self, eta: float) -> Settings:
    """What the page shows at first: 20 steps of DDIM if the network allows it. One program serves every eta."""
    sampler = "ddim" if "ddim" in self.samplers else self.samplers[0]
    return self.settings(sampler, min(20, self.T), eta, 1.0, AS_THE_SAMPLER_SAYS)

  def settings(self, sampler: Any, steps: Any, eta: Any, guidance: Any, covariance: Any) -> Settings:
    """The settings that these values of the controls stand for. Those without effect are left out."""
    settings.one_of(sampler, self.samplers, "Sampler")
    gaussian = settings.is_gaussian(sampler)
    covariance = covariance if gaussian and covariance != AS_THE_SAMPLER_SAYS else None
    return Settings(sampler, steps, eta if gaussian else None, guidance if self.guides else None, covariance)

  def seeds_from(self, first: Any) -> list[int]:
    """The seeds of the images that are shown."""
    first = settings.whole(first, "Seed")
    return list(range(first, first + self.seeds))

  def label(self, value: Any) -> int | None:
    """The class that a value of the control stands for. None: all in turn."""
    return None if self.classes is None or value == "" else settings.whole(value, "Class")


def choices(trained: Trained, seeds: int) -> Choices:
  """What there is to choose from for this network."""
  config = trained.config
  labels = trained.labels([0])
  classes = None
  if labels is not None:
    names = config.data.class_names or range(config.data.num_classes)
    classes = [(str(name), number) for number, name in enumerate(names)]
  try:
    guides = trained.using(guidance=1.0).config.sampling.guidance.kind is not None
  except UserError:
    guides = False
  known = {*build.covariances(config), "optimal"}
  covariances = [name for name in build.COVARIANCES if name in known]
  return Choices(settings.samplers(trained), covariances, build.schedule(config).T, classes, guides, seeds)
