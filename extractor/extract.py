"""Extraction from corpus to committed lake. Run again, it does what is left; run beside others, it shares the work."""

import contextlib
from collections.abc import Sequence

from neuronlake.extractor.corpora.records import Corpus
from neuronlake.extractor.engines import extract_block, open_engine
from neuronlake.extractor.planning import Joined, Prepared, joined, prepare
from neuronlake.extractor.settings import ExtractReport, ExtractSettings, Observer
from neuronlake.extractor.source import ModelSource
from neuronlake.store.claims import Claims
from neuronlake.store.commits import committed_blocks, read_commit, settle_commits
from neuronlake.store.errors import InputError
from neuronlake.store.index import complete_index
from neuronlake.store.lake import open_lake
from neuronlake.store.lock import COMPLETING, BusyError, Patience, refuse_second_writer, writing
from neuronlake.store.objects import LakeName, LakePath, lake_path
from neuronlake.store.plan_record import PlanRecord
from neuronlake.store.writer import BlockWriter


def extract(
    lake: LakeName,
    corpus: Corpus,
    source: ModelSource,
    settings: ExtractSettings | None = None,
    observer: Observer | None = None,
) -> ExtractReport:
    """Extract every MLP neuron of every token of a corpus into a lake, or finish a lake begun earlier.

    Blocks with a commit record are left alone, so a run that was killed goes on where it stopped and ends with the same
    bytes. Several runs may be at one lake at once, on one machine or on many: each takes blocks that no other is at.

    Raises
    ------
    InputError
        Bad input, a lake with other settings (each difference is named), or one that somebody else has to themselves.
    DamageError
        When the lake's records are damaged.
    StorageError
        When the file system refuses. Committed blocks stay valid.
    """
    root = lake_path(lake)
    settings, observer = settings or ExtractSettings(), observer or Observer()
    refuse_second_writer(root, shared=True)
    prepared = prepare(corpus, source, settings)
    patience = Patience(seconds=settings.wait_s, say=observer.say)
    extracted: list[int] = []
    overtaken: set[int] = set()
    with joined(root, prepared, patience, observer) as lake_:
        settle_commits(root)
        if todo := blocks_to_do(root, lake_.plan, settings):
            overtaken = _run(lake_, prepared, todo, settings, observer, extracted)
    complete(root)
    return report_of(root, lake_.plan, [block for block in extracted if block not in overtaken], overtaken)


def complete(root: LakePath) -> bool:
    """Complete the index, unless others are extracting: then the last of them does it.

    Returns
    -------
    bool
        Whether it is complete.
    """
    try:
        with writing(root, doing=COMPLETING):
            complete_index(open_lake(root))
    except BusyError:
        return False
    return True


def report_of(root: LakePath, plan: PlanRecord, extracted: Sequence[int], overtaken: set[int]) -> ExtractReport:
    """Return the report of a run."""
    return ExtractReport(
        lake=root,
        blocks=plan.blocks,
        extracted=tuple(sorted(extracted)),
        committed=len(committed_blocks(root)),
        unit=plan.unit,
        counts=dict(plan.counts),
        overtaken=tuple(sorted(overtaken)),
    )


def blocks_to_do(root: LakePath, plan: PlanRecord, settings: ExtractSettings) -> list[int]:
    """Return the blocks that the settings ask for and that are not committed, ascending."""
    first, last = settings.blocks or (0, plan.blocks)
    if first >= plan.blocks:
        raise InputError(f"blocks {first}:{last} asked for, but the plan has blocks 0 to {plan.blocks - 1}")
    place, shards = settings.shard or (0, 1)
    done = set(committed_blocks(root))
    return [block for block in range(first, min(last, plan.blocks)) if block % shards == place and block not in done]


def start(root: LakePath, plan: PlanRecord, observer: Observer) -> None:
    """Tell the observer how much there is to do."""
    tokens = plan.counts["tokens"] + plan.counts["special"]
    observer.start(tokens, sum(read_commit(root, block).rows for block in committed_blocks(root)))


def _run(
    lake: Joined,
    prepared: Prepared,
    todo: list[int],
    settings: ExtractSettings,
    observer: Observer,
    extracted: list[int],
) -> set[int]:
    """Extract blocks as long as there are some that nobody else is at; return those that others committed first."""
    root, plan = lake.root, lake.plan
    tap = observer.tap(root)
    observer.say(f"loading {prepared.source.name}")
    engine = open_engine(lake.spec, prepared.source, prepared.shape, prepared.reader.batches, settings)
    start(root, plan, observer)
    with (
        Claims(root, locks=lake.locks) as claims,
        contextlib.closing(engine),
        BlockWriter(root, lake.spec, overlap_encoding=engine.overlaps, tap=tap, ranks=engine.ranks) as writer,
    ):
        provenance = engine.provenance()
        for block in claims.left(todo):
            extract_block(
                root,
                plan,
                engine,
                block,
                writer,
                provenance=provenance,
                progress=lambda tokens: observer.advance(tokens, writer.bytes_written),
            )
            extracted.append(block)
            claims.release(but={block})  # those before are committed now
    return writer.overtaken
