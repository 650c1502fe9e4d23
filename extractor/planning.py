"""From settings to a published plan: made once, by one process, while others that want the same lake wait for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import neuronlake.store.layout as layout
from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.corpora.records import Corpus
from neuronlake.extractor.engines import check_vllm
from neuronlake.extractor.model import ModelShape, choose_device, read_shape
from neuronlake.extractor.plan import PlanBuilder
from neuronlake.extractor.reading import Reader, open_reader
from neuronlake.extractor.sequences import SequenceSettings
from neuronlake.extractor.settings import ExtractSettings, Observer
from neuronlake.extractor.source import ModelSource
from neuronlake.store.create import create_lake, discard_unfinished, read_spec, unfinished
from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import FileRecord
from neuronlake.store.lock import PLANNING, Patience, writing
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import PlanRecord, adopt_plan, plan_beside, publish_plan, read_plan_record
from neuronlake.store.spec import LakeSpec


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A corpus and a model that fit each other, and what the lake of both is."""

    corpus: Corpus
    source: ModelSource
    shape: ModelShape
    reader: Reader
    spec: LakeSpec
    sequences: SequenceSettings


def prepare(corpus: Corpus, source: ModelSource, settings: ExtractSettings, *, device: str | None = None) -> Prepared:
    """Resolve every default; nothing is written.

    Parameters
    ----------
    device
        Where the model will run (``cpu`` or ``cuda``), if not on this machine.

    Raises
    ------
    InputError
        When corpus, model and settings do not fit each other.
    """
    if settings.backend == "vllm" and isinstance(corpus, AudioCorpus):
        raise InputError("vLLM reads tokens, not sound: extract speech with --backend transformers")
    shape = read_shape(source, sites=settings.sites, module=settings.module, trust_remote_code=settings.trust_remote_code)
    reader = open_reader(
        corpus,
        source,
        shape.architecture,
        special_tokens=settings.special_tokens,
        trust_remote_code=settings.trust_remote_code,
    )
    spec, sequences = _settle(corpus, source, settings, shape, reader, device or choose_device(settings.device))
    if settings.backend == "vllm" and device is None:
        check_vllm(spec, shape)
    return Prepared(corpus=corpus, source=source, shape=shape, reader=reader, spec=spec, sequences=sequences)


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A planned lake to which this process may add blocks."""

    root: LakePath
    spec: LakeSpec
    """Of the lake: equal to what was asked for, but for the name that the model had when the lake was begun."""
    plan: PlanRecord
    locks: bool
    """Whether the lake's file system has locks."""


@contextmanager
def joined(root: LakePath, prepared: Prepared, patience: Patience, observer: Observer) -> Iterator[Joined]:
    """Plan the lake if nobody has, and hold it to add blocks to, beside others, for as long as the ``with`` block lasts.

    Of several processes that begin a lake at once one plans, and the others wait for it.

    Raises
    ------
    InputError
        When the lake there is another one, or is being written in a way that excludes this; what planning raises.
    DamageError
        When the lake's records are damaged.
    StorageError
        When the file system refuses.
    """
    while True:
        if not _is_planned(root):
            with writing(root, doing=PLANNING, patience=patience, unless=lambda: _is_planned(root)):
                if not _is_planned(root):
                    root_record = create_lake(root, prepared.spec)
                    observer.say("planning: reading, tagging and aligning the corpus")
                    _plan(root, read_spec(root), prepared, observer, root_record)
        with writing(root, shared=True, patience=patience) as locks:
            plan = read_plan_record(root)
            if plan is None:  # a repair removed it just now
                continue
            create_lake(root, prepared.spec)  # it is the same one
            spec = read_spec(root)
            if plan.fingerprint != spec.fingerprint:
                raise DamageError(
                    f"{root}: {layout.PLAN_RECORD} and {layout.ROOT_METADATA} belong to different lakes: "
                    f"run `neuronlake verify {root} --repair`"
                )
            yield Joined(root=root, spec=spec.without(plan.dropped), plan=plan, locks=locks)
            return


def _is_planned(root: LakePath) -> bool:
    return (root / layout.PLAN_RECORD).exists()


def _settle(
    corpus: Corpus, source: ModelSource, settings: ExtractSettings, shape: ModelShape, reader: Reader, device: str
) -> tuple[LakeSpec, SequenceSettings]:
    """Resolve every default into the lake's identity."""
    encoding = get_encoding(settings.encoding)
    sites = tuple(shape.widths)
    neurons = shape.widths[sites[0]]
    block_rows = settings.block_rows or layout.default_block_rows(
        layers=shape.layers, neurons=sum(shape.widths.values()), itemsize=encoding.itemsize
    )
    context = min(shape.max_positions, reader.window or shape.max_positions)
    limit = min(context, block_rows)
    max_tokens = settings.max_tokens or limit
    if max_tokens > limit:
        cause = "the model's context" if limit == context else "a block (raise --block-rows)"
        raise InputError(f"max_tokens {max_tokens} is longer than {cause}: at most {limit}")
    sequences = SequenceSettings(context=settings.context, max_tokens=max_tokens, on_long=settings.on_long)
    spec = LakeSpec(
        model={**source.identity(), "architecture": shape.architecture},
        capture={"dtype": _dtype(settings, shape, device), **({"module": shape.module} if settings.module else {})},
        plan={
            "corpus": corpus.identity(),
            **reader.identity(),
            "context": sequences.context,
            "max_tokens": sequences.max_tokens,
            "on_long": sequences.on_long,
        },
        sites=sites,
        layers=tuple(range(shape.layers)),
        neurons=neurons,
        block_rows=block_rows,
        chunk_neurons=layout.default_chunk_neurons(rows=block_rows, neurons=neurons, itemsize=encoding.itemsize),
        encoding=encoding.name,
        widths={site: width for site, width in shape.widths.items() if width != neurons},
    )
    return spec, sequences


def _dtype(settings: ExtractSettings, shape: ModelShape, device: str) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if device == "cpu" else shape.dtype


def _plan(
    root: LakePath,
    spec: LakeSpec,
    prepared: Prepared,
    observer: Observer,
    root_record: FileRecord,
) -> PlanRecord:
    """Plan a lake, for the first time or after a repair that found the plan damaged."""
    if unfinished(root):
        try:
            return publish_plan(root, spec, _build_plan(root, spec, prepared, observer, root_record))
        except InputError:  # bad input leaves nothing behind
            discard_unfinished(root)
            raise
    # Blocks were extracted with a plan like this: built beside it, so that nothing changes unless it is the same one.
    with plan_beside(root) as folder:
        record = _build_plan(folder, spec, prepared, observer, root_record)
        return adopt_plan(root, folder, spec, record)


def _build_plan(
    folder: LakePath,
    spec: LakeSpec,
    prepared: Prepared,
    observer: Observer,
    root_record: FileRecord,
) -> PlanRecord:
    """Write the plan's tables into a folder."""
    builder = PlanBuilder(folder, block_rows=spec.block_rows)
    for sequence in prepared.reader.sequences(prepared.corpus, prepared.sequences):
        builder.add(sequence)
        observer.planned(len(sequence.sentences))
    builder.finish()
    if builder.blocks == 0:
        raise InputError("the corpus is empty: it has no sentence with a word; nothing was extracted")
    return PlanRecord(
        fingerprint=spec.fingerprint,
        blocks=builder.blocks,
        label_columns=tuple(sorted(builder.labels)),
        counts=dict(builder.counts),
        special_tokens=prepared.reader.special_texts(),
        files={root_record.path: root_record, **builder.files},
    )
