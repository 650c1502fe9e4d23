"""Run independent pieces of work on one thread per core, or with Dask wherever it runs."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import dask
from dask.callbacks import Callback
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import map_ordered, usable_cpus
from neuronlake.store.scan import Tile

if TYPE_CHECKING:
    from neuronlake.analysis.cluster import Cluster

_Result = TypeVar("_Result")
LOCAL_THREADS = (None, "threads", "synchronous")
"""Schedulers whose work shares this process's memory."""
_LOCAL = ("threads", "synchronous", "processes")
Progress = Callable[[int, int], None]
"""Called with (pieces done, pieces in all) after every piece."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which part of a lake each piece reads, so that a cluster gives the same part to the same worker every time."""

    source: LakeSource | None
    """The lake, which every worker must see."""
    own: Sequence[int]
    """Of every piece."""
    whole: Collection[int]
    """All that there are, asked for or not."""
    others: Sequence[LakeSource] = ()
    """Further lakes that every worker must see."""

    @classmethod
    def of_columns(cls, source: LakeSource, columns: Sequence[tuple[int, int]], width: int) -> "Parts":
        """Pieces that read some neurons of a layer in all blocks: (layer, first neuron), `width` neurons to a part."""
        each = -(-source.neurons // width)
        own = [source.layers.index(layer) * each + first // width for layer, first in columns]
        return cls(source=source, own=own, whole=range(len(source.layers) * each))

    @classmethod
    def of_blocks(cls, source: LakeSource, blocks: Sequence[int]) -> "Parts":
        """Pieces that read whole blocks, or some layers of them."""
        return cls(source=source, own=blocks, whole=list(source.blocks))


def run_all(
    work: Callable[..., _Result],
    arguments: Sequence[Mapping[str, Any]],
    *,
    parts: Parts | None = None,
    scheduler: Any = None,
    blas: bool = False,
    progress: Progress | None = None,
) -> list[_Result]:
    """Return ``[work(**kwargs) for kwargs in arguments]``, computed in parallel; see `run_each`."""
    found = dict(run_each(work, arguments, parts=parts, scheduler=scheduler, blas=blas, progress=progress))
    return [found[place] for place in range(len(arguments))]


def run_each(
    work: Callable[..., _Result],
    arguments: Sequence[Mapping[str, Any]],
    *,
    parts: Parts | None = None,
    scheduler: Any = None,
    blas: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, _Result]]:
    """Yield (place, ``work(**arguments[place])``) as they come, computed in parallel.

    Threads suit: decompression, the compiled kernels and BLAS all release the GIL.

    Parameters
    ----------
    work
        For a cluster it must be serialisable; whatever lake it holds is opened by the workers, under the same path.
    arguments
        For a cluster: numbers, strings and arrays.
    parts
        What each piece reads; by default every piece reads something else.
    scheduler
        Anything ``dask.compute`` takes, a `Cluster` or the address of one (``tcp://…``); None means threads.
    blas
        The work calls BLAS: its threads are limited so that they and Dask's do not outnumber the cores.

    Raises
    ------
    InputError
        When there is no such scheduler, or `Cluster` refuses.
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
            found = _in_threads(work, arguments, cpus)
        elif (cluster := stack.enter_context(connected(scheduler))) is not None:
            named = parts or Parts(source=None, own=range(len(arguments)), whole=range(len(arguments)))
            title = getattr(getattr(work, "func", work), "__name__", "piece").strip("_")
            found = cluster.each(
                work, arguments, title=title, parts=named.own, whole=named.whole, lakes=[named.source, *named.others]
            )
        else:
            with Callback(posttask=report):  # Dask returns all at once
                yield from _with_dask(work, arguments, scheduler)
            return
        for place, result in found:
            report()
            yield place, result


def run_in_order(
    work: Callable[..., _Result],
    arguments: Sequence[Mapping[str, Any]],
    *,
    parts: Parts,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> Iterator[_Result]:
    """Yield ``work(**kwargs) for kwargs in arguments``, computed in parallel.

    In threads, work is done only so far ahead as results are taken.
    """
    if scheduler in LOCAL_THREADS:
        threads = 1 if scheduler == "synchronous" else None
        for place, result in enumerate(map_ordered(lambda kwargs: work(**kwargs), arguments, threads=threads, ahead=1)):
            if progress is not None:
                progress(place + 1, len(arguments))
            yield result
        return
    early: dict[int, _Result] = {}
    following = 0
    for place, result in run_each(work, arguments, parts=parts, scheduler=scheduler, progress=progress):
        early[place] = result
        while following in early:
            yield early.pop(following)
            following += 1


def scan_all(
    lake: Lake,
    kernel: Callable[[Tile], _Result],
    *,
    layers: Sequence[int],
    blocks: Sequence[int],
    scheduler: Any = None,
) -> Iterator[_Result]:
    """Yield what `Lake.scan` does, in the same order, from wherever the scheduler runs it.

    Parameters
    ----------
    kernel
        For a cluster it must be serialisable.
    scheduler
        As for `run_each`.
    """
    if scheduler in LOCAL_THREADS:
        yield from lake.scan(kernel, layers=layers, blocks=blocks, threads=1 if scheduler == "synchronous" else None)
        return
    shards = [{"layer": layer, "block": block} for layer in layers for block in blocks]

    def scan_shard(layer: int, block: int) -> list[_Result]:
        return list(lake.scan(kernel, layers=[layer], blocks=[block], threads=1))

    parts = Parts.of_blocks(lake, [shard["block"] for shard in shards])
    for results in run_in_order(scan_shard, shards, parts=parts, scheduler=scheduler):
        yield from results


@contextmanager
def connected(scheduler: Any) -> "Iterator[Cluster | None]":
    """Give the cluster that a scheduler is, connected for as long as it takes; None where it is none.

    Raises
    ------
    InputError
        When it is an unknown name, or `Cluster` refuses.
    """
    if isinstance(scheduler, str) and scheduler not in _LOCAL and "://" not in scheduler:
        raise InputError(
            f"unknown scheduler {scheduler!r}: known are {', '.join(_LOCAL)} and the address of a cluster (tcp://…)"
        )
    # Whoever has a cluster, or a client, has imported what makes them.
    ours, theirs = (sys.modules.get(name) for name in ("neuronlake.analysis.cluster", "distributed"))
    if ours is not None and isinstance(scheduler, ours.Cluster):
        yield scheduler
    elif isinstance(scheduler, str if theirs is None else (str, theirs.Client)) and scheduler not in _LOCAL:
        from neuronlake.analysis.cluster import Cluster

        with Cluster(scheduler) as cluster:
            yield cluster
    else:
        yield None


def _with_dask(
    work: Callable[..., _Result], arguments: Sequence[Mapping[str, Any]], scheduler: Any
) -> Iterator[tuple[int, _Result]]:
    # One object by reference and small arguments: Dask need not look into the lake nor hash it.
    task = dask.delayed(work, name=f"neuronlake-{uuid4()}", pure=False, traverse=False)
    tasks = [task(**kwargs) for kwargs in arguments]
    yield from enumerate(dask.compute(*tasks, scheduler=scheduler, optimize_graph=False))


def _in_threads(
    work: Callable[..., _Result], arguments: Sequence[Mapping[str, Any]], threads: int
) -> Iterator[tuple[int, _Result]]:
    """Do without Dask, whose graph takes 30 ms before the first piece begins.

    When a piece fails, those that have not begun do not begin, and the others have ended before anything goes on.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="neuronlake-piece") as pool:
        places = {pool.submit(work, **kwargs): place for place, kwargs in enumerate(arguments)}
        try:
            for future in as_completed(list(places)):
                yield places.pop(future), future.result()
                del future
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
