"""Threads for reading, and for waiting.

Decompression and the compiled kernels release the GIL: one thread per core keeps all cores busy.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_inside = threading.local()
_WAITING = 16  # requests at once


def usable_cpus() -> int:
    """Cores this process may run on (a container's share, where the system tells)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ordered(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int | None = None, ahead: int = 2
) -> Iterator[_Result]:
    """Yield ``work(item)`` in the order of the items, computed by several threads.

    At most `ahead` results per thread wait to be taken, so that memory is bounded however many items there are. Called
    from within such work it runs in place: a pool whose threads wait for the pool would never end. The first error is
    raised where its result would have been; what has not begun by then does not begin.

    Parameters
    ----------
    threads
        By default one per core, from a pool that is kept; 1 runs in place.
    """
    count = usable_cpus() if threads is None else threads
    if count <= 1 or getattr(_inside, "work", False):
        yield from map(work, items)
        return
    pool = _pool(os.getpid()) if threads is None else ThreadPoolExecutor(count, thread_name_prefix="neuronlake-read")
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_marked, work, item))
            if len(waiting) > ahead * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        if threads is not None:
            pool.shutdown(wait=True)


@contextmanager
def in_place() -> Iterator[None]:
    """Let every `map_ordered` of this thread run in place: its caller is one of many that share the cores."""
    before = getattr(_inside, "work", False)
    _inside.work = True
    try:
        yield
    finally:
        _inside.work = before


def map_waiting(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield ``work(item)`` in the order of the items, of work that waits for other machines: many at once."""
    pool, waiting = waiting_pool(), deque[Future[_Result]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= 2 * _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def waiting_pool() -> ThreadPoolExecutor:
    """Threads for requests to other machines. What they run must not hand them more work, or wait for it."""
    return _waiting_pool(os.getpid())


def _marked(work: Callable[[_Item], _Result], item: _Item) -> _Result:
    _inside.work = True
    return work(item)


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:  # noqa: ARG001  (a forked child has none of its parent's threads)
    return ThreadPoolExecutor(usable_cpus(), thread_name_prefix="neuronlake-read")


@lru_cache(maxsize=1)
def _waiting_pool(process: int) -> ThreadPoolExecutor:  # noqa: ARG001
    return ThreadPoolExecutor(_WAITING, thread_name_prefix="neuronlake-wait")
