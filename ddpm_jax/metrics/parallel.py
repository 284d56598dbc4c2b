"""Runs pieces of NumPy work in parallel, each with one BLAS thread.

With several BLAS threads per piece instead, these threads wait for each other at every small step: a decomposition of
2,048 x 2,048 takes a second on an idle machine and minutes on a busy one.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import threadpoolctl

MOST = 8  # pieces at a time: each takes some hundred MB

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
  """Yields function(item) for all items, in order."""
  with threadpoolctl.threadpool_limits(1), concurrent.futures.ThreadPoolExecutor(min(MOST, os.cpu_count() or 1)) as pool:
    yield from pool.map(function, items)
