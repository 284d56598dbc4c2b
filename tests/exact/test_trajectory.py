"""Dynamic programming: the authors' printed paths, every path tried by hand, and its cost in time and memory."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from ddpm_jax.diffusion import schedule, trajectory

CHAIN = schedule.linear(1000)


def toy_gamma(chain):
  """The authors' arithmetic on two Gaussians of variance 0.01 and 1, float64."""
  alpha_bar = chain.alpha_bar
  return 0.5 * sum((1 - alpha_bar) / (1 - alpha_bar + alpha_bar * v) for v in (0.01, 1.0))


@pytest.mark.parametrize(
  ("K", "path"),
  [  # printed by the authors' code
    (5, [1, 43, 94, 189, 1000]),
    (10, [1, 22, 38, 57, 80, 109, 148, 204, 296, 1000]),
    (20, [1, 13, 21, 29, 37, 45, 54, 64, 75, 87, 101, 117, 135, 156, 181, 212, 251, 304, 387, 1000]),
  ],
)
def test_dp_seg_prints_the_authors_paths(K, path):
  np.testing.assert_array_equal(trajectory.dp_seg(CHAIN, toy_gamma(CHAIN), K), [*path[::-1], 0])


def test_a_bad_tail_gets_equal_strides():
  gamma = toy_gamma(CHAIN)
  gamma[981:] = 1.0005
  assert trajectory.split(gamma, 10) == trajectory.Split(head=960, head_steps=9, tail_steps=1, bad=40)
  path = [1, 24, 43, 65, 93, 132, 188, 281, 960, 1000]
  np.testing.assert_array_equal(trajectory.dp_seg(CHAIN, gamma, 10), [*path[::-1], 0])


@pytest.mark.parametrize(
  ("K", "path"),
  [
    (5, [0, 23, 31, 38, 44, 50]),
    (10, [0, 11, 17, 22, 27, 31, 35, 39, 43, 47, 50]),
  ],
)
def test_dp_vb_prints_the_authors_paths(K, path):
  s, t = np.indices((51, 51))
  np.testing.assert_array_equal(trajectory.dp_vb((t - s) ** 2.0 * (1 + 0.1 * s), K), path[::-1])


def test_no_path_is_cheaper():
  table = np.random.default_rng(0).exponential(size=(10, 10))
  for K in range(1, 10):
    paths = [(0, *inner, 9) for inner in itertools.combinations(range(1, 9), K - 1)]
    cost = lambda path: sum(table[s, t] for s, t in itertools.pairwise(path))
    np.testing.assert_array_equal(trajectory.dp_vb(table, K)[::-1], min(paths, key=cost))


def test_among_equal_paths_the_first_minimizer_is_taken():
  """As argmin does: from the end backwards, the lowest of the equally good predecessors."""
  np.testing.assert_array_equal(trajectory.dp_vb(np.ones((9, 9)), 4), [8, 3, 2, 1, 0])


@pytest.mark.parametrize("K", [1, 2, 59, 60])
def test_every_number_of_steps_is_a_grid(K):
  chain = schedule.cosine(60)
  for gamma in (toy_gamma(chain), np.where(np.arange(61) > 57, 1.01, toy_gamma(chain))):
    path = trajectory.dp_seg(chain, gamma, K)
    assert len(path) == K + 1 and path[0] == 60 and path[-1] == 0 and (np.diff(path) < 0).all()
    assert K == 1 or path[-2] == 1


@pytest.mark.parametrize(("T", "K", "seconds", "megabytes"), [(1000, 333, 10, 50), (4000, 100, 60, 500)])
def test_large_chains_are_fast_and_small(T, K, seconds, megabytes):
  """The issue's limits are seconds for T = 1000; a minute and 1 GB for T = 4000."""
  chain = schedule.cosine(T)
  tracemalloc.start()
  start = time.monotonic()
  trajectory.dp_seg(chain, toy_gamma(chain), K)
  assert time.monotonic() - start < seconds
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < megabytes * 2**20
