"""Reference statistics in one .npz: moments of the features of many images, and some of the images.

The layout is that of OpenAI's reference batches: `mu` [d] and `sigma` [d, d] of the features, `mu_s` and `sigma_s` of the
spatial features (sFID), all float64, and `arr_0` uint8 [N, H, W, C], images for precision and recall. Files of pytorch-fid
have only `mu` and `sigma`. Files written here also have `meta`: the number of images, their origin and hash, and the feature
network. Other evaluators ignore it.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import image_sets
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.features.extract import Extractor, extract, outputs_of
from ddpm_jax.files import npz
from ddpm_jax.metrics.frechet import Moments

NEAR = 10_000  # images kept for precision and recall, as in OpenAI's references


@dataclasses.dataclass(frozen=True)
class Reference:
  """The reference that samples are compared with.

  Attributes:
    moments: moments of "features" and, optionally, "spatial".
    images: some of the images, or None.
    about: a description as JSON; its entry "features" describes the extractor, if known.
  """

  moments: dict[str, Moments]
  images: ImageSet | None
  about: dict[str, Any]


MOMENTS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # output of the extractor: names in the file


def make(images: ImageSet, extractor: Extractor, *, near: int = NEAR, **options: Any) -> Reference:
  """The reference of a whole set of images.

  Args:
    images: the images, all of which are used.
    extractor: computes the features.
    near: how many evenly spaced images to keep for precision and recall, at most.
    options: options of `extract`: batch_size, devices, folder, progress.
  """
  outputs = tuple(name for name in outputs_of(extractor, images.image_shape) if name in MOMENTS)
  found = extract(extractor, images.source, outputs=outputs, source=images.sha256, **options)
  kept = np.linspace(0, len(images) - 1, min(near, len(images))).round().astype(int)
  pixels, labels = images.source.gather(kept)
  some = image_sets.of_arrays(f"{len(kept)} of {images.name}", {"arr_0": pixels, "arr_1": labels})
  about = images.describe() | {"features": extractor.describe()}
  return Reference({name: Moments.of(found[name]) for name in outputs}, some, about)


def write(path: str | os.PathLike, reference: Reference) -> None:
  """Writes `reference` in OpenAI's layout."""
  arrays = {}
  if reference.images is not None:
    arrays["arr_0"] = reference.images.source.images  # type: ignore[attr-defined]  # they are Arrays
  for output, moments in reference.moments.items():
    mean, covariance = MOMENTS[output]
    arrays |= {mean: moments.mean, covariance: moments.covariance}
  npz.write(path, arrays, reference.about)


def read(path: str | os.PathLike) -> Reference:
  """The reference in a file written by `write`, OpenAI or pytorch-fid.

  Raises:
    UserError: if the file is damaged or holds no moments.
  """
  return of_arrays(path, npz.read_npz(path))


def of_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> Reference:
  """`read` for the arrays of a file that have been read already: OpenAI's files have gigabytes."""
  if "mu" not in arrays or "sigma" not in arrays:
    raise UserError(
      f"{path} contains {', '.join(arrays)}, but no mu and sigma: it is not a reference. Make one from its images "
      "with --make_reference, or use it as images."
    )
  if npz.META in arrays:
    arrays, stored = npz.verified(path, arrays)
    count = stored.get("count")
    if not (count is None or (type(count) is int and count > 1)) or not isinstance(stored.get("name"), str):
      raise UserError(f"{path} does not contain its name and number of images: make the reference again.")
    about = {"count": None, "sha256": None, "preprocessing": "not known"} | stored | {"name": f"{path} ({stored['name']})"}
  else:
    about = {"name": str(path), "count": None, "sha256": npz.digest(arrays), "preprocessing": "not known"}
  moments = {
    output: _moments(path, about["count"], arrays[mean], arrays[covariance])
    for output, (mean, covariance) in MOMENTS.items()
    if mean in arrays and covariance in arrays
  }
  return Reference(moments, image_sets.of_arrays(f"arr_0 of {path}", arrays) if "arr_0" in arrays else None, about)


def _moments(path, count, mean, covariance) -> Moments:
  if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
    raise UserError(
      f"{path} has a mean of shape {mean.shape} and a covariance of shape {covariance.shape}; [d] and [d, d] are needed."
    )
  numbers = all(np.issubdtype(array.dtype, np.floating) for array in (mean, covariance))
  if not (numbers and np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise UserError(f"{path} has moments that are not finite: download it or make it again.")
  moments = Moments(count, mean.astype(np.float64), covariance.astype(np.float64))
  if not is_covariance(moments.covariance):
    raise UserError(
      f"{path} has a covariance that is not symmetric or has negative eigenvalues: download it or make it again."
    )
  return moments


_ROUNDING = 1e-4  # tolerance for float32 covariances, relative to the largest variance


def is_covariance(matrix: np.ndarray) -> bool:
  """Whether a square matrix [d, d] is symmetric and positive semi-definite, up to rounding in float32."""
  largest = np.abs(np.diag(matrix)).max(initial=0)
  if not np.abs(matrix - matrix.T).max(initial=0) <= _ROUNDING * largest:
    return False
  try:
    np.linalg.cholesky(matrix + (_ROUNDING * largest + np.finfo(np.float64).tiny) * np.eye(len(matrix)))
  except np.linalg.LinAlgError:
    return False
  return True
