"""What guidance trades: agreement with the wanted class, precision and recall, over scales.

    python benchmarks/guidance.py --workdir runs/mnist --classifier runs/mnist_classifier \\
      --out benchmarks/guidance_classifier
    python benchmarks/guidance.py --workdir runs/mnist_cond --out benchmarks/guidance_free

Draws the same seeds at every scale, classes in turn, and asks the clean classifier of the data set (ddpm-jax evaluate
--distance trains it), which has seen neither network. Precision, recall and the Fréchet distance are in its features,
against as many test images. Writes OUT.json, OUT.md, OUT.png and OUT_samples.png, ten classes by scale. Other settings as
for ddpm-jax sample: --config.sampling.grid=uniform --config.sampling.steps=50.
"""

import argparse
import json
import pathlib

import numpy as np
from matplotlib.figure import Figure

import ddpm_jax
from ddpm_jax.data import images as pixels
from ddpm_jax.evaluation import quality
from ddpm_jax.metrics import frechet
from ddpm_jax.metrics.precision_recall import precision_recall

MEASURES = {"agreement": "class agreement", "precision": "precision", "recall": "recall", "distance": "Fréchet distance"}


def measure(net, images: np.ndarray, labels: np.ndarray, real: np.ndarray) -> dict[str, float]:
  """All MEASURES of images [N,H,W,C] that should have these labels."""
  features = [np.concatenate([np.asarray(net.features(part)) for part in np.array_split(x, 8)]) for x in (real, images)]
  logits = np.concatenate([np.asarray(net.logits(part)) for part in np.array_split(images, 8)])
  found = precision_recall(*features)
  return {
    "agreement": float((logits.argmax(1) == labels).mean()),
    "precision": found.precision,
    "recall": found.recall,
    "distance": frechet.fid(*features),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--classifier", help="a run of a noisy classifier; without, guidance is classifier-free")
  parser.add_argument("--scales", default="0,0.5,1,2,3,5,8", help="(default %(default)s)")
  parser.add_argument("--samples", type=int, default=1000, help="images per scale (default %(default)s)")
  parser.add_argument("--out", required=True, type=pathlib.Path)
  args, overrides = parser.parse_known_args()
  kind = "classifier" if args.classifier else "classifier_free"
  trained = ddpm_jax.load(args.workdir, overrides=[text.removeprefix("--config.") for text in overrides])
  train, test = (trained.dataset(split) for split in (trained.config.data.train_split, trained.config.data.test_split))
  folder = pathlib.Path(args.workdir) / "evaluation"
  folder.mkdir(exist_ok=True)
  net = quality.classifier_of(train, test, folder / "classifier.npz")
  real, truth = test.gather(np.arange(min(args.samples, len(test))))

  rows = {"real test images": measure(net, real, truth, train.gather(np.arange(len(real)))[0])}
  strips = []
  for scale in map(float, args.scales.split(",")):
    guidance = dict(kind=kind, scale=scale, model=args.classifier)
    guided = trained.changed(sampling=dict(guidance=guidance))
    labels = guided.labels(range(args.samples))
    images = guided.sample(range(args.samples), labels, progress=True)
    rows[f"{scale:g}"] = measure(net, images, labels, real)
    strips.append(images[: trained.config.data.num_classes])
    print(scale, rows[f"{scale:g}"], flush=True)

  about = {
    "guidance": kind,
    "samples": args.samples,
    "weights": trained.weights,
    "step": trained.step,
    "sampling": trained.config.sampling.to_dict(),
    "judge": net.describe(),
    "rows": rows,
  }
  args.out.with_suffix(".json").write_text(json.dumps(about, indent=2, default=str) + "\n")
  lines = ["| scale | " + " | ".join(MEASURES.values()) + " |", "|" + "---|" * (1 + len(MEASURES))]
  lines += [f"| {name} | " + " | ".join(f"{row[measure]:.3f}" for measure in MEASURES) + " |" for name, row in rows.items()]
  args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
  picture = pixels.grid(np.concatenate(strips), columns=len(strips[0]), scale=2)
  pixels.save_png(args.out.with_name(args.out.name + "_samples.png"), picture)
  plot(rows, kind, args.out.with_suffix(".png"))


def plot(rows: dict, kind: str, path: pathlib.Path) -> None:
  """Fractions over scale on the left, the Fréchet distance on the right."""
  scales = [name for name in rows if name != "real test images"]
  figure = Figure(figsize=(8.4, 3.4), layout="constrained")
  left, right = figure.subplots(1, 2)
  for name in ("agreement", "precision", "recall"):
    left.plot([float(s) for s in scales], [rows[s][name] for s in scales], "o-", label=MEASURES[name])
  left.set(xlabel=f"scale ({kind.replace('_', '-')})", ylim=(0, 1.02))
  left.legend()
  right.plot([float(s) for s in scales], [rows[s]["distance"] for s in scales], "o-", color="black")
  right.axhline(rows["real test images"]["distance"], linestyle=":", color="grey")
  right.set(xlabel="scale", ylabel="Fréchet distance (dotted: real images)")
  figure.savefig(path, dpi=110)


if __name__ == "__main__":
  main()
