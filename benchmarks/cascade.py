"""Does a cascade enlarge better than bilinear interpolation? On real images, and on those of its own first stage.

    python benchmarks/cascade.py --workdir runs/mnist_14 --upsampler runs/mnist_sr --out benchmarks/cascade

Fréchet distances to real images in the features of the data set's own classifier, which it has for ddpm-jax evaluate
--distance, and in how many of the enlarged real images that classifier finds the right class. Writes OUT.json, OUT.md and
OUT.png: small images, enlarged bilinearly, by the network, and the real ones. Overrides (--config.sampling.steps=50 …)
are for both stages.
"""

import argparse
import json
import pathlib

import jax
import numpy as np

import ddpm_jax
from ddpm_jax.data import images as pixels
from ddpm_jax.evaluation import quality


def bilinear(images: np.ndarray, size: int) -> np.ndarray:
  """uint8 [B,h,w,C] -> [B,size,size,C]."""
  shape = (len(images), size, size, images.shape[-1])
  return np.asarray(jax.image.resize(images.astype(np.float32), shape, "linear").round().clip(0, 255).astype(np.uint8))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, help="the first stage")
  parser.add_argument("--upsampler", required=True, help="the second")
  parser.add_argument("--samples", type=int, default=1000, help="images of each kind (default %(default)s)")
  parser.add_argument("--out", required=True, type=pathlib.Path)
  args, overrides = parser.parse_known_args()
  overrides = [text.removeprefix("--config.") for text in overrides]
  base, upsampler = (ddpm_jax.load(run, overrides=overrides) for run in (args.workdir, args.upsampler))
  size = upsampler.image_shape[0]
  seeds = range(args.samples)
  train, test = (upsampler.dataset(split) for split in (upsampler.config.data.train_split, upsampler.config.data.test_split))
  folder = pathlib.Path(args.upsampler) / "evaluation"
  folder.mkdir(exist_ok=True)
  judge = quality.classifier_of(train, test, folder / "classifier.npz")
  real, labels = test.gather(np.asarray(seeds))
  reference = train.gather(np.arange(min(len(train), 20 * args.samples)))[0]

  reduced = np.asarray(pixels.area(real, base.image_shape[0])).round().clip(0, 255).astype(np.uint8)
  drawn = base.sample(seeds, progress=True)
  kinds = {
    "real test images": real,
    "real, reduced, enlarged bilinearly": bilinear(reduced, size),
    "real, reduced, enlarged by the network": upsampler.sample(seeds, low_res=reduced, progress=True),
    "first stage, enlarged bilinearly": bilinear(drawn, size),
    "first stage, enlarged by the network": upsampler.sample(seeds, low_res=drawn, progress=True),
  }
  rows = {}
  for name, images in kinds.items():
    found = np.concatenate([np.asarray(judge.logits(part)) for part in np.array_split(images, 8)]).argmax(1)
    rows[name] = {"distance": quality.distances(judge, images, reference).samples}
    if name.startswith("real"):
      rows[name]["right class"] = float((found == labels).mean())
    print(name, rows[name], flush=True)

  about = {
    "samples": args.samples,
    "steps": [base.step, upsampler.step],
    "sampling": base.config.sampling.to_dict(),
    "judge": judge.describe(),
    "rows": rows,
  }
  args.out.with_suffix(".json").write_text(json.dumps(about, indent=2, default=str) + "\n")
  lines = ["| images | Fréchet distance | right class |", "|---|---|---|"]
  lines += [f"| {name} | {row['distance']:.1f} | {row.get('right class', '')} |" for name, row in rows.items()]
  args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
  strips = [repeated(reduced, size), *(kinds[name] for name in list(kinds)[1:3]), real]
  strips += [repeated(drawn, size), *(kinds[name] for name in list(kinds)[3:])]
  picture = pixels.grid(np.concatenate([strip[:16] for strip in strips]), columns=16, scale=2)
  pixels.save_png(args.out.with_suffix(".png"), picture)


def repeated(images: np.ndarray, size: int) -> np.ndarray:
  """Every pixel repeated, to show small images beside large ones."""
  times = size // images.shape[1]
  return images.repeat(times, 1).repeat(times, 2)


if __name__ == "__main__":
  main()
