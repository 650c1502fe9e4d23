"""Questions about single neurons through the index: time, chunks and bytes read, size, cost of building it."""

import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import EWT_DEV, ROOT, corpora, keep, scratch, small_lake, smollm2, whole_train_lake
from benchmarks.statistics import linked

K = 64
_SHARES = (0.01, 0.1, 0.5)
_FILTERED_K = 20
_COLD = """
import sys, time
import duckdb, numba, pyarrow.compute
import neuronlake.analysis.queries
from neuronlake.analysis import top_tokens
from neuronlake.store import open_lake
start = time.perf_counter()
top_tokens(open_lake(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
print(time.perf_counter() - start)
"""


def run(*, sentences: int | None = None, neurons: int = 100) -> dict[str, Any]:
    """Print the figures of the EWT train lake (SmolLM2, the default encoding).

    Parameters
    ----------
    sentences
        Only so many sentences of EWT dev, in a lake that is removed afterwards.
    neurons
        Neurons asked about, drawn at random.
    """
    from neuronlake.store import complete_index, open_lake

    with scratch() as name:
        root = whole_train_lake() if sentences is None else small_lake(Path(name), sentences)
        complete_index(open_lake(root))
        made = _tag_lists(root, Path(name))
        lake = open_lake(root)
        rng = random.Random(0)
        asked = [(rng.choice(lake.layers), rng.randrange(lake.neurons)) for _ in range(neurons)]
        result = {
            "tokens": sum(commit.rows for commit in lake.commits),
            "blocks": len(lake.blocks),
            "neurons": neurons,
            **_top(lake, asked),
            **_filtered(lake, asked),
            **_column(lake, asked),
            **_tagged(lake, asked),
            **_index(lake),
            **made,
            **_building(Path(name), sentences),
        }
        print("| | |\n|---|---|")
        for what, text in _lines(result):
            print(f"| {what} | {text} |")
    keep("queries", result)
    return result


def _top(lake: Any, asked: list[tuple[int, int]]) -> dict[str, Any]:
    from neuronlake.analysis import top_tokens
    from neuronlake.analysis.queries import find_top

    for layer, neuron in asked:  # compiles, opens and remembers
        top_tokens(lake, layer, neuron, K)
    warm = [_seconds(lambda at=at: top_tokens(lake, *at, K)) for at in asked]  # type: ignore[misc]
    chunks = [len(find_top(lake, *at, K).blocks_read) for at in asked]
    cold = []
    for layer, neuron in asked[:5]:
        command = [sys.executable, "-c", _COLD, str(lake.path), str(layer), str(neuron), str(K)]
        cold.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout))
    return {
        "warm_s": statistics.median(warm),
        "warm_largest_s": max(warm),
        "cold_s": statistics.median(cold),
        "top_chunks": float(np.mean(chunks)),
        "top_chunks_largest": max(chunks),
    }


def _tagged(lake: Any, asked: list[tuple[int, int]]) -> dict[str, Any]:
    """Top tokens within a tag whose lists the index has."""
    from neuronlake.analysis.queries import find_top

    tags = ("NOUN", "VERB", "PRON")
    chunks, warm = [], []
    for place, (layer, neuron) in enumerate(asked):
        where = ("upos", tags[place % len(tags)])
        chunks.append(len(find_top(lake, layer, neuron, K, where=where).blocks_read))
        warm.append(_seconds(lambda at=(layer, neuron), where=where: find_top(lake, *at, K, where=where)))  # type: ignore[misc]
    return {"tagged_chunks_largest": max(chunks), "tagged_s": statistics.median(warm)}


def _tag_lists(root: Path, folder: Path) -> dict[str, Any]:
    """Make the lists per tag of a lake that has none: what it takes per block."""
    from neuronlake.analysis import complete_tag_lists, compute_statistics
    from neuronlake.store import open_lake

    copy = open_lake(linked(root, folder / "copy", without=("statistics", "index")))
    made = _seconds(lambda: complete_tag_lists(copy, "upos"))
    for name in (copy.path / "index").iterdir():
        shutil.rmtree(name)
    copy = open_lake(copy.path)
    spent = _process_seconds(lambda: complete_tag_lists(copy, "upos"))
    spent -= _process_seconds(lambda: list(copy.scan(lambda tile: None, values="stored")))
    lake = open_lake(root)
    complete_tag_lists(lake, "upos")
    compute_statistics(lake, "upos")
    return {"tag_lists_s": made, "tag_lists_processor_s": spent}


def _building(folder: Path, sentences: int | None) -> dict[str, Any]:
    """Share of an extraction's processor time that index and lists per tag take, by what runs within them."""
    import neuronlake.store.writer as writer
    from neuronlake.analysis import TagListsBuilder
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, Observer, extract, resolve_model
    from neuronlake.store.index_build import BlockIndexer

    spent = {"index": 0.0, "tag lists": 0.0}

    def timed(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                spent[what] += time.thread_time() - start

        return run

    builders: list[Any] = []

    def tap(lake: Path) -> Any:
        builders.append(TagListsBuilder(lake, "upos"))
        return timed("tag lists", builders[0].add)

    kept = BlockIndexer.add, BlockIndexer.finish, writer.keep_block
    BlockIndexer.add, BlockIndexer.finish = timed("index", kept[0]), timed("index", kept[1])  # type: ignore[method-assign]
    writer.keep_block = timed("index", kept[2])  # type: ignore[attr-defined]
    try:
        corpus = ConlluCorpus(paths=(corpora() / EWT_DEV,), limit_sentences=sentences)
        settings = ExtractSettings(block_rows=None if sentences is None else 1024)
        source = resolve_model(smollm2())
        start = time.process_time()
        report = extract(folder / "built.lake", corpus, source, settings, Observer(tap=tap))
        whole = time.process_time() - start
        finishing = _process_seconds(builders[0].finish)
    finally:
        BlockIndexer.add, BlockIndexer.finish, writer.keep_block = kept  # type: ignore[method-assign, attr-defined]
    return {
        "built_blocks": len(report.extracted),
        "index_share_of_extraction": spent["index"] / whole,
        "tag_lists_share_of_extraction": spent["tag lists"] / whole,
        "tag_lists_finish_s": finishing,
        "extraction_block_s": whole / len(report.extracted),
    }


def _process_seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _filtered(lake: Any, asked: list[tuple[int, int]]) -> dict[str, Any]:
    """Share of the neurons' bytes that is read under filters that pass tokens at random."""
    from neuronlake.analysis.extremes import find_extremes

    ordinary = lake.tokens().column("flags").to_numpy() == 0
    found = {}
    for share in _SHARES:
        eligible = ordinary & (np.random.default_rng(0).random(len(ordinary)) < share)
        read = whole = 0
        for layer, neuron in asked:
            read += find_extremes(lake, layer, neuron, _FILTERED_K, eligible=eligible).bytes_read
            whole += sum(lake.chunk_bytes(layer=layer, block=block, neuron=neuron) for block in lake.blocks)
        found[str(share)] = read / whole
    return {"bytes_read_by_selectivity": found}


def _column(lake: Any, asked: list[tuple[int, int]]) -> dict[str, Any]:
    """One neuron of all tokens, and the scan of its layer, in turn."""
    rows = np.concatenate([np.arange(lake.block_rows) + block * lake.block_rows for block in lake.blocks])
    columns, scans = [], []
    for layer, neuron in asked[:10]:
        columns.append(_seconds(lambda layer=layer, neuron=neuron: lake.read(layer=layer, rows=rows, neurons=[neuron])))  # type: ignore[misc]
        scans.append(_seconds(lambda layer=layer: list(lake.scan(lambda tile: None, layers=[layer]))))  # type: ignore[misc]
    return {"column_s": statistics.median(columns), "column_share": statistics.median(np.divide(columns, scans).tolist())}


def _index(lake: Any) -> dict[str, Any]:
    """Bytes of the index, and the time to make that of a block beside decoding the block."""
    from neuronlake.store.index import index_block
    from neuronlake.store.kept import INDEX, STATISTICS

    values = sum(commit.rows for commit in lake.commits) * len(lake.layers) * lake.neurons
    stored = {
        what: sum(path.stat().st_size for path in lake.path.glob(f"{pattern}/**/*") if path.is_file())
        for what, pattern in (("index", f"{INDEX}/blocks-*"), ("tag lists", f"{INDEX}/tags-*"), ("statistics", STATISTICS))
    }
    index_block(lake, lake.blocks[0])
    blocks = lake.blocks[:3]
    made = [_seconds(lambda block=block: index_block(lake, block)) for block in blocks]  # type: ignore[misc]
    scanned = [_seconds(lambda block=block: list(lake.scan(lambda tile: None, blocks=[block]))) for block in blocks]  # type: ignore[misc]
    return {
        "bytes": stored,
        "share_of_float16": {what: size / (2 * values) for what, size in stored.items()},
        "index_block_s": statistics.median(made),
        "scan_block_s": statistics.median(scanned),
    }


def _lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    shares = ", ".join(f"{float(share):.0%}: {read:.1%}" for share, read in result["bytes_read_by_selectivity"].items())
    return [
        (f"top {K} with contexts, warm", f"{result['warm_s'] * 1e3:.1f} ms (largest {result['warm_largest_s'] * 1e3:.1f})"),
        (f"top {K} with contexts, cold without imports", f"{result['cold_s'] * 1e3:.0f} ms"),
        ("chunks read", f"{result['top_chunks']:.2f} (largest {result['top_chunks_largest']}) of {result['blocks']}"),
        (f"bytes of the column read, k = {_FILTERED_K}, by selectivity", shares),
        ("one column against its layer", f"{result['column_share']:.3f} ({result['column_s'] * 1e3:.0f} ms)"),
        (
            f"top {K} within a part of speech",
            f"{result['tagged_s'] * 1e3:.1f} ms, {result['tagged_chunks_largest']} chunks at most",
        ),
        *(
            (what, f"{size / 1e6:.0f} MB, {result['share_of_float16'][what]:.2%} of float16")
            for what, size in result["bytes"].items()
        ),
        ("all of it", f"{sum(result['share_of_float16'].values()):.2%} of float16"),
        ("listing per tag afterwards, all blocks", f"{result['tag_lists_s']:.1f} s"),
        (
            f"processor time of an extraction of {result['built_blocks']} blocks",
            f"index {result['index_share_of_extraction']:.2%}, lists per tag {result['tag_lists_share_of_extraction']:.2%} "
            f"and {result['tag_lists_finish_s']:.1f} s at the end (a block {result['extraction_block_s']:.0f} s)",
        ),
        (
            f"lists per tag of all {result['blocks']} blocks, without decoding, of that many blocks' extraction",
            f"{result['tag_lists_processor_s'] / result['blocks'] / result['extraction_block_s']:.2%}",
        ),
        ("indexing a block", f"{result['index_block_s']:.2f} s, decoding it {result['scan_block_s']:.2f} s"),
    ]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
