"""Files of moments: ours, and the vectors of Analytic-DPM's authors, with and without PyTorch."""

import pickle

import numpy as np
import pytest

from ddpm_jax.diffusion import schedule
from ddpm_jax.diffusion.moments import Moments
from ddpm_jax.errors import UserError
from ddpm_jax.files import measurements

CHAIN = schedule.linear(100)
GAMMA = np.linspace(0, 0.999, 101, dtype=np.float32)
FOUND = Moments(np.arange(1, 101), 50, np.stack([GAMMA[1:], 1 - GAMMA[1:] / np.float64(2)]), np.ones((2, 100)))


def test_our_file_holds_everything(tmp_path):
  measurements.save_moments(tmp_path / "m.npz", FOUND, CHAIN, {"step": 7})
  again, source = measurements.load_moments(tmp_path / "m.npz", CHAIN)
  assert again.count == 50 and source == {"step": 7}
  for field in ("levels", "mean", "deviations"):
    np.testing.assert_array_equal(getattr(again, field), getattr(FOUND, field))
  np.testing.assert_allclose(measurements.gamma(tmp_path / "m.npz", CHAIN), GAMMA, rtol=1e-6)
  np.testing.assert_allclose(measurements.gamma(tmp_path / "m.npz", CHAIN, residual=True)[1:], GAMMA[1:] / 2, rtol=1e-6)
  measurements.plot_moments(again, CHAIN, tmp_path / "m.png")


@pytest.mark.parametrize("suffix", [".npy", ".pth"])
def test_vectors_come_back(tmp_path, suffix):
  path = tmp_path / f"ms_eps{suffix}"
  measurements.write_vector(path, GAMMA)
  np.testing.assert_array_equal(measurements.gamma(path, CHAIN), GAMMA)


@pytest.mark.torch
def test_pytorch_reads_ours_and_we_read_pytorchs(tmp_path):
  torch = pytest.importorskip("torch")
  measurements.write_vector(tmp_path / "ours.pth", GAMMA)
  np.testing.assert_array_equal(torch.load(tmp_path / "ours.pth", weights_only=False), GAMMA)
  torch.save(GAMMA, tmp_path / "theirs.pth")
  np.testing.assert_array_equal(measurements.read_vector(tmp_path / "theirs.pth"), GAMMA)


def test_costs_come_back(tmp_path):
  table = np.where(np.tri(101, k=-1, dtype=bool).T, 1.5, np.inf)
  measurements.save_costs(tmp_path / "c.npz", table, CHAIN, {})
  np.testing.assert_array_equal(measurements.load_costs(tmp_path / "c.npz", CHAIN), table)


def refused(act, sentence):
  with pytest.raises(UserError) as caught:
    act()
  assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_refusals(tmp_path):
  measurements.save_moments(tmp_path / "m.npz", FOUND, CHAIN, {})
  measurements.write_vector(tmp_path / "v.npy", GAMMA)
  (tmp_path / "text.npy").write_text("no numbers")
  with (tmp_path / "evil.pth").open("wb") as file:
    pickle.dump(print, file)
  measurements.save_costs(tmp_path / "c.npz", np.zeros((101, 101)), CHAIN, {})
  read = lambda name, chain=CHAIN, **how: lambda: measurements.gamma(tmp_path / name, chain, **how)
  refused(read("m.npz", schedule.linear(50)), "are of a schedule with T = 100 levels, not 50")
  refused(read("m.npz", schedule.cosine(100)), "are of another schedule: alpha_bar of level")
  refused(read("v.npy", schedule.linear(50)), "shape (101,), but a schedule of T = 50 levels needs 51 values")
  refused(read("v.npy", residual=True), "holds only E|eps_hat|^2")
  refused(read("no.npy"), "There is no file")
  refused(read("text.npy"), "is not a readable array (it does not begin like a .npy file)")
  refused(read("evil.pth"), "evil.pth")
  refused(read("c.npz"), "does not hold moments")
