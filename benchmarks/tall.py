"""Tall lakes: real activations of a few neurons, repeated with noise until there are as many rows as wanted."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

LAYER, FIRST, NEURONS = 12, 64, 64
_NOISE = 0.05  # of a neuron's standard deviation: no two repetitions have the same top tokens
_TABLES = ("plan", "words", "sentences")


def tall_lake(
    root: Path, source: Any, blocks: int, *, first: int = FIRST, neurons: int = NEURONS, encoding: str | None = None
) -> Path:
    """Write a lake of one layer of some neurons, with the token, word and sentence tables of `source` renumbered.

    Parameters
    ----------
    first, neurons
        Which neurons of layer `LAYER`.
    encoding
        As `source` by default.
    """
    from neuronlake.store import BlockWriter, open_lake

    if (root / "plan/plan.json").exists() and len(open_lake(root).blocks) == blocks:
        return root
    spec = tall_plan(root, source, blocks, neurons=neurons, encoding=encoding)
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


def tall_plan(root: Path, source: Any, blocks: int, *, neurons: int, layers: int = 1, encoding: str | None = None) -> Any:
    """Plan a lake with the tables of `source`, renumbered, of which no block is committed yet; return its settings."""
    from neuronlake.store import create_lake
    from neuronlake.store.files import write_file
    from neuronlake.store.layout import table_path
    from neuronlake.store.plan_record import publish_plan
    from neuronlake.store.tables import to_parquet

    rows = source.block_rows
    spec = dataclasses.replace(
        source.spec,
        layers=tuple(range(layers)),
        neurons=neurons,
        chunk_neurons=64,
        encoding=encoding or source.spec.encoding,
        plan={**source.spec.plan, "repeated": True},
    )
    files = [create_lake(root, spec)]
    sizes = {name: _count(source, name) for name in ("word", "sentence", "document")}
    for block in range(blocks):
        base, copy = source.blocks[block % len(source.blocks)], block // len(source.blocks)
        for table in _TABLES:
            found = source.read_table(table, base)
            for name in found.column_names:
                if name in sizes or name == "row":
                    numbers = found.column(name).to_numpy()
                    step = (block - base) * rows if name == "row" else copy * sizes[name]
                    moved = np.where(numbers < 0, numbers, numbers + step).astype(numbers.dtype)
                    place = found.column_names.index(name)
                    found = found.set_column(place, found.schema.field(name), [moved])
            files.append(write_file(root, table_path(table, block), [to_parquet(found)]))
    plan = dataclasses.replace(
        source.plan,
        fingerprint=spec.fingerprint,
        blocks=blocks,
        counts=_counts(source, [source.blocks[block % len(source.blocks)] for block in range(blocks)]),
        files={record.path: record for record in files},
    )
    publish_plan(root, spec, plan)
    return spec


def shortened(root: Path, tall: Any, blocks: int) -> Path:
    """Make a lake of the first blocks of a tall one: its files are links to the same bytes, and it has no index."""
    from neuronlake.store import create_lake
    from neuronlake.store.layout import ROOT_METADATA, commit_path, table_path
    from neuronlake.store.plan_record import publish_plan

    files = {ROOT_METADATA: create_lake(root, tall.spec)}
    for block in range(blocks):
        for table in _TABLES:
            path = table_path(table, block)
            _link(tall.path, root, path)
            files[path] = tall.plan.files[path]
    plan = dataclasses.replace(tall.plan, blocks=blocks, counts=_counts(tall, list(range(blocks))), files=files)
    publish_plan(root, tall.spec, plan)
    for block in range(blocks):
        for file in tall.commits[block].files:
            _link(tall.path, root, file.path)
        _link(tall.path, root, commit_path(block))
    return root


def _link(source: Path, target: Path, path: str) -> None:
    if not (target / path).exists():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(source / path, target / path)


def _counts(source: Any, blocks: list[int]) -> dict[str, int]:
    """Counts of a plan of these blocks: of the tokens; the others are those of the source."""
    ordinary = {
        block: int(np.count_nonzero(source.read_table("plan", block).column("flags").to_numpy() == 0))
        for block in set(blocks)
    }
    return {**source.plan.counts, "tokens": sum(ordinary[block] for block in blocks), "special": 0}


def _count(lake: Any, name: str) -> int:
    column = lake.words(["word"]).column("word") if name == "word" else lake.sentences().column(name)
    return int(np.max(column.to_numpy())) + 1
