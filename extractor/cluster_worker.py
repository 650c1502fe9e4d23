"""What a worker of a Dask cluster does: look whether it can extract, and extract a block, with one model kept warm."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from neuronlake.extractor.capture import MakeBatches, text_batches
from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.settings import ExtractSettings
from neuronlake.store.commits import is_committed, read_commit
from neuronlake.store.errors import InputError, NeuronlakeError
from neuronlake.store.objects import LakePath

PACKAGES = ("neuronlake", "torch", "transformers", "tokenizers", "numpy", "numcodecs")
"""Those of which the versions must be the same everywhere: they may move the last bits, or the meaning of a setting."""


NOTE = "neuronlake worker "
"""Beginning of the note that says on which worker an error was raised."""


class UnfitError(InputError):
    """This worker cannot extract blocks; another may."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker has to know to extract any block of a lake. Small: it travels with every block."""

    lake: LakePath
    fingerprint: str
    model: str
    gguf: str | None
    sha256: str
    """Of the model's weights, as the client found them."""
    settings: ExtractSettings
    audio: AudioCorpus | None
    """The corpus, if it is sound: blocks of text need only their plan."""
    versions: tuple[tuple[str, str | None], ...]
    """Of the client, see `installed`."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a block."""

    block: int
    how: str
    """``extracted``, ``committed`` (by another process, before it began), ``overtaken`` (meanwhile), or ``claimed``: another
    process is at it."""
    rows: int = 0
    bytes_written: int = 0


def installed() -> tuple[tuple[str, str | None], ...]:
    """Versions of `PACKAGES` here; None for what is not installed."""
    return tuple((name, _version(name)) for name in PACKAGES)


def unlike(theirs: tuple[tuple[str, str | None], ...], ours: tuple[tuple[str, str | None], ...]) -> str | None:
    """Say which packages a worker lacks or has in another version, or None."""
    here = dict(ours)
    missing = [name for name, found in theirs if found is None and here.get(name) is not None]
    if missing:
        return f"lacks {', '.join(missing)}: pip install 'neuronlake[extract,cluster]' there"
    other = [f"{name} {found}, here {here[name]}" for name, found in theirs if here.get(name) not in (None, found)]
    return f"has {'; '.join(other)}: install the same versions everywhere" if other else None


async def examine(model: str, gguf: str | None, trust_remote_code: bool, device: str) -> dict[str, Any]:
    """Return what the client wants to know before it begins. Run on every worker, beside its tasks."""
    return await asyncio.to_thread(_examine, model, gguf, trust_remote_code, device)


def _examine(model: str, gguf: str | None, trust_remote_code: bool, device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"versions": installed()}
    try:
        from neuronlake.extractor.model import choose_device

        found["sha256"] = _source(model, gguf, trust_remote_code).sha256
        found["device"] = choose_device(device).partition(":")[0]
    except ModuleNotFoundError as error:
        found["missing"] = error.name
    except NeuronlakeError as error:
        found["refusal"] = str(error)
    return found


async def sees(lake: LakePath, fingerprint: str) -> str | None:
    """Return why this worker cannot write to the lake, or None."""
    return await asyncio.to_thread(_sees, lake, fingerprint)


def _sees(lake: LakePath, fingerprint: str) -> str | None:
    from neuronlake.store.plan_record import read_plan_record

    try:
        plan = read_plan_record(lake)
    except NeuronlakeError as error:
        return str(error)
    if plan is None:
        return f"sees no lake at {lake}: it must be on a file system, or in a store, that client and workers share"
    if plan.fingerprint != fingerprint:
        return f"sees another lake at {lake}: client and workers do not share that folder"
    return None


def extract_on_worker(job: Job, block: int, *, force: bool) -> Done:
    """Extract one block into the lake, unless somebody else has, and return when it is committed.

    Parameters
    ----------
    force
        Also if another process is at it.

    Raises
    ------
    UnfitError
        When this worker has not the model, the versions, or the lake.
    NeuronlakeError
        As `neuronlake.extractor.extract` does.
    """
    try:
        return _extract(job, block, force=force)
    except BaseException as error:
        from distributed import get_worker

        error.add_note(NOTE + str(get_worker().address))  # the client does not learn it otherwise
        raise


def _extract(job: Job, block: int, *, force: bool) -> Done:
    from neuronlake.store.claims import Claims
    from neuronlake.store.lock import writing

    with writing(job.lake, shared=True) as locks, Claims(job.lake, locks=locks) as claims:
        if is_committed(job.lake, block):
            return Done(block=block, how="committed", rows=read_commit(job.lake, block).rows)
        if not claims.take(block) and not force:
            return Done(block=block, how="claimed")
        with _warm(job) as warm:
            written, overtaken = warm.extract(block)
        how = "overtaken" if overtaken else "extracted"
        return Done(block=block, how=how, rows=read_commit(job.lake, block).rows, bytes_written=written)


class _Warm:
    """A loaded model and the buffers it fills, for one lake."""

    def __init__(self, job: Job):
        from neuronlake.extractor.engines import open_engine
        from neuronlake.extractor.model import read_shape
        from neuronlake.store.create import read_spec
        from neuronlake.store.plan_record import read_plan_record
        from neuronlake.store.writer import BlockWriter

        if (reason := unlike(installed(), job.versions)) is not None:
            raise UnfitError(reason)
        if (reason := _sees(job.lake, job.fingerprint)) is not None:
            raise UnfitError(reason)
        plan = read_plan_record(job.lake)
        assert plan is not None
        settings = job.settings
        try:
            source = _source(job.model, job.gguf, settings.trust_remote_code)
        except InputError as error:
            raise UnfitError(str(error)) from error
        if source.sha256 != job.sha256:
            raise UnfitError(other_model(job.model))
        spec = read_spec(job.lake).without(plan.dropped)
        shape = read_shape(
            source, sites=settings.sites, module=settings.module, trust_remote_code=settings.trust_remote_code
        )
        self.job, self._plan = job, plan
        self._engine = open_engine(spec, source, shape, _batches(job, source), settings)
        self._provenance = self._engine.provenance()
        self._writer = BlockWriter(job.lake, spec, overlap_encoding=self._engine.overlaps, ranks=self._engine.ranks)

    def extract(self, block: int) -> tuple[int, bool]:
        """Return the bytes written, and whether another process has committed the block with other bytes."""
        from neuronlake.extractor.engines import extract_block

        before = self._writer.bytes_written
        extract_block(
            self.job.lake, self._plan, self._engine, block, self._writer,
            provenance=self._provenance, progress=lambda tokens: None,
        )  # fmt: skip
        self._writer.flush()
        return self._writer.bytes_written - before, block in self._writer.overtaken

    def close(self) -> None:
        """Give the memory back."""
        with contextlib.closing(self._engine):
            self._writer.__exit__(None, None, None)


# A worker process has one model, whatever the number of its threads: they take turns.
_turn = threading.Lock()
_kept: _Warm | None = None


@contextlib.contextmanager
def _warm(job: Job) -> Iterator[_Warm]:
    """Give the loaded model for a job; what fails is loaded anew by the next block."""
    global _kept
    with _turn:
        if _kept is not None and _kept.job != job:
            kept, _kept = _kept, None
            kept.close()
        warm = _kept or _Warm(job)
        _kept = None
        try:
            yield warm
        except BaseException:
            with contextlib.suppress(NeuronlakeError):  # the first error is the one to show
                warm.close()
            raise
        _kept = warm


def other_model(model: str) -> str:
    """Say that a worker's model has other weights than the client's."""
    return f"has another model at {model}: its weights or its config.json differ from the client's"


@lru_cache(maxsize=4)
def _source(model: str, gguf: str | None, trust_remote_code: bool) -> Any:
    """Find and hash a model, once in a process."""
    from neuronlake.extractor.source import resolve_model

    return resolve_model(model, gguf=gguf, trust_remote_code=trust_remote_code)


def _batches(job: Job, source: Any) -> MakeBatches:
    if job.audio is None:
        return text_batches
    from neuronlake.extractor.reading import SpeechReader
    from neuronlake.extractor.speech import FrontEnd

    front = FrontEnd.load(source, trust_remote_code=job.settings.trust_remote_code)
    return SpeechReader(front, job.audio.locate).batches


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
