"""Tall lakes: real activations of a few neurons, repeated with noise until there are as many rows as wanted."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

LAYER, FIRST, NEURONS = 12, 64, 64
_NOISE = 0.05  # of a neuron's standard deviation: no two repetitions have the same top tokens


def tall_lake(root: Path, source: Any, blocks: int, *, first: int = FIRST, neurons: int = NEURONS) -> Path:
    """Write a lake of one layer of some neurons, with the token, word and sentence tables of `source` renumbered."""
    from neuronlake.store import BlockWriter, create_lake, open_lake
    from neuronlake.store.files import write_file
    from neuronlake.store.layout import table_path
    from neuronlake.store.plan_record import publish_plan
    from neuronlake.store.tables import to_parquet

    if (root / "plan/plan.json").exists() and len(open_lake(root).blocks) == blocks:
        return root
    rows = source.block_rows
    spec = dataclasses.replace(
        source.spec, layers=(0,), neurons=neurons, chunk_neurons=64, plan={**source.spec.plan, "repeated": blocks}
    )
    files = [create_lake(root, spec)]
    counts = {"tokens": 0, "special": 0}
    sizes = {name: _count(source, name) for name in ("word", "sentence", "document")}
    for block in range(blocks):
        base, copy = source.blocks[block % len(source.blocks)], block // len(source.blocks)
        for table in ("plan", "words", "sentences"):
            found = source.read_table(table, base)
            for name in found.column_names:
                if name in sizes or name == "row":
                    numbers = found.column(name).to_numpy()
                    step = (block - base) * rows if name == "row" else copy * sizes[name]
                    moved = np.where(numbers < 0, numbers, numbers + step).astype(numbers.dtype)
                    place = found.column_names.index(name)
                    found = found.set_column(place, found.schema.field(name), [moved])
            files.append(write_file(root, table_path(table, block), [to_parquet(found)]))
        counts["tokens"] += int(np.count_nonzero(source.read_table("plan", base).column("flags").to_numpy() == 0))
    plan = dataclasses.replace(
        source.plan,
        fingerprint=spec.fingerprint,
        blocks=blocks,
        counts={**source.plan.counts, **counts},
        files={record.path: record for record in files},
    )
    publish_plan(root, spec, plan)
    rng = np.random.default_rng(0)
    values = [source.read_block(layer=LAYER, block=block, neurons=range(first, first + neurons)) for block in source.blocks]
    deviation = np.concatenate(values).std(axis=0)
    with BlockWriter(root, spec) as writer:
        for block in range(blocks):
            base = block % len(source.blocks)
            used = source.commits[base].rows
            noisy = values[base][:used] + rng.standard_normal((used, neurons), dtype=np.float32) * (_NOISE * deviation)
            buffer = writer.buffer(used)
            buffer.put(spec.sites[0], 0, np.ascontiguousarray(noisy, dtype=np.float32), np.arange(used), np.arange(used))
            writer.submit(block, used, buffer, {"backend": "repeated"})
    return root


def _count(lake: Any, name: str) -> int:
    column = lake.words(["word"]).column("word") if name == "word" else lake.sentences().column(name)
    return int(np.max(column.to_numpy())) + 1
