"""Extraction from corpus to committed lake. Run again, it does what is left."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import neuronlake.store.layout as layout
from neuronlake.extractor.capture import BlockPlan, TransformersEngine
from neuronlake.extractor.clips import read_clips
from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.corpora.records import Corpus
from neuronlake.extractor.engine import Engine
from neuronlake.extractor.model import Model, ModelShape, choose_device, read_shape
from neuronlake.extractor.plan import PlanBuilder
from neuronlake.extractor.reading import Reader, open_reader
from neuronlake.extractor.sequences import SequenceSettings
from neuronlake.extractor.source import ModelSource
from neuronlake.store.commits import committed_blocks, read_commit, settle_commits
from neuronlake.store.create import create_lake, discard_unfinished, read_spec, unfinished
from neuronlake.store.encodings import DEFAULT_ENCODING, get_encoding
from neuronlake.store.errors import ActivationError, DamageError, InputError
from neuronlake.store.files import FileRecord, read_checked
from neuronlake.store.index import complete_index
from neuronlake.store.lake import open_lake
from neuronlake.store.lock import writing
from neuronlake.store.objects import LakeName, LakePath, lake_path
from neuronlake.store.plan_record import PlanRecord, adopt_plan, plan_beside, publish_plan, read_plan_record
from neuronlake.store.spec import LakeSpec
from neuronlake.store.tables import from_parquet
from neuronlake.store.writer import BlockWriter, Tap

# Measured on two AVX2 cores with SmolLM2: 512 tokens keep a layer's activations in cache; a GPU wants full batches.
BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
"""Largest padded forward pass, by kind of device."""
BACKENDS = ("transformers", "vllm")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """How a corpus becomes a lake. Only what says how and where it is computed may differ between runs on one lake."""

    encoding: str = DEFAULT_ENCODING
    context: str = "sentence"
    on_long: str = "error"
    """What to do with a sequence longer than `max_tokens`: ``error``, ``truncate`` or ``split``."""
    max_tokens: int | None = None
    """Longest sequence; the model's context by default, and never more than a block."""
    special_tokens: bool = True
    """Let the tokenizer add its special tokens (beginning of sequence …), as the model saw them in training."""
    block_rows: int | None = None
    """Rows of a block, a power of two; by default what fits in 2 GiB of buffer, at most 8,192."""
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None
    """Largest padded forward pass; 512 on a CPU, 16,384 on a GPU by default."""
    blocks: tuple[int, int] | None = None
    """Extract only blocks [first, last)."""
    trust_remote_code: bool = False
    sites: tuple[str, ...] | None = None
    """What to keep, see `neuronlake.extractor.sites.SITES`; by default the neurons, and the routing to experts."""
    module: str | None = None
    """Name of the MLPs' output projections with ``{layer}``, for an architecture that is not known."""
    backend: str = "transformers"
    """Engine of the forward passes: ``transformers`` or ``vllm``."""
    tensor_parallel: int = 1
    """GPUs (or sets of cores) over which vLLM splits every layer."""

    def __post_init__(self) -> None:
        get_encoding(self.encoding)
        if self.backend not in BACKENDS:
            raise InputError(f"unknown backend {self.backend!r}: known are {', '.join(BACKENDS)}")
        if self.tensor_parallel < 1 or (self.tensor_parallel > 1 and self.backend != "vllm"):
            raise InputError(f"tensor_parallel must be 1, or more with backend vllm, got {self.tensor_parallel}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise InputError(f"batch_tokens must be at least 1, got {self.batch_tokens}")
        if self.blocks is not None and not 0 <= self.blocks[0] < self.blocks[1]:
            raise InputError(f"blocks must be FIRST:LAST with 0 <= FIRST < LAST, got {self.blocks[0]}:{self.blocks[1]}")


@dataclass(kw_only=True)
class Observer:
    """Callbacks of a run; replace those you need."""

    say: Callable[[str], None] = lambda message: None
    """One line before each step that takes long."""
    planned: Callable[[int], None] = lambda sentences: None
    """During planning, after each sequence: its sentences."""
    start: Callable[[int, int], None] = lambda total_tokens, done_tokens: None
    """Before the first forward pass: tokens of the whole plan, tokens already committed."""
    advance: Callable[[int, int], None] = lambda tokens, bytes_written: None
    """After each batch: its tokens, and all bytes written so far."""
    tap: Callable[[LakePath], Tap | None] = lambda lake: None
    """Once the plan is published, if there are blocks to extract: may return a function that gets every stored chunk."""


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What a run did."""

    lake: LakePath
    blocks: int
    """Blocks of the plan."""
    extracted: tuple[int, ...]
    """Blocks committed by this run."""
    committed: int
    """Blocks committed now."""
    unit: str = "token"
    """What a row is: ``token`` or, of speech, ``frame``."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of the plan: documents, sentences, words, tokens, multi, uncovered, truncated_sequences …"""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self.__dict__, "lake": str(self.lake), "extracted": list(self.extracted)}


def extract(
    lake: LakeName,
    corpus: Corpus,
    source: ModelSource,
    settings: ExtractSettings | None = None,
    observer: Observer | None = None,
) -> ExtractReport:
    """Extract every MLP neuron of every token of a corpus into a lake, or finish a lake begun earlier.

    Blocks with a commit record are left alone, so a run that was killed goes on where it stopped and ends with the same
    bytes. The lake is locked for as long as this runs: one writer at a time.

    Raises
    ------
    InputError
        Bad input, a lake with other settings (each difference is named), or one that somebody else is writing to.
    DamageError
        When the lake's records are damaged.
    StorageError
        When the file system refuses. Committed blocks stay valid.
    """
    root = lake_path(lake)
    with writing(root):
        return _extract(root, corpus, source, settings or ExtractSettings(), observer or Observer())


def _extract(
    root: LakePath, corpus: Corpus, source: ModelSource, settings: ExtractSettings, observer: Observer
) -> ExtractReport:
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
    spec, sequences = _settle(corpus, source, settings, shape, reader)
    if settings.backend == "vllm":
        _check_vllm(spec, shape)
    root_record = create_lake(root, spec)
    spec = read_spec(root)  # equal, but for the name that the model had when the lake was begun
    plan = read_plan_record(root)
    if plan is None:
        observer.say("planning: reading, tagging and aligning the corpus")
        plan = _plan(root, spec, corpus, reader, sequences, observer, root_record)
    elif plan.fingerprint != spec.fingerprint:
        raise DamageError(
            f"{root}: {layout.PLAN_RECORD} and {layout.ROOT_METADATA} belong to different lakes: "
            f"run `neuronlake verify {root} --repair`"
        )
    spec = spec.without(plan.dropped)
    settle_commits(root)
    todo = _todo(root, plan, settings)
    if todo:
        _run(root, spec, plan, todo, source, shape, reader, settings, observer)
    complete_index(open_lake(root))
    return ExtractReport(
        lake=root,
        blocks=plan.blocks,
        extracted=tuple(todo),
        committed=len(committed_blocks(root)),
        unit=plan.unit,
        counts=dict(plan.counts),
    )


def _settle(
    corpus: Corpus, source: ModelSource, settings: ExtractSettings, shape: ModelShape, reader: Reader
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
        capture={"dtype": _dtype(settings, shape), **({"module": shape.module} if settings.module else {})},
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


def _dtype(settings: ExtractSettings, shape: ModelShape) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if choose_device(settings.device) == "cpu" else shape.dtype


def _plan(
    root: LakePath,
    spec: LakeSpec,
    corpus: Corpus,
    reader: Reader,
    settings: SequenceSettings,
    observer: Observer,
    root_record: FileRecord,
) -> PlanRecord:
    """Plan a lake, for the first time or after a repair that found the plan damaged."""
    if unfinished(root):
        try:
            return publish_plan(root, spec, _build_plan(root, spec, corpus, reader, settings, observer, root_record))
        except InputError:  # bad input leaves nothing behind
            discard_unfinished(root)
            raise
    # Blocks were extracted with a plan like this: built beside it, so that nothing changes unless it is the same one.
    with plan_beside(root) as folder:
        record = _build_plan(folder, spec, corpus, reader, settings, observer, root_record)
        return adopt_plan(root, folder, spec, record)


def _build_plan(
    folder: LakePath,
    spec: LakeSpec,
    corpus: Corpus,
    reader: Reader,
    settings: SequenceSettings,
    observer: Observer,
    root_record: FileRecord,
) -> PlanRecord:
    """Write the plan's tables into a folder."""
    builder = PlanBuilder(folder, block_rows=spec.block_rows)
    for sequence in reader.sequences(corpus, settings):
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
        special_tokens=reader.special_texts(),
        files={root_record.path: root_record, **builder.files},
    )


def _todo(root: LakePath, plan: PlanRecord, settings: ExtractSettings) -> list[int]:
    first, last = settings.blocks or (0, plan.blocks)
    if first >= plan.blocks:
        raise InputError(f"blocks {first}:{last} asked for, but the plan has blocks 0 to {plan.blocks - 1}")
    done = set(committed_blocks(root))
    return [block for block in range(first, min(last, plan.blocks)) if block not in done]


def _run(
    root: LakePath,
    spec: LakeSpec,
    plan: PlanRecord,
    todo: list[int],
    source: ModelSource,
    shape: ModelShape,
    reader: Reader,
    settings: ExtractSettings,
    observer: Observer,
) -> None:
    tap = observer.tap(root)
    observer.say(f"loading {source.name}")
    engine = _open_engine(spec, source, shape, reader, settings)
    tokens = plan.counts["tokens"] + plan.counts["special"]
    observer.start(tokens, sum(read_commit(root, block).rows for block in committed_blocks(root)))
    with contextlib.closing(engine), _writer(root, spec, engine, tap) as writer:
        provenance = engine.provenance()
        for block in todo:
            extract_block(
                root,
                plan,
                engine,
                block,
                writer,
                provenance=provenance,
                progress=lambda tokens: observer.advance(tokens, writer.bytes_written),
            )


def _writer(root: LakePath, spec: LakeSpec, engine: Engine, tap: Tap | None) -> BlockWriter:
    return BlockWriter(root, spec, overlap_encoding=engine.overlaps, tap=tap, ranks=engine.ranks)


def _open_engine(
    spec: LakeSpec, source: ModelSource, shape: ModelShape, reader: Reader, settings: ExtractSettings
) -> Engine:
    if settings.backend == "vllm":
        return _open_vllm(spec, source, shape, settings)
    model = Model.load(
        source,
        device=settings.device,
        dtype=spec.capture["dtype"],
        trust_remote_code=settings.trust_remote_code,
        sites=spec.sites,
        module=settings.module,
    )
    batch_tokens = settings.batch_tokens or BATCH_TOKENS[model.device.type]
    return TransformersEngine(model, batch_tokens=batch_tokens, batches=reader.batches)


def _check_vllm(spec: LakeSpec, shape: ModelShape) -> None:
    """Refuse what vLLM cannot capture before anything is written."""
    from neuronlake.extractor.vllm_engine import check_version, find_places, installed_version

    check_version(installed_version())
    find_places(spec, shape)


def _open_vllm(spec: LakeSpec, source: ModelSource, shape: ModelShape, settings: ExtractSettings) -> Engine:
    from neuronlake.extractor.vllm_engine import VllmEngine, VllmSettings, find_places

    device = choose_device(settings.device)
    return VllmEngine(
        source.folder,
        find_places(spec, shape),
        VllmSettings(
            device=device,
            dtype=spec.capture["dtype"],
            max_tokens=spec.plan["max_tokens"],
            batch_tokens=settings.batch_tokens or BATCH_TOKENS[device.partition(":")[0]],
            tensor_parallel=settings.tensor_parallel,
            trust_remote_code=settings.trust_remote_code,
        ),
    )


def extract_block(
    root: LakePath,
    plan: PlanRecord,
    engine: Engine,
    block: int,
    writer: BlockWriter,
    *,
    provenance: Mapping[str, Any],
    progress: Callable[[int], None],
) -> None:
    """Compute one block of the plan of the lake at `root` and hand it to `writer`, which may write elsewhere.

    A pure function of plan, engine and block, on the same hardware and library versions.

    Raises
    ------
    InputError
        When an activation cannot be stored; names the neuron and the token.
    DamageError
        When the block's plan table is damaged.
    """
    table = from_parquet(read_checked(root, plan.files[layout.table_path("plan", block)]), ["token_id", "position", "flags"])
    clips = read_clips(root, plan, block) if plan.unit == "frame" else ()
    block_plan = BlockPlan.from_table(table, clips=clips)
    buffer = writer.buffer(block_plan.rows)
    try:
        engine.capture_block(block_plan, buffer, progress)
    except ActivationError as error:
        raise InputError(f"{error} (token: {_describe(root, plan, block, error.row)})") from error
    writer.submit(block, block_plan.rows, buffer, provenance)


def _describe(root: LakePath, plan: PlanRecord, block: int, row: int) -> str:
    """Name a token for an error message."""
    rows = from_parquet(read_checked(root, plan.files[layout.table_path("plan", block)])).slice(row, 1).to_pylist()[0]
    sentences = from_parquet(read_checked(root, plan.files[layout.table_path("sentences", block)]))
    first = sentences.column("sentence")[0].as_py()
    sentence = sentences.slice(rows["sentence"] - first, 1).to_pylist()[0]
    text = sentence["text"][max(rows["char_start"], 0) : max(rows["char_end"], 0)]
    return f"{text!r}, row {rows['row']}, sentence {sentence['name']!r} of {sentence['source']}"
