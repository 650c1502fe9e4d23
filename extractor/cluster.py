"""Extraction by the workers of a dask.distributed cluster: one task per block, and the commits are what counts."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuronlake.extractor import cluster_worker
from neuronlake.extractor.cluster_tasks import BlockTasks, ClusterSettings
from neuronlake.extractor.cluster_worker import Job, installed, other_model, unlike
from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.corpora.records import Corpus
from neuronlake.extractor.extract import blocks_to_do, complete, report_of, start
from neuronlake.extractor.planning import joined, prepare
from neuronlake.extractor.settings import ExtractReport, ExtractSettings, Observer
from neuronlake.extractor.source import ModelSource
from neuronlake.store.commits import settle_commits
from neuronlake.store.errors import InputError
from neuronlake.store.lock import Patience, refuse_second_writer
from neuronlake.store.objects import LakeName, lake_path

__all__ = ["ClusterExtraction", "ClusterSettings", "connect"]

_CONNECT_S = 5
_WORKERS_S = 10
"""How long to wait for a first worker."""
_LOST_S = 1.0
"""How long the scheduler takes to notice a connection that is broken."""
_NAMED = 3  # workers that a message names
_NO_MODULE = re.compile(r"No module named '(\w+)")


@contextmanager
def connect(
    cluster: ClusterSettings, settings: ExtractSettings | None = None, observer: Observer | None = None
) -> Iterator["ClusterExtraction"]:
    """Connect to a cluster and make sure that every worker can extract.

    Raises
    ------
    InputError
        When the scheduler does not answer, no worker is there for 10 seconds, or one of them (the message names it) has not
        the packages, the versions, the model, or what a block takes.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise InputError("--scheduler needs the package distributed: pip install 'neuronlake[cluster]'") from None
    if "://" not in cluster.address:
        raise InputError(f"{cluster.address!r} is no address of a scheduler: expected one such as tcp://10.0.0.1:8786")
    settings, observer = settings or ExtractSettings(), observer or Observer()
    try:
        client = Client(cluster.address, timeout=_CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"no Dask scheduler answers at {cluster.address} within {_CONNECT_S} s ({reason}): start `dask scheduler`, or "
            "correct the address"
        ) from error
    try:
        if "dashboard" in client.scheduler_info()["services"]:
            observer.say(f"Dask dashboard: {client.dashboard_link}")
        yield ClusterExtraction(client, cluster, settings, observer)
    finally:
        client.close(timeout=_CONNECT_S)  # type: ignore[no-untyped-call]


class ClusterExtraction:
    """A cluster that is ready to extract; see `connect`."""

    def __init__(self, client: Any, cluster: ClusterSettings, settings: ExtractSettings, observer: Observer):
        folder = Path(cluster.model).expanduser()
        model = str(folder.absolute()) if folder.exists() else cluster.model
        self._client, self._cluster, self._observer = client, replace(cluster, model=model), observer
        self._settings = settings
        workers = self._workers()
        self._resources = _resources(workers, cluster.resources)
        observer.say(f"looking whether {len(workers)} workers have the model and the same versions")
        found = self._ask(cluster_worker.examine, model, cluster.gguf, settings.trust_remote_code, settings.device)
        self._device = self._check(found)
        self._sha256 = {worker: answer["sha256"] for worker, answer in found.items()}

    def extract(self, lake: LakeName, corpus: Corpus, source: ModelSource) -> ExtractReport:
        """Extract as `neuronlake.extractor.extract` does, on the workers; the plan is made here.

        A block whose worker is lost is given to another one, and so is one that failed, a few times. Ending this process
        (Ctrl-C) takes back what no worker has begun; the same command goes on later.

        Raises
        ------
        InputError
            As `extract` does; when a worker does not see the lake or has another model.
        StorageError
            When a block fails again and again, or no worker is left.
        """
        root, settings, observer = lake_path(lake).absolute(), self._settings, self._observer
        refuse_second_writer(root, shared=True)
        for worker, sha256 in self._sha256.items():
            if sha256 != source.sha256:
                raise InputError(f"worker {worker} {other_model(self._cluster.model)}")
        prepared = prepare(corpus, source, settings, device=self._device)
        patience = Patience(seconds=settings.wait_s, say=observer.say)
        extracted: list[int] = []
        overtaken: set[int] = set()
        with joined(root, prepared, patience, observer) as here:
            settle_commits(root)
            self._refuse({worker: why for worker, why in self._ask(cluster_worker.sees, root, here.plan.fingerprint).items()
                          if why is not None})  # fmt: skip
            if todo := blocks_to_do(root, here.plan, settings):
                observer.tap(root)
                start(root, here.plan, observer)
                job = Job(
                    lake=root,
                    fingerprint=here.plan.fingerprint,
                    model=self._cluster.model,
                    gguf=self._cluster.gguf,
                    sha256=source.sha256,
                    settings=settings,
                    audio=corpus if isinstance(corpus, AudioCorpus) else None,
                    versions=installed(),
                )
                written = 0
                for done in BlockTasks(self._client, self._cluster, self._resources, job, todo, observer).run():
                    written += done.bytes_written
                    if done.how == "extracted":
                        extracted.append(done.block)
                    elif done.how == "overtaken":
                        overtaken.add(done.block)
                    observer.advance(done.rows, written)
        complete(root)
        return report_of(root, here.plan, extracted, overtaken)

    def _connected(self) -> dict[str, Any]:
        return dict(self._client.scheduler_info(n_workers=-1)["workers"])

    def _workers(self) -> dict[str, Any]:
        """Wait for the first worker; return all that are connected."""
        until = time.monotonic() + _WORKERS_S
        while not (workers := self._connected()):
            if time.monotonic() > until:
                raise InputError(
                    f"no worker has connected to {self._cluster.address} for {_WORKERS_S} s: start some with "
                    f"`dask worker {self._cluster.address} --nthreads 1`"
                )
            time.sleep(0.1)
        return workers

    def _ask(self, function: Any, *arguments: Any) -> dict[str, Any]:
        """Run a function on every worker; one that is lost meanwhile is as if it had never been there."""
        while True:
            self._workers()
            answers = dict(self._client.run(function, *arguments, on_error="return"))
            if any(isinstance(answer, OSError) for answer in answers.values()):
                time.sleep(
                    _LOST_S
                )  # the scheduler may have met the broken connection before it took the worker off its list
                left = self._connected()
                answers = {worker: answer for worker, answer in answers.items()
                           if worker in left or not isinstance(answer, OSError)}  # fmt: skip
            if answers:
                break
        problems = {}
        for worker, answer in answers.items():
            if not isinstance(answer, Exception):
                continue
            if (missing := _NO_MODULE.search(str(answer))) is not None:  # what cannot be unpickled comes as text only
                problems[worker] = f"lacks {missing[1]}: pip install 'neuronlake[extract,cluster]' there"
            else:
                problems[worker] = f"does not answer ({type(answer).__name__}: {answer}): it may have other versions"
        self._refuse(problems)
        return answers

    def _check(self, found: Mapping[str, Any]) -> str:
        """Refuse workers that cannot extract; return where they compute."""
        problems = {}
        ours = installed()
        for worker, answer in found.items():
            if (reason := unlike(answer["versions"], ours)) is not None:
                problems[worker] = reason
            elif "missing" in answer:
                problems[worker] = f"lacks {answer['missing']}: pip install 'neuronlake[extract,cluster]' there"
            elif "refusal" in answer:
                problems[worker] = f"cannot extract: {answer['refusal']}"
        self._refuse(problems)
        devices = {answer["device"]: worker for worker, answer in found.items()}
        if len(devices) > 1:
            named = ", ".join(f"{worker} on {device}" for device, worker in sorted(devices.items()))
            raise InputError(f"the workers compute on different devices ({named}): say --device cpu, or stop some of them")
        return str(next(iter(devices)))

    def _refuse(self, problems: Mapping[str, str]) -> None:
        if not problems:
            return
        named = "; ".join(f"worker {worker} {reason}" for worker, reason in sorted(problems.items())[:_NAMED])
        more = f"; and {len(problems) - _NAMED} more workers" if len(problems) > _NAMED else ""
        raise InputError(named + more)


def _resources(workers: Mapping[str, Any], asked: Mapping[str, float] | None) -> dict[str, float]:
    """Return what a block takes of what its worker declares."""
    declared = [dict(worker.get("resources") or {}) for worker in workers.values()]
    if asked is None:
        return {"GPU": 1} if any(resources.get("GPU", 0) >= 1 for resources in declared) else {}
    if not any(all(resources.get(name, 0) >= amount for name, amount in asked.items()) for resources in declared):
        wanted = " ".join(f"{name}={amount:g}" for name, amount in asked.items())
        known = sorted({f"{name}={amount:g}" for resources in declared for name, amount in resources.items()})
        raise InputError(
            f"no worker declares {wanted}: they declare {', '.join(known) or 'nothing'}; start workers with "
            f"`dask worker … --resources {wanted}`"
        )
    return dict(asked)
