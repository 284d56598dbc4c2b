"""Large NumPy work cut into pieces that run side by side, each with one BLAS thread.

The other way round, one piece at a time with several BLAS threads, these threads wait for each other at every small step:
a decomposition of 2,048 x 2,048 then takes a second on an idle machine and minutes on a busy one.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import threadpoolctl

MOST = 8  # pieces at a time: each holds some hundred MB

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
  """function(item) for all items, in their order."""
  with threadpoolctl.threadpool_limits(1), concurrent.futures.ThreadPoolExecutor(min(MOST, os.cpu_count() or 1)) as pool:
    yield from pool.map(function, items)
