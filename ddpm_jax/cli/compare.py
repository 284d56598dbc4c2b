"""Measures images against a reference: FID, sFID, Inception score, precision and recall, KID; or against their captions.

  ddpm-jax compare --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz   as OpenAI's evaluator
  ddpm-jax compare --workdir runs/cifar10 --reference cifar10@train                    50,000 samples, drawn on the way
  ddpm-jax compare --samples cifar10@test --num_samples 10000 --reference cifar10@train
  ddpm-jax compare --workdir runs/mnist --num_samples 10000 --reference mnist@train \\
                   --features runs/mnist/evaluation/classifier.npz
  ddpm-jax compare --samples cifar10@train --make_reference cifar10_train.npz          moments, in OpenAI's layout
  ddpm-jax compare --samples samples.npz --captions captions.txt                       CLIP score, a line per image

A SET is an .npz file (arr_0, uint8 NHWC), a folder, a zip, or a data set as NAME@SPLIT. Features are kept: an interrupted
command goes on where it stopped when it is given again. The result is printed, and written as JSON.
"""

import argparse

FEATURES = {
  "inception_tf": "Inception of TensorFlow 2015 (DDPM, Improved DDPM, ADM)",
  "inception_torch": "pytorch-fid's (Analytic-DPM)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--samples", metavar="SET", help="the images to measure")
  source.add_argument("--workdir", help="draw them from a run, a converted checkpoint, or published weights")
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--reference", metavar="SET", help="images, or an .npz of moments (mu, sigma)")
  what.add_argument("--make_reference", metavar="FILE", help="write the moments of the samples to FILE instead")
  what.add_argument("--captions", metavar="FILE", help="a line of text for each sample: measure the CLIP score instead")
  parser.add_argument("--num_samples", type=int, help="that many, when you do not mean the published 50,000")
  kinds = "; ".join(f"{name}: {meaning}" for name, meaning in FEATURES.items())
  parser.add_argument("--features", default="inception_tf",
                      help=f"{kinds}; or a file of classifier features (default %(default)s)")
  parser.add_argument("--inception", metavar="FILE", help="Inception's weights (default: from the cache, fetched once)")
  parser.add_argument("--clip", metavar="FILE", help="CLIP's weights, a ViT of OpenAI's (default: ViT-B/32, fetched once)")
  parser.add_argument("--metrics", help="of fid,sfid,inception_score,precision_recall,kid (default: all that can be had)")
  parser.add_argument("--batch_size", type=int, default=64, help="images per device (default %(default)s)")
  parser.add_argument("--keep", metavar="DIR", help="where features are kept (default: features/ in the cache)")
  parser.add_argument("--out", metavar="FILE", help="the JSON (default: WORKDIR/evaluation/metrics.json, or ./metrics.json)")
  parser.add_argument("--ema", help="which average of the weights: a rate, or raw (default: the slowest)")
  parser.add_argument("--step", type=int, help="which checkpoint (default: the latest sound one)")


def run(args: argparse.Namespace) -> int:
  from ddpm_jax.cli import environment

  environment.prepare()
  import pathlib

  from ddpm_jax import fetch
  from ddpm_jax.errors import UserError
  from ddpm_jax.evaluation import evaluate, image_sets, references

  count = args.num_samples or evaluate.PUBLISHED
  if args.workdir:
    from ddpm_jax import experiment

    trained = experiment.load(args.workdir, ema=args.ema, step=args.step, overrides=args.overrides)
    samples = image_sets.of_run(trained, count)
  elif args.overrides:
    raise UserError(f"--config.{args.overrides[0]} changes how a run draws; it means nothing for --samples.")
  else:
    samples = image_sets.open_set(*_set(args.samples))
  print(f"samples: {samples.name}\n  {len(samples):,} images, {samples.preprocessing}, {samples.sha256[:16]}…")
  options = dict(batch_size=args.batch_size, folder=args.keep or fetch.cache_folder() / "features", progress=True)
  out = args.out or (pathlib.Path(args.workdir) / "evaluation/metrics.json" if args.workdir else "metrics.json")
  if args.captions:
    result = _clip_score(samples, args.captions, args.clip, options)
    _write(out, result)
    print(f"  CLIP score {result['clip_score']['mean']:.4f} of {len(samples):,} images with their captions")
    return 0

  extractor = _extractor(args.features, args.inception)
  if args.make_reference:
    references.write(args.make_reference, references.make(samples, extractor, **options))
    print(f"Wrote {args.make_reference}: moments of {len(samples):,} images, {extractor.name}")
    return 0

  reference = _reference(args.reference)
  metrics = args.metrics and args.metrics.split(",")
  result = evaluate.evaluate(samples, reference, extractor, metrics=metrics, count=count, **options)
  about = result["reference"]
  number = "an unknown number of" if about["count"] is None else f"{about['count']:,}"
  print(f"reference: {about['name']}\n  {number} images, {about['preprocessing']}, {about['sha256'][:16]}…")
  print(f"features: {extractor.name}, {extractor.digest[:16]}…")
  for name, value in result["metrics"].items():
    parts = value if isinstance(value, dict) else {"": value}
    shown = (f"{part:.6g}" if isinstance(part, float) else str(part) for part in parts.values())
    print(f"  {name:17} " + ", ".join(f"{key} {part}".strip() for key, part in zip(parts, shown, strict=True)))
  _write(out, result)
  print(f"Wrote {out}")
  return 0


def _write(path, result: dict) -> None:
  import json

  from ddpm_jax.data.atomic import writing

  with writing(path) as temporary:
    temporary.write_text(json.dumps(result, indent=2))


def _clip_score(samples, captions: str, weights: str | None, options: dict) -> dict:
  """The JSON of a CLIP score."""
  from ddpm_jax.errors import UserError
  from ddpm_jax.evaluation import clip, clip_tokens

  try:
    with open(captions, encoding="utf-8") as file:
      texts = file.read().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{captions} cannot be read as lines of text ({error}).") from None
  net = clip.load(weights)
  score = clip.clip_score(net, clip_tokens.load(), samples.source, texts, source=samples.sha256, **options)
  return {"clip_score": score._asdict(), "features": net.describe(), "samples": samples.describe(), "captions": captions}


def _set(text: str) -> tuple[str, str]:
  """("cifar10", "test") of "cifar10@test"; without @ the split is train."""
  name, _, split = text.partition("@")
  return name, split or "train"


def _reference(text: str):
  """Moments if the file holds some, else images."""
  from ddpm_jax.evaluation import image_sets, references, storage

  if text.endswith(".npz") and "mu" in storage.read_npz(text):
    return references.read(text)
  return image_sets.open_set(*_set(text))


def _extractor(name: str, weights: str | None):
  from ddpm_jax.evaluation import features, inception_weights

  if name in FEATURES:
    return inception_weights.load(name.removeprefix("inception_"), weights)
  return features.restore(name)
