"""A Dask cluster that was found fit for the work: reachable, with workers, the same versions, and the lake in sight."""

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from neuronlake.analysis.cluster_run import Run
from neuronlake.analysis.source import VERSIONED
from neuronlake.store.create import read_spec
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.objects import lake_path

_CONNECT_SECONDS = 5
_WORKERS_SECONDS = 10
"""How long to wait for a first worker."""
_PACKAGES = (*VERSIONED, "distributed")


class Cluster:
    """A connection to a Dask cluster.

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

    def __init__(self, address: Any, *, say: Callable[[str], None] = lambda message: None):
        self._owned = isinstance(address, str)
        self.client: Any = _connect(address) if self._owned else address
        """Dask's connection."""
        self.address = str(self.client.scheduler.address)
        """Of the scheduler."""
        try:
            if not self.threads():
                say(f"waiting for a worker to connect to {self.address}…")
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
            self.client.close()

    @property
    def dashboard(self) -> str | None:
        """Link to the scheduler's dashboard; None where it has none."""
        services = self.client.scheduler_info(n_workers=0)["services"]
        return str(self.client.dashboard_link) if "dashboard" in services else None

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

        A piece whose worker is lost is done again by another, three times at most; an error that the work raises is raised
        here, and what has not begun by then does not begin.

        Parameters
        ----------
        work
            Sent to every worker once. What it holds of a lake is its path: the worker opens it.
        arguments
            Numbers, strings, arrays.
        title
            What the dashboard calls the pieces.
        parts, whole
            Part of the lake that each piece reads, and all that there are: see `place_parts`.
        lakes
            Lakes that every worker must see; what is not a `Lake` is sent with the work.

        Raises
        ------
        InputError
            When a worker does not see a lake, workers die over a piece again and again, none is left for 10 seconds, or the
            scheduler is gone.
        """
        stored = [lake for lake in lakes if isinstance(lake, Lake)]
        seen: set[str] = set()

        def look() -> dict[str, int]:
            threads = self.threads()
            if new := sorted(threads.keys() - seen):
                self._check_versions()
                self._check_lakes(new, stored)
                seen.update(new)
            return threads

        yield from Run(self.client, look, work, arguments, title=title, parts=parts, whole=whole).results()

    def threads(self) -> dict[str, int]:
        """Address of every worker → its threads.

        Raises
        ------
        InputError
            When the scheduler is gone.
        """
        try:
            return {str(address): int(count) for address, count in self.client.nthreads().items()}
        except (OSError, TimeoutError, RuntimeError) as error:  # the last is of a client that closed itself
            said = " ".join(str(error).split())
            raise InputError(f"the Dask scheduler at {self.address} is gone ({said}): run the command again") from None

    def _wait_for_workers(self) -> None:
        until = time.monotonic() + _WORKERS_SECONDS
        while not self.threads():
            if time.monotonic() > until:
                raise InputError(
                    f"no worker has connected to the Dask scheduler at {self.address} for {_WORKERS_SECONDS} s: start some "
                    f"with `dask worker {self.address}`"
                )
            time.sleep(0.1)

    def _check_versions(self) -> None:
        """Results record the versions that computed them, which are those of this process: all must have the same."""
        found = self.client.get_versions(packages=list(_PACKAGES))
        mine = _comparable(found["client"])
        parties: list[tuple[str, Any, tuple[str, ...]]]
        parties = [(f"the scheduler at {self.address}", found["scheduler"], ("python", "dask", "distributed"))]
        parties += [(f"worker {name}", versions, tuple(mine)) for name, versions in sorted(found["workers"].items())]
        for who, versions, names in parties:
            theirs = _comparable(versions)
            for name in names:
                if theirs[name] is None and mine[name] is not None:
                    raise InputError(f"{who} lacks {name}, here {mine[name]}: install the same packages everywhere")
                if theirs[name] != mine[name]:
                    raise InputError(
                        f"{who} has {name} {theirs[name]}, this process {mine[name]}: install the same versions everywhere"
                    )

    def _check_lakes(self, workers: list[str], lakes: Sequence[Lake]) -> None:
        expected = {str(lake.path.absolute()): lake.fingerprint for lake in lakes}
        answers = self.client.run(_fault, expected, workers=workers, on_error="return")
        for worker, answer in sorted(answers.items()):
            if isinstance(answer, ImportError):
                raise InputError(f"worker {worker} cannot import neuronlake: {answer}")
            if isinstance(answer, str):
                raise InputError(f"worker {worker} does not see the lake as this process does: {answer}")
            if isinstance(answer, BaseException) and not isinstance(answer, OSError):  # of a worker that has just left
                raise answer


def _connect(address: str) -> Any:
    try:
        import distributed
        from distributed.versions import VersionMismatchWarning
    except ModuleNotFoundError:
        raise InputError(f"the cluster {address} needs the package distributed: pip install 'neuronlake[cluster]'") from None
    client: Any = distributed.Client
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # an error of ours, see `_check_versions`
            return client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {error}") from None


def _comparable(versions: Mapping[str, Any]) -> dict[str, str | None]:
    """Version of every package, None where it is not installed; of Python the first two numbers."""
    packages = versions["packages"]
    return {"python": ".".join(packages["python"].split(".")[:2]), **{name: packages.get(name) for name in _PACKAGES}}


def _fault(lakes: Mapping[str, str]) -> str | None:
    """Say what is wrong with lakes (path → fingerprint) where this runs, which is a worker."""
    for path, fingerprint in lakes.items():
        try:
            found = read_spec(lake_path(path)).fingerprint
        except (InputError, OSError) as error:
            return str(error)
        if found != fingerprint:
            return f"{path} is another lake there, of fingerprint {found[:12]}…, here {fingerprint[:12]}…"
    return None
