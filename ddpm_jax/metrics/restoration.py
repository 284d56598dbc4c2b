"""PSNR and SSIM of restored images against the originals, per image, for pixels from 0 to 255."""

import numpy as np


def psnr(images: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratio in dB, float64 [B], of uint8 [B,H,W,C]. It is infinite for equal images."""
  error = np.mean((np.float64(images) - np.float64(others)) ** 2, axis=(1, 2, 3))
  with np.errstate(divide="ignore"):
    return 10 * np.log10(255**2 / error)


def ssim(images: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Structural similarity, float64 [B], of uint8 [B,H,W,C], 1 for equal images (Wang et al. 2004).

  As in the paper, the window is a Gaussian of 11 x 11 pixels with a standard deviation of 1.5, K1 = 0.01 and K2 = 0.03. The
  result is the mean over all windows inside the image, and over channels. Smaller images use the largest odd window.
  """
  images = np.float64(images)
  others = np.float64(others)
  side = min(11, *images.shape[1:3])
  offsets = np.arange(side - (side + 1) % 2) - (side - 1) // 2
  window = np.exp(-0.5 * (offsets / 1.5) ** 2)
  window /= window.sum()

  def mean(x: np.ndarray) -> np.ndarray:
    """Weighted means over the windows."""
    for axis in (1, 2):
      x = np.lib.stride_tricks.sliding_window_view(x, len(window), axis) @ window
    return x

  mu_a = mean(images)
  mu_b = mean(others)
  var_a = mean(images**2) - mu_a**2
  var_b = mean(others**2) - mu_b**2
  cov = mean(images * others) - mu_a * mu_b
  c_1 = (0.01 * 255) ** 2
  c_2 = (0.03 * 255) ** 2
  value = (2 * mu_a * mu_b + c_1) * (2 * cov + c_2) / ((mu_a**2 + mu_b**2 + c_1) * (var_a + var_b + c_2))
  return value.mean((1, 2, 3))
