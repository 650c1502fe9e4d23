"""Work on a Dask cluster: every part of a lake by the worker that caches it, and again where a worker is lost.

The scheduler is given a few seconds of work at a time: its memory does not grow with the lake, and who is idle gets what is
left of the others. It needs neither neuronlake nor the lake: what it unpickles are numbers and functions of Python's library.
"""

import operator
import queue
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from neuronlake.analysis.placement import place_parts
from neuronlake.analysis.source import VERSIONED
from neuronlake.store.create import read_spec
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.parallel import in_place

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECT_SECONDS = 5
_WORKERS_SECONDS = 10  # to wait for the first worker, or for one after the last was lost
_LOOK_SECONDS = 1.0  # between looks at who is there
_AHEAD_SECONDS = 1.0  # of work that a worker is given ahead
_LEAST_AHEAD, _MOST_AHEAD = 2, 128  # pieces per thread
_ATTEMPTS = 4  # as Dask's own for a task whose workers die (distributed.scheduler.allowed-failures + 1)
_PACKAGES = (*VERSIONED, "distributed")


class Cluster:
    """A connection to a Dask cluster whose workers were found fit for the work.

    Parameters
    ----------
    address
        Of the scheduler (``tcp://…``), or a connected ``distributed.Client``, which stays open.
    say
        Called with remarks for the user.

    Raises
    ------
    InputError
        When distributed is not installed, no scheduler answers within 5 seconds, no worker is there after 10, or one has
        other versions than this process.
    """

    def __init__(self, address: "str | Client", *, say: Callable[[str], None] = lambda message: None):
        self._owned = isinstance(address, str)
        self._client: Client = _connect(address) if isinstance(address, str) else address
        self.address = str(self._client.scheduler.address)  # type: ignore[union-attr]
        """Of the scheduler."""
        self._checked: set[str] = set()
        try:
            if not self._threads():
                say(f"waiting for workers at {self.address}")
            self._wait_for_workers()
            self._check_versions()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. The cluster stays."""
        if self._owned:
            self._client.close()

    @property
    def dashboard(self) -> str | None:
        """Link to the scheduler's dashboard; None where it has none."""
        services = self._client.scheduler_info(n_workers=0)["services"]
        return str(self._client.dashboard_link) if "dashboard" in services else None

    def each(
        self,
        work: Callable[..., Any],
        arguments: Sequence[Mapping[str, Any]],
        *,
        title: str,
        parts: Sequence[int],
        whole: Collection[int],
        lakes: Collection[Any] = (),
    ) -> Iterator[tuple[int, Any]]:
        """Yield (place, ``work(**arguments[place])``) as they come.

        A piece whose worker is lost is done again by another, four times at most; an error that the work raises is raised
        here, and what has not begun by then does not begin.

        Parameters
        ----------
        work
            Sent to every worker once. What it holds of a lake is its path: the worker opens it.
        arguments
            Numbers, arrays, strings: the scheduler unpickles them.
        title
            What the dashboard calls the pieces.
        parts, whole
            Part of the lake that each piece reads, and all that there are: see `place_parts`.
        lakes
            Lakes that the workers must see; others than `Lake` are sent with the work.

        Raises
        ------
        InputError
            When a worker does not see a lake, workers die over a piece again and again, none is left for 10 seconds, or the
            scheduler is gone.
        """
        yield from _Run(self, work, arguments, title, parts, whole, [lake for lake in lakes if isinstance(lake, Lake)]).results()

    # ---- for a run ------------------------------------------------------------------------------------------------

    @property
    def client(self) -> "Client":
        """Dask's connection."""
        return self._client

    def workers(self, lakes: Sequence[Lake], seen: set[str]) -> dict[str, int]:
        """Return who is there, address → threads; those not in `seen` are asked whether they see the lakes, and added."""
        threads = self._threads()
        new = sorted(threads.keys() - seen)
        if new:
            self._check_versions()
            self._check_lakes(new, lakes)
            seen.update(new)
        return threads

    def _threads(self) -> dict[str, int]:
        try:
            return {str(address): int(count) for address, count in self._client.nthreads().items()}
        except (OSError, TimeoutError, RuntimeError) as error:  # CommClosedError is an OSError, a closed client's a RuntimeError
            raise InputError(f"the Dask scheduler at {self.address} is gone ({error}): run the command again") from None

    def _wait_for_workers(self) -> None:
        until = time.monotonic() + _WORKERS_SECONDS
        while not self._threads():
            if time.monotonic() > until:
                raise InputError(
                    f"no worker is connected to the Dask scheduler at {self.address} after {_WORKERS_SECONDS} s: start some "
                    f"with `dask worker {self.address}`"
                )
            time.sleep(0.1)

    def _check_versions(self) -> None:
        """Results record the versions that computed them: those of this process, so that all must have the same."""
        found = self._client.get_versions(packages=list(_PACKAGES))
        mine = _comparable(found["client"])
        for who, theirs, names in [
            (f"the scheduler at {self.address}", found["scheduler"], ("python", "dask", "distributed")),
            *((f"worker {worker}", versions, tuple(mine)) for worker, versions in sorted(found["workers"].items())),
        ]:
            others = _comparable(theirs)
            for name in names:
                if others.get(name) is None and mine[name] is not None:
                    raise InputError(f"{who} lacks {name}, here {mine[name]}: install the same packages everywhere")
                if others.get(name) != mine[name]:
                    raise InputError(
                        f"{who} has {name} {others.get(name)}, this process {mine[name]}: install the same versions everywhere"
                    )

    def _check_lakes(self, workers: list[str], lakes: Sequence[Lake]) -> None:
        expected = {str(lake.path.absolute()): lake.fingerprint for lake in lakes}
        answers = self._client.run(_fault, expected, workers=workers, on_error="return")
        for worker, answer in sorted(answers.items()):
            if isinstance(answer, ImportError):
                raise InputError(f"worker {worker} cannot import neuronlake: {answer}")
            if isinstance(answer, OSError):  # it has just left
                continue
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                raise InputError(f"worker {worker} does not see the lake as this process does: {answer}")


def _connect(address: str) -> "Client":
    try:
        from distributed import Client
        from distributed.versions import VersionMismatchWarning
    except ModuleNotFoundError:
        raise InputError(f"the cluster {address} needs the package distributed: pip install 'neuronlake[cluster]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # an error of ours, see `_check_versions`
            return Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {error}") from None


def _comparable(versions: Mapping[str, Any]) -> dict[str, str | None]:
    packages = versions["packages"]
    python = str(packages["python"]).replace(" ", "").replace(",", ".").strip("()").split(".")
    return {"python": ".".join(python[:2]), **{name: packages.get(name) for name in _PACKAGES}}


def _fault(lakes: Mapping[str, str]) -> str | None:
    """Say what is wrong with lakes (path → fingerprint) where this runs, which is a worker."""
    for path, fingerprint in lakes.items():
        try:
            found = read_spec(Path(path)).fingerprint
        except (InputError, OSError) as error:
            return str(error)
        if found != fingerprint:
            return f"{path} is another lake there (fingerprint {found[:12]}…, here {fingerprint[:12]}…)"
    return None


class _Work:
    """What a worker runs: called with the arguments as one mapping, by `operator.call`."""

    def __init__(self, work: Callable[..., Any]):
        self._work = work

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        with in_place():  # Dask gives every core a piece: none needs threads of its own
            return self._work(**arguments)


class _Run:
    """Pieces on their way through a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        work: Callable[..., Any],
        arguments: Sequence[Mapping[str, Any]],
        title: str,
        parts: Sequence[int],
        whole: Collection[int],
        lakes: Sequence[Lake],
    ):
        self._cluster, self._work, self._arguments, self._lakes = cluster, _Work(work), arguments, lakes
        self._parts, self._whole = parts, sorted(whole)
        self._name = f"{title}-{uuid4().hex[:8]}"
        self._shared: Any = None
        self._seen: set[str] = set()
        self._threads: dict[str, int] = {}
        self._waiting: dict[str, deque[int]] = {}  # by owner
        self._given: dict[str, int] = {}  # how many pieces a worker has
        self._pieces: dict[Future[Any], tuple[int, str]] = {}  # place, and whom it was given to
        self._done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._rounds = 0
        self._began = 0.0
        self._finished = 0

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield (place, result) as they come."""
        if not self._arguments:
            return
        self._look(range(len(self._arguments)))
        self._share_work()
        self._began = looked = alive = time.monotonic()
        try:
            while self._finished < len(self._arguments):
                self._give()
                for place, future in self._collect():
                    yield place, future
                now = time.monotonic()
                if now - looked > _LOOK_SECONDS:
                    looked = now
                    if self._look():
                        alive = now
                    elif now - alive > _WORKERS_SECONDS:
                        raise InputError(
                            f"all workers of {self._cluster.address} are gone for {_WORKERS_SECONDS} s, with "
                            f"{len(self._arguments) - self._finished} of {len(self._arguments)} pieces left: run the command again"
                        )
        finally:
            if self._pieces and self._cluster.client.status == "running":
                self._cluster.client.cancel(list(self._pieces))  # type: ignore[no-untyped-call]
            self._pieces.clear()
            self._shared = None

    def _look(self, new: Collection[int] = ()) -> bool:
        """See who is there and deal what was not given out, if that changed; return whether anybody is."""
        threads = self._cluster.workers(self._lakes, self._seen)
        if threads and (new or threads != self._threads):
            pending = sorted([*new, *(place for some in self._waiting.values() for place in some)])
            owners = place_parts(self._whole, threads)
            self._waiting = {address: deque() for address in threads}
            for place in pending:
                self._waiting[owners[self._parts[place]]].append(place)
        self._threads = threads
        return bool(threads)

    def _share_work(self) -> None:
        try:
            self._shared = self._cluster.client.scatter(self._work, broadcast=True, hash=False)  # type: ignore[no-untyped-call]
        except TimeoutError:
            raise InputError(f"no worker of {self._cluster.address} takes work: see their logs") from None
        self._rounds += 1

    def _give(self) -> None:
        """Fill up every worker that is running short: with its own pieces, or else with the last ones of the busiest."""
        spent = time.monotonic() - self._began
        rate = self._finished / max(spent * sum(self._threads.values()), 1e-3)  # pieces per thread and second
        each = int(min(max(rate * _AHEAD_SECONDS, _LEAST_AHEAD), _MOST_AHEAD))
        for own in (True, False):
            for address, threads in self._threads.items():
                room = each * threads - self._given.get(address, 0)
                if 2 * room < each * threads and self._given.get(address, 0):
                    continue  # not short enough: few messages with many pieces each
                if own:
                    source = self._waiting[address]
                    places = [source.popleft() for _ in range(min(room, len(source)))]
                else:
                    source = max(self._waiting.values(), key=len)
                    places = [source.pop() for _ in range(min(room, (len(source) + 1) // 2))]
                if places:
                    self._submit(address, places)

    def _submit(self, address: str, places: Sequence[int]) -> None:
        futures = self._cluster.client.map(
            operator.call,
            [self._shared] * len(places),
            [dict(self._arguments[place]) for place in places],
            key=[(self._name, self._rounds, place) for place in places],
            workers=[address],
            allow_other_workers=True,  # who is idle, or there when that one is lost
            pure=False,
        )
        self._given[address] = self._given.get(address, 0) + len(places)
        for place, future in zip(places, futures, strict=True):
            self._pieces[future] = place, address
            future.add_done_callback(self._done.put)  # type: ignore[no-untyped-call]

    def _collect(self) -> list[tuple[int, Any]]:
        """Wait a moment for finished pieces and fetch their results."""
        ended = []
        try:
            ended.append(self._done.get(timeout=_LOOK_SECONDS))
            while True:
                ended.append(self._done.get_nowait())
        except queue.Empty:
            pass
        ended = [future for future in ended if future in self._pieces]  # none of an earlier round
        for future in ended:
            if future.status == "error":
                self._raise(future)
        if any(future.status != "finished" for future in ended):
            self._begin_again()
            return []
        results = self._cluster.client.gather(ended)  # type: ignore[no-untyped-call]
        places = [self._pieces.pop(future) for future in ended]
        for _, address in places:
            self._given[address] -= 1
        self._finished += len(ended)
        return [(place, result) for (place, _), result in zip(places, results, strict=True)]

    def _begin_again(self) -> None:
        """Dask gave up pieces: every worker that held the work is lost. Others are given it, and the pieces."""
        if self._rounds == _ATTEMPTS:
            raise InputError(f"all workers of {self._cluster.address} were lost {_ATTEMPTS} times: see their logs")
        lost = [place for place, _ in self._pieces.values()]
        self._pieces.clear()
        self._given.clear()
        self._threads = {}
        until = time.monotonic() + _WORKERS_SECONDS
        while not self._look(lost):
            if time.monotonic() > until:
                raise InputError(f"all workers of {self._cluster.address} are gone for {_WORKERS_SECONDS} s: run it again")
            time.sleep(0.1)
        self._share_work()

    def _raise(self, future: "Future[Any]") -> None:
        from distributed import KilledWorker

        error = future.exception()  # type: ignore[no-untyped-call]
        if isinstance(error, KilledWorker):
            place = self._pieces[future][0]
            raise InputError(
                f"{_ATTEMPTS} workers died over the same piece ({_readable(self._arguments[place])}), last "
                f"{error.last_worker.address}: see its log; a worker that runs out of memory is killed"
            ) from None
        raise error


def _readable(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in arguments.items() if isinstance(value, int | str))
