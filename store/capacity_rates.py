"""What an existing lake, and this machine, say about a lake to come: bytes per value, fill of blocks, tokens a second."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import neuronlake.store.layout as layout
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.capacity import BENCHMARKED, Footprint, LakeShape
from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import FileRecord
from neuronlake.store.index import PREFIX
from neuronlake.store.index_build import BlockIndexer
from neuronlake.store.kept import INDEX, STATISTICS, kept_record, kept_results
from neuronlake.store.lake import Lake
from neuronlake.store.quantise import quantise
from neuronlake.store.spec import LakeSpec

_LISTS = "tags-"
_CHUNKS = 4  # different ones in turn: one would stay in the cache
_FEWEST_COMMITS = 3


@dataclass(frozen=True, kw_only=True)
class MeasuredLake:
    """What a lake that exists says about one to come."""

    footprint: Footprint
    filled: float
    """Rows in use of a block on average, but for the last one."""
    tokens_per_second: float | None
    """From the times at which its blocks were committed, which a copy does not keep; None where they do not say."""


def measure_lake(lake: Lake) -> MeasuredLake:
    """Measure a lake. What it does not hold is taken from `BENCHMARKED`.

    Raises
    ------
    InputError
        When it has no committed block.
    """
    if not lake.commits:
        raise InputError(f"{lake.path} has no committed block to measure")
    shape = LakeShape(
        layers=len(lake.layers),
        widths={site: lake.spec.width(site) for site in lake.sites},
        encoding=lake.encoding,
        block_rows=lake.block_rows,
    )
    rows = [commit.rows for commit in lake.commits]
    shards = sum(file.bytes for commit in lake.commits for file in commit.files if not file.path.startswith("scales/"))
    code_bytes = {**BENCHMARKED.code_bytes, lake.encoding: shards / (sum(rows) * shape.values_per_token)}
    tables = sum(_table_bytes(lake.plan.files, block) for block in lake.blocks)
    footprint = dataclasses.replace(
        BENCHMARKED,
        source=f"{lake.path} ({lake.encoding}); the rest: {BENCHMARKED.source}",
        code_bytes=MappingProxyType(code_bytes),
        table_bytes=tables / sum(rows),
        index_share=_share(_index_parts(lake, shape)) or BENCHMARKED.index_share,
        lists_share=_share(_list_parts(lake, shape)) or BENCHMARKED.lists_share,
        statistics_bytes=_share(_statistics_parts(lake, shape)) or BENCHMARKED.statistics_bytes,
    )
    whole = rows[:-1] if lake.complete and len(rows) > 1 else rows
    return MeasuredLake(footprint=footprint, filled=sum(whole) / len(whole), tokens_per_second=_tokens_per_second(lake))


def measure_encoding(shape: LakeShape, *, seconds: float) -> float:
    """Values that one thread encodes a second here: quantised, compressed and indexed as a block writer does.

    The values are made up (products of two normal variables, as of gate and up projection); nothing is written.
    """
    encoding = get_encoding(shape.encoding)
    spec = LakeSpec(
        model={},
        capture={},
        plan={},
        sites=(layout.DEFAULT_SITE,),
        layers=(0,),
        neurons=_CHUNKS * shape.chunk_neurons,
        block_rows=shape.block_rows,
        chunk_neurons=shape.chunk_neurons,
        encoding=shape.encoding,
    )
    rng, rows = np.random.default_rng(0), np.arange(shape.block_rows)
    values = rng.standard_normal((shape.block_rows, spec.neurons), np.float32)
    values *= rng.standard_normal(values.shape, np.float32)
    buffer = BlockBuffer(spec)
    buffer.reset(shape.block_rows)
    buffer.put(layout.DEFAULT_SITE, 0, values, rows, rows)
    tiles = buffer.tiles(layout.DEFAULT_SITE, 0)
    size = tiles[0].shape
    codes = np.empty(size, encoding.codes)
    indexer = BlockIndexer(spec, np.zeros(shape.block_rows, dtype=np.uint8))

    def encode(number: int) -> None:
        chunk, scales = tiles[number], None
        if encoding.quantised:
            chunk, scales = codes, quantise(chunk, shape.block_rows, codes)
        indexer.add(layout.DEFAULT_SITE, 0, number, chunk, scales)
        encoding.compress(chunk)

    encode(0)  # compiled now
    # Processor time of this thread, so that what else runs on the machine does not count; and an end in any case.
    began, busy, done = time.perf_counter(), time.thread_time(), 0
    for number in itertools.cycle(range(_CHUNKS)):
        encode(number)
        done += tiles[number].size
        if time.perf_counter() - began >= seconds:
            break
    return done / (time.thread_time() - busy)


def _table_bytes(files: Mapping[str, FileRecord], block: int) -> int:
    return sum(files[layout.table_path(table, block)].bytes for table in ("plan", "words", "sentences"))


def _tokens_per_second(lake: Lake) -> float | None:
    """From the gaps between commits that follow each other; the median, for an extraction may have been interrupted."""
    if not isinstance(lake.path, Path) or len(lake.blocks) < _FEWEST_COMMITS:
        return None
    times = [(lake.path / layout.commit_path(block)).stat().st_mtime for block in lake.blocks]
    rates = [
        (later - earlier) / commit.rows
        for (earlier, later), commit in zip(itertools.pairwise(times), lake.commits[1:], strict=True)
        if later > earlier
    ]
    return 1 / statistics.median(rates) if len(rates) >= _FEWEST_COMMITS - 1 else None


def _share(parts: Iterable[tuple[int, int]]) -> float | None:
    stored, whole = (sum(column) for column in zip((0, 0), *parts, strict=True))
    return stored / whole if whole else None


def _results(lake: Lake, kept: str, prefix: str = "") -> Iterable[tuple[dict[str, Any], int]]:
    """Yield the record and the bytes of every intact result."""
    for name in kept_results(lake.path, kept=kept):
        if name.startswith(prefix):
            with suppress(DamageError):
                record = kept_record(lake.path, name, kept=kept)
                yield record, sum(entry["bytes"] for entry in record["files"])


def _index_parts(lake: Lake, shape: LakeShape) -> Iterable[tuple[int, int]]:
    for record, size in _results(lake, INDEX, PREFIX):
        if record["site"] in shape.widths:
            yield size, len(record["blocks"]) * shape.index_bytes(record["site"])


def _list_parts(lake: Lake, shape: LakeShape) -> Iterable[tuple[int, int]]:
    for record, size in _results(lake, INDEX, _LISTS):
        if record["site"] in shape.widths:
            yield size, len(record["tags"]) * shape.lists_bytes(record["site"])


def _statistics_parts(lake: Lake, shape: LakeShape) -> Iterable[tuple[int, int]]:
    for record, size in _results(lake, STATISTICS):
        if record["counted"] and record["key"]["site"] in shape.widths:
            yield size, len(record["tags"]) * shape.layers * shape.widths[record["key"]["site"]]
