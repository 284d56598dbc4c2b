"""Figures of noise schedules: the numbers that they draw, and the files that the command writes."""

import numpy as np
from PIL import Image

from ddpm_jax.cli import main
from ddpm_jax.diffusion import schedule
from ddpm_jax.evaluation import schedule_plots


def test_the_variances_agree_at_the_end_and_differ_at_the_start():
  linear = schedule.linear(1000)
  ratio = schedule_plots.posterior_over_beta(linear)
  betas = np.linspace(1e-4, 0.02, 1000)
  kept = np.cumprod(1 - betas)
  np.testing.assert_allclose(ratio[1:], (1 - kept[:-1]) / (1 - kept[1:]), rtol=1e-9)  # float64, two routes
  assert ratio[0] == 0  # the last step of sampling has no posterior variance
  assert ratio[-1] > 0.999


def test_noised_images_begin_clean_and_end_in_noise():
  images = np.full((1, 16, 16, 1), 200, np.uint8)
  rows = schedule_plots.noised(schedule.linear(1000), images, 5)
  assert rows.shape == (1, 5, 16, 16, 1)
  np.testing.assert_allclose(rows[0, 0], 200, atol=1)  # truncation to 8 bits
  spread = rows[0].reshape(5, -1).std(1)
  assert (np.diff(spread[:4]) > 0).all()


def test_the_command_writes_three_figures(tmp_path, capsys):
  assert main.run(["figures", "schedule", "--T", "50,100", "--out", str(tmp_path)]) == 0
  for name in ("variances", "alpha_bar", "noised"):
    with Image.open(tmp_path / f"{name}.png") as picture:
      assert min(picture.size) > 200
  assert main.run(["figures", "schedule", "--schedules", "cosin", "--out", str(tmp_path)]) == 2
  assert "did you mean 'cosine'" in capsys.readouterr().err
