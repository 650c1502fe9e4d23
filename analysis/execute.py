"""Run independent pieces of work on one thread per core, or with Dask wherever it runs."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from typing import Any, TypeVar
from uuid import uuid4

import dask
from dask.callbacks import Callback
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.store.errors import InputError
from neuronlake.store.parallel import usable_cpus

_Result = TypeVar("_Result")
_CONNECT_SECONDS = 5
LOCAL_THREADS = ("threads", "synchronous")
"""Schedulers whose work shares this process's memory."""
_LOCAL = (*LOCAL_THREADS, "processes")
Progress = Callable[[int, int], None]
"""Called with (pieces done, pieces in all) after every piece."""


def run_all(
    work: Callable[..., _Result],
    arguments: Sequence[Mapping[str, Any]],
    *,
    scheduler: Any = None,
    blas: bool = False,
    progress: Progress | None = None,
) -> list[_Result]:
    """Return ``[work(**kwargs) for kwargs in arguments]``, computed in parallel.

    Threads suit: decompression, the compiled kernels and BLAS all release the GIL.

    Parameters
    ----------
    scheduler
        Anything ``dask.compute`` takes, or the address of a ``dask.distributed`` cluster (``tcp://…``), whose workers must
        see the lake under the same path; None means threads.
    blas
        The work calls BLAS: its threads are limited so that they and Dask's do not outnumber the cores.
    progress
        Only local schedulers report.
    """
    done = 0

    def report(*_: Any) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, len(arguments)), len(arguments))

    cpus = usable_cpus()
    with ExitStack() as stack:
        if blas:
            stack.enter_context(threadpool_limits(max(1, cpus // max(1, len(arguments))), user_api="blas"))
        if scheduler is None or scheduler == "threads":
            return _in_threads(work, arguments, cpus, report)
        if isinstance(scheduler, str) and "://" in scheduler:
            scheduler = stack.enter_context(_client(scheduler))
        elif isinstance(scheduler, str) and scheduler not in _LOCAL:
            raise InputError(
                f"unknown scheduler {scheduler!r}: known are {', '.join(_LOCAL)} and the address of a cluster (tcp://…)"
            )
        if progress is not None:
            stack.enter_context(Callback(posttask=report))
        # One object by reference and small arguments: Dask need not look into the lake nor hash it.
        task = dask.delayed(work, name=f"neuronlake-{uuid4()}", pure=False, traverse=False)
        tasks = [task(**kwargs) for kwargs in arguments]
        return list(dask.compute(*tasks, scheduler=scheduler, optimize_graph=False))


def _in_threads(
    work: Callable[..., _Result], arguments: Sequence[Mapping[str, Any]], threads: int, report: Callable[[], None]
) -> list[_Result]:
    """Do without Dask, whose graph takes 30 ms before the first piece begins.

    When a piece fails, those that have not begun do not begin, and the others have ended before anything goes on.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="neuronlake-piece") as pool:
        futures = [pool.submit(work, **kwargs) for kwargs in arguments]
        try:
            for future in as_completed(futures):
                future.result()
                report()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _client(address: str) -> Any:
    """Connect to a cluster."""
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise InputError(f"the cluster {address} needs the package distributed: pip install 'neuronlake[cluster]'") from None
    try:
        return Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {error}") from None
