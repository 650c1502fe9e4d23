"""Pieces of work on their way through a Dask cluster: every part of a lake by its worker, again where a worker is lost.

The scheduler is given about a second of work at a time: its memory does not grow with the lake, and whoever runs short gets
what is left of the others. It needs neither neuronlake nor the lake: what it unpickles are arguments and a function of
Python's own library.
"""

import operator
import queue
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import cache
from typing import Any
from uuid import uuid4

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from neuronlake.analysis.placement import place_parts
from neuronlake.store.errors import InputError
from neuronlake.store.parallel import in_place

_LOOK_SECONDS = 1.0
"""Between looks at who is there."""
_DESERTED_SECONDS = 10
"""How long to go on without any worker."""
_AHEAD_SECONDS = 1.0
"""Of work that a worker is given ahead."""
_LEAST_AHEAD, _MOST_AHEAD = 2, 128
"""Pieces that a worker is given ahead, per thread."""
_ATTEMPTS = 4
"""As Dask's own for a task whose workers die, by default (``distributed.scheduler.allowed-failures`` + 1)."""


class Run:
    """Runs one function over many arguments.

    Parameters
    ----------
    client
        ``distributed.Client``.
    look
        Gives the workers that are there, address → threads; raises when one is unfit.
    work, arguments, title, parts, whole
        See `Cluster.each`.
    """

    def __init__(
        self,
        client: Any,
        look: Callable[[], dict[str, int]],
        work: Callable[..., Any],
        arguments: Sequence[Mapping[str, Any]],
        *,
        title: str,
        parts: Sequence[int],
        whole: Collection[int],
    ):
        self._client, self._look, self._work, self._arguments = client, look, _Work(work), arguments
        self._parts, self._whole = parts, sorted(whole)
        self._name = f"{title}-{uuid4().hex[:8]}"
        self._shared: Any = None
        self._threads: dict[str, int] = {}
        self._waiting: dict[str, deque[int]] = {}  # pieces that were not given out yet, by whose they are
        self._given: dict[str, int] = {}  # how many pieces a worker was given that are not back
        self._pieces: dict[Any, tuple[int, str]] = {}  # future → place, and whom it was given to
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._rounds = self._finished = self._each = 0
        self._began = 0.0

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield (place, result) as they come."""
        if not self._arguments:
            return
        try:
            self._begin(range(len(self._arguments)))
            self._began = looked = time.monotonic()
            while self._finished < len(self._arguments):
                self._give()
                yield from self._collect()
                if time.monotonic() - looked > _LOOK_SECONDS:
                    self._see()
                    looked = time.monotonic()
        finally:
            if self._pieces and self._client.status == "running":
                self._client.cancel(list(self._pieces))
            self._pieces.clear()
            self._shared = None

    def _begin(self, places: Collection[int]) -> None:
        """Send the work to every worker, and have these pieces wait for being given out."""
        if self._rounds == _ATTEMPTS:
            raise InputError(f"all workers of {self._client.scheduler.address} were lost {_ATTEMPTS} times: see their logs")
        self._rounds += 1
        self._threads = {}
        self._see(places)
        try:
            self._shared = self._client.scatter(self._work, broadcast=True, hash=False)
        except (OSError, TimeoutError):  # one of them has just left
            self._begin(())

    def _see(self, new: Collection[int] = ()) -> None:
        """See who is there; if that changed, deal again what was not given out. Wait a while where nobody is."""
        until = time.monotonic() + _DESERTED_SECONDS
        while not (threads := self._look()):
            if time.monotonic() > until:
                raise self._deserted()
            time.sleep(0.1)
        if new or threads != self._threads:
            pending = sorted([*new, *(place for some in self._waiting.values() for place in some)])
            owners = place_parts(self._whole, threads)
            self._waiting = {address: deque() for address in threads}
            for place in pending:
                self._waiting[owners[self._parts[place]]].append(place)
        self._threads = threads

    def _give(self) -> None:
        """Fill up every worker that runs short, with pieces of its own, or else with the last ones of whoever has most."""
        spent = max(time.monotonic() - self._began, 1e-3)
        rate = self._finished / (spent * sum(self._threads.values()))  # pieces per thread and second
        self._each = int(min(max(rate * _AHEAD_SECONDS, _LEAST_AHEAD), _MOST_AHEAD))
        for own in (True, False):
            for address, threads in self._threads.items():
                room = self._each * threads - self._given.get(address, 0)
                if 2 * room < self._each * threads:
                    continue  # not short enough: few messages with many pieces each
                if own:
                    waiting = self._waiting[address]
                    places = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                else:
                    waiting = max(self._waiting.values(), key=len)
                    places = [waiting.pop() for _ in range(min(room, (len(waiting) + 1) // 2))]
                if places:
                    self._submit(address, places)

    def _submit(self, address: str, places: Sequence[int]) -> None:
        futures = self._client.map(
            operator.call,
            [self._shared] * len(places),
            [dict(self._arguments[place]) for place in places],
            key=[(self._name, self._rounds, place) for place in places],
            workers=[address],
            allow_other_workers=True,  # should it be lost, or another be idle
            pure=False,
        )
        self._given[address] = self._given.get(address, 0) + len(places)
        for place, future in zip(places, futures, strict=True):
            self._pieces[future] = place, address
            future.add_done_callback(self._ended.put)

    def _collect(self) -> Iterator[tuple[int, Any]]:
        """Wait a moment for pieces to end, and fetch their results, some at a time."""
        ended = []
        try:
            ended.append(self._ended.get(timeout=_LOOK_SECONDS))
            while len(ended) < max(self._each, 8):
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        ended = [future for future in ended if future in self._pieces]  # and of no earlier round
        try:
            results = self._gather(ended)
        except CancelledError:  # Dask gave pieces up: whoever held the work is lost
            places = [place for place, _ in self._pieces.values()]
            self._pieces.clear()
            self._given.clear()
            self._begin(places)
            return
        for future, result in zip(ended, results, strict=True):
            place, address = self._pieces.pop(future)
            self._given[address] -= 1
            self._finished += 1
            yield place, result

    def _gather(self, ended: Sequence[Any]) -> Sequence[Any]:
        """Results of pieces that have ended; those whose worker is lost before it hands them over are done again."""
        try:
            return self._client.gather(ended)  # type: ignore[no-any-return]
        except Exception:  # raised again in any case
            failed = [future for future in ended if future.status == "error"]
            if not failed:
                raise
            raise self._error(failed[0]) from None

    def _error(self, future: Any) -> BaseException:
        from distributed import KilledWorker

        error: BaseException = future.exception()
        if not isinstance(error, KilledWorker):
            return error
        arguments = self._arguments[self._pieces[future][0]]
        which = ", ".join(f"{name} {value}" for name, value in arguments.items() if isinstance(value, int | str))
        return InputError(
            f"{error.allowed_failures + 1} workers died over the same piece of work ({which}), at last "
            f"{error.last_worker.address}: see its log; one that runs out of memory is killed"
        )

    def _deserted(self) -> InputError:
        left = f"{len(self._arguments) - self._finished} of {len(self._arguments)} pieces left"
        return InputError(
            f"no worker is connected to {self._client.scheduler.address} any more, with {left}: start some and run it again"
        )


class _Work:
    """What a worker runs: called with the arguments as one mapping, by `operator.call`."""

    def __init__(self, work: Callable[..., Any]):
        self._work = work

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        _one_blas_thread()
        with in_place():  # Dask gives every core a piece: none needs threads of its own
            return self._work(**arguments)


@cache
def _one_blas_thread() -> None:
    """Let BLAS compute with the thread that calls it, as in a pass by threads, so that its sums are the same."""
    threadpool_limits(1, user_api="blas")
