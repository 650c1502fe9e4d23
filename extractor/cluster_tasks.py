"""The blocks of a lake as tasks of a dask.distributed cluster: a few at a time, tried again elsewhere when they fail."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from neuronlake.extractor import cluster_worker
from neuronlake.extractor.cluster_worker import Done, Job, UnfitError
from neuronlake.extractor.settings import Observer
from neuronlake.store.errors import InputError, NeuronlakeError, StorageError

_LOOK_S = 2.0  # how often the workers are counted
_GO_ON = "committed blocks are safe, run the same command again to go on"


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Which cluster, and how its workers are used."""

    address: str
    """Of the scheduler, ``tcp://host:port``."""
    model: str
    """Folder, ``.gguf`` file or hub id, as `resolve_model` takes it: the same on every worker."""
    gguf: str | None = None
    resources: Mapping[str, float] | None = None
    """What a block takes of what its worker declares; by default one GPU, if workers declare any."""
    retries: int = 2
    """How often a block that failed is given to another worker."""
    patience_s: float = 60
    """How long to wait for workers when none is left."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    future: Any
    block: int
    workers: frozenset[str]
    """Those that may take it; empty for all."""


class BlockTasks:
    """The blocks of a run, a few more than the workers take at once of them submitted: memory does not grow with a lake."""

    def __init__(
        self,
        client: Any,
        cluster: ClusterSettings,
        resources: Mapping[str, float],
        job: Job,
        todo: list[int],
        observer: Observer,
    ):
        self._client, self._cluster, self._resources, self._job = client, cluster, resources, job
        self._observer = observer
        self._pending = deque(todo)
        self._running: dict[str, _Task] = {}
        self._finished: SimpleQueue[str] = SimpleQueue()
        self._failed: dict[int, int] = {}
        self._forced: set[int] = set()
        self._unfit: dict[str, str] = {}
        """Worker → why it is not given blocks any more."""
        self._avoid: dict[int, set[str]] = {}
        """Block → workers on which it failed."""
        self._run = uuid4().hex[:8]
        self._submitted = 0

    def run(self) -> Iterator[Done]:
        """Yield what became of every block, as it is known."""
        alone_since: float | None = None
        looked, workers = -_LOOK_S, {}
        try:
            while self._pending or self._running:
                now = time.monotonic()
                if now - looked >= _LOOK_S:
                    looked, workers = now, self._look()
                    self._take_back(workers)
                    if workers:
                        alone_since = None
                    elif alone_since is None:
                        alone_since = now
                        self._observer.say(f"no worker is left: waiting {self._cluster.patience_s:.0f} s for one")
                    elif now - alone_since > self._cluster.patience_s:
                        raise self._no_worker()
                while self._pending and len(self._running) < _window(workers):
                    self._submit(self._pending.popleft(), workers)
                try:
                    key = self._finished.get(timeout=_LOOK_S)
                except Empty:
                    continue
                task = self._running.pop(key, None)  # None: it was taken back
                if task is not None and (done := self._settle(task.future, task.block)) is not None:
                    yield done
        finally:
            if self._running and self._client.status == "running":
                with suppress(OSError):  # the scheduler is gone just now
                    self._client.cancel([task.future for task in self._running.values()], force=True)

    def _look(self) -> dict[str, Any]:
        """Return the workers that blocks can be given to."""
        if self._client.status not in ("running", "newly-created"):
            raise StorageError(f"the scheduler at {self._cluster.address} is gone ({self._client.status}): {_GO_ON}")
        try:
            found = self._client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError) as error:
            raise StorageError(f"the scheduler at {self._cluster.address} does not answer any more: {_GO_ON}") from error
        return {
            address: worker
            for address, worker in found.items()
            if address not in self._unfit
            and all(worker["resources"].get(name, 0) >= amount for name, amount in self._resources.items())
        }

    def _take_back(self, workers: Mapping[str, Any]) -> None:
        """Take back blocks that were meant for workers of which none is left: they would wait for these for ever."""
        for key, task in list(self._running.items()):
            if task.workers and not task.workers & set(workers):
                del self._running[key]
                task.future.cancel()
                self._pending.appendleft(task.block)

    def _submit(self, block: int, workers: Mapping[str, Any]) -> None:
        self._submitted += 1
        avoided = self._avoid.get(block, set())
        chosen = ([worker for worker in workers if worker not in avoided] or list(workers)) if avoided or self._unfit else []
        restricted = {"workers": chosen, "allow_other_workers": False} if chosen else {}
        future = self._client.submit(
            cluster_worker.extract_on_worker,
            self._job,
            block,
            force=block in self._forced,
            key=f"neuronlake-{self._run}-block-{block}-{self._submitted}",
            pure=False,
            resources=dict(self._resources) or None,
            **restricted,
        )
        self._running[future.key] = _Task(future=future, block=block, workers=frozenset(chosen))
        future.add_done_callback(lambda future: self._finished.put(future.key))

    def _settle(self, future: Any, block: int) -> Done | None:
        """Return what became of a block, or None if it has to be tried again."""
        if future.status == "finished":
            done: Done = future.result()
            if done.how != "claimed":
                return done
            self._forced.add(block)  # once the others are done: whoever was at it may be gone by then
            self._pending.append(block)
            return None
        if future.status != "error":
            raise StorageError(
                f"the scheduler at {self._cluster.address} has dropped block {block} ({future.status}): {_GO_ON}"
            )
        error = future.exception()
        worker = _worker_of(error)
        if isinstance(error, UnfitError) and worker:
            self._unfit[worker] = str(error)
            self._observer.say(f"worker {worker} {error}: it is given no more blocks")
            self._pending.appendleft(block)
            if not self._look():
                raise self._no_worker()
            return None
        if isinstance(error, NeuronlakeError) and not isinstance(error, StorageError):
            raise error  # any worker would say the same
        self._failed[block] = self._failed.get(block, 0) + 1
        where = f" on worker {worker}" if worker else ""
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if self._failed[block] > self._cluster.retries:
            raise StorageError(f"block {block} failed {self._failed[block]} times, last{where} ({reason}): {_GO_ON}")
        self._observer.say(f"block {block} failed{where} ({reason}): trying again elsewhere")
        if worker:
            self._avoid.setdefault(block, set()).add(worker)
        self._pending.appendleft(block)
        return None

    def _no_worker(self) -> StorageError | InputError:
        if self._unfit:
            worker, reason = next(iter(self._unfit.items()))
            return InputError(f"no worker can extract: worker {worker} {reason}")
        return StorageError(f"no worker is left at {self._cluster.address}: {_GO_ON}")


def _worker_of(error: BaseException) -> str | None:
    """Which worker an error comes from: `extract_on_worker` notes it."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(cluster_worker.NOTE)]
    return notes[0].removeprefix(cluster_worker.NOTE) if notes else None


def _window(workers: Mapping[str, Any]) -> int:
    """Blocks that are submitted at once: each worker has the next one when it ends one."""
    return sum(1 + worker["nthreads"] for worker in workers.values())
