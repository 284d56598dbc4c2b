"""The half of `evaluate` that compares samples with a reference: --reference, --make_reference and --captions."""

import argparse
import os

INCEPTIONS = {
  "inception_tf": "Inception of TensorFlow 2015 (DDPM, Improved DDPM, ADM)",
  "inception_torch": "pytorch-fid's (Analytic-DPM)",
}
OWN = "own"  # features of a classifier of the run's own data set


def run(args: argparse.Namespace, samples, out, fit: dict, trained=None, folder=None, how=None) -> None:
  """Runs --reference, --make_reference or --captions.

  Args:
    out: the file of the result; None: one in `folder` that holds no result of other settings.
    fit: how to resize and crop reference images.
    trained: the network that draws the samples, whose data "@test" and features "own" refer to.
    how: how the samples were drawn, for the result.
  """
  from ddpm_jax.errors import UserError
  from ddpm_jax.evaluation import evaluate, references
  from ddpm_jax.files import atomic, download
  from ddpm_jax.jobs import measure

  if not args.reference and args.num_samples not in (None, len(samples)):
    raise UserError(f"There are {len(samples):,} samples, not {args.num_samples:,}: correct --num_samples, or leave it out.")
  print(f"samples: {samples.name}\n  {len(samples):,} images, {samples.preprocessing}, {samples.sha256[:16]}…")
  options = dict(batch_size=args.batch_size or 64, folder=args.keep or download.cache_folder() / "features", progress=True)
  atomic.check(args.make_reference or out or folder / "metrics.json")
  if args.captions:
    result = _clip_score(samples, args.captions, args.clip, options)
    print(f"  CLIP score {result['clip_score']['mean']:.4f} of {len(samples):,} images with their captions")
  else:
    metrics = None if args.metrics is None else args.metrics.split(",")
    by_moments = metrics is None or any([evaluate.find(name).against == "moments" for name in metrics])
    reference = None if args.make_reference else _reference(args.reference, fit, trained)
    features = args.features or "inception_tf"
    if reference is not None and not features.startswith("inception") and not features.endswith(".npz"):
      evaluate.possible(metrics, {"features": 0, "logits": 0}, reference)  # before a classifier is trained for them
    if features == OWN:
      extractor = _own_features(trained, folder, len(samples) if by_moments else None)
    else:
      extractor = _extractor(features, args.inception, len(samples) if by_moments else None)
    print(f"features: {extractor.name}, {extractor.digest[:16]}…" + _accuracy_of(extractor))
    if args.make_reference:
      references.write(args.make_reference, references.make(samples, extractor, **options))
      print(f"Wrote {args.make_reference}: moments of {len(samples):,} images")
      return
    result = evaluate.evaluate(samples, reference, extractor, metrics=metrics, count=count(args), **options)
    _show(result)
  if how:
    result["sampling"] = how
  out = out or measure.metrics_file(folder, result)
  measure.write_json(out, result)
  print(f"Wrote {out}")


def _show(result: dict) -> None:
  about = result["reference"]
  number = "an unknown number of" if about["count"] is None else f"{about['count']:,}"
  print(f"reference: {about['name']}\n  {number} images, {about['preprocessing']}, {about['sha256'][:16]}…")
  for name, value in result["metrics"].items():
    parts = value if isinstance(value, dict) else {"": value}
    shown = (f"{part:.6g}" if isinstance(part, float) else str(part) for part in parts.values())
    print(f"  {name:17} " + ", ".join(f"{key} {part}".strip() for key, part in zip(parts, shown, strict=True)))


def _clip_score(samples, captions: str, weights: str | None, options: dict) -> dict:
  """The JSON of a CLIP score."""
  from ddpm_jax.errors import UserError
  from ddpm_jax.features import clip, clip_tokens

  try:
    with open(captions, encoding="utf-8") as file:
      texts = file.read().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{captions} cannot be read as lines of text ({error}).") from None
  net = clip.load_clip(weights)
  score = clip.clip_score(net, clip_tokens.load_tokenizer(), samples.source, texts, source=samples.sha256, **options)
  return {"clip_score": score._asdict(), "features": net.describe(), "samples": samples.describe(), "captions": captions}


def count(args: argparse.Namespace) -> int:
  """The intended number of samples."""
  from ddpm_jax.evaluation.evaluate import PUBLISHED

  return PUBLISHED if args.num_samples is None else args.num_samples


def named_set(text: str) -> tuple[str, str]:
  """("cifar10", "test") of "cifar10@test". The split is train without @, or where @ is part of a file's name."""
  name, at, split = text.rpartition("@")
  return (name, split) if at and not os.path.exists(text) else (text, "train")


def fit_of(args: argparse.Namespace, data=None) -> dict:
  """How to resize and crop images: as the flags say, else as the run with the section `data` does."""
  from ddpm_jax import sizes
  from ddpm_jax.cli.numbers import integers

  fit = {} if data is None else {"image_size": data.image_size, "crop": data.crop}
  if args.image_size:
    numbers = integers(args.image_size, "--image_size")
    fit["image_size"] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    sizes.pair(fit["image_size"])
  if args.crop:
    fit["crop"] = args.crop
  return fit


def _reference(text: str, fit: dict, trained=None):
  """The moments in the file if there are any, else its images. "@test" is a split of the data of `trained`."""
  from ddpm_jax.evaluation import image_sets, references
  from ddpm_jax.files import npz

  if text.startswith("@") and trained is not None:
    return image_sets.of_source(trained.dataset(text[1:]))
  if text.endswith(".npz"):
    arrays = npz.read_npz(text)
    return (references if "mu" in arrays else image_sets).of_arrays(text, arrays)
  return image_sets.open_set(*named_set(text), **fit)


def _extractor(name: str, weights: str | None, count: int | None):
  from ddpm_jax.config import nearest
  from ddpm_jax.errors import UserError
  from ddpm_jax.evaluation import quality
  from ddpm_jax.features import classifier, inception_weights

  if name in INCEPTIONS:
    return inception_weights.load_inception(name.removeprefix("inception_"), weights)
  if name.startswith("inception"):
    raise UserError(f"There are no features {name!r}; {nearest(name, INCEPTIONS)}")
  return classifier.restore(name) if name.endswith(".npz") else quality.classifier_for(name, count)


def _own_features(trained, folder, count: int | None):
  """A small classifier of the data that `trained` was trained on, kept with what else is measured of it."""
  from ddpm_jax.errors import UserError
  from ddpm_jax.jobs import measure

  if trained is None:
    raise UserError("--features own are those of the data set of a run: give a --workdir, or name a data set.")
  return measure.own_classifier(trained, folder, count)


def _accuracy_of(extractor) -> str:
  accuracy = extractor.describe().get("test_accuracy")
  return "" if accuracy is None else f", test accuracy {accuracy:.1%}"
