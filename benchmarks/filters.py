"""Top tokens among those that an SQL predicate passes, of lakes of a million and of ten million rows: bytes and time."""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common import keep, scratch, small_lake, whole_train_lake
from benchmarks.tall import tall_lake

K = 20
_SELECTED = (1, 10, 50)


def run(*, blocks: tuple[int, ...] = (123, 1221), sentences: int | None = None) -> dict[str, Any]:
    """Print the table.

    Parameters
    ----------
    blocks
        Sizes of the lakes.
    sentences
        Repeat only so many sentences of EWT dev, not EWT train, whose lake takes a quarter of an hour.
    """
    from neuronlake.store import open_lake

    with scratch() as name:
        folder = Path(name)
        source = open_lake(whole_train_lake() if sentences is None else small_lake(folder, sentences))
        result = measure(folder, source, blocks)
    keep("filters", result)
    return result


def measure(folder: Path, source: Any, blocks: tuple[int, ...]) -> dict[str, Any]:
    """Ask lakes that repeat `source`, made below `folder`, and print the table."""
    from neuronlake.store import complete_index, open_lake

    result: dict[str, Any] = {}
    print("| rows | filter | bytes of the column | chunks | search ms | SQL ms |\n|---|---|---|---|---|---|")
    for size in blocks:
        root = tall_lake(folder / "filtered.lake", source, size)
        complete_index(open_lake(root))
        rows = size * source.block_rows
        result[str(rows)] = _filters(open_lake(root))
        shutil.rmtree(root)
        for share, line in result[str(rows)].items():
            print(
                f"| {rows:,} | {share} % | {line['bytes']:.1%} | {line['chunks']:.1f} of {line['blocks']} | "
                f"{line['search_s'] * 1e3:.1f} | {line['sql_s'] * 1e3:.0f} |"
            )
    return result


def _filters(lake: Any) -> dict[str, Any]:
    """Top 20 among tokens that an SQL predicate passes, unrelated to the neurons."""
    from neuronlake.analysis.chosen_tokens import eligible_tokens
    from neuronlake.analysis.extremes import find_extremes

    found = {}
    whole = sum(lake.chunk_bytes(layer=0, block=block, neuron=0) for block in lake.blocks)
    for share in _SELECTED:
        start = time.perf_counter()
        eligible = eligible_tokens(lake, f"hash(row) % 100 < {share}", special=False)
        sql = time.perf_counter() - start
        answers, times = [], []
        for neuron in range(lake.neurons):
            start = time.perf_counter()
            answers.append(find_extremes(lake, 0, neuron, K, eligible=eligible))
            times.append(time.perf_counter() - start)
        found[str(share)] = {
            "bytes": statistics.mean(answer.bytes_read for answer in answers) / whole,
            "chunks": statistics.mean(len(answer.blocks_read) for answer in answers),
            "blocks": len(lake.blocks),
            "search_s": statistics.median(times),
            "sql_s": sql,
        }
    return found
