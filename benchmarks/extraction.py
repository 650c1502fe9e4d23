"""Extraction against the bare forward pass of the same batches, alternating in one run.

Isolates the price of capture, encoding, compression, checksums, fsync and commits. `bare` runs the model and keeps
nothing; `hooks` is the least one can do (each layer's input copied as float16 into a memory map); `neuronlake` is the
real path up to the commit of the last block, which it waits for.
"""

import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.common import EWT_DEV, corpora, keep, scratch, smollm2

ROUNDS = 4
BLOCKS_PER_SEGMENT = 2
BLOCK_ROWS = 2048
BATCH_TOKENS = 512


def run(rounds: int = ROUNDS, block_rows: int = BLOCK_ROWS) -> dict[str, float]:
    """Print tokens per second of each variant and the ratios to `bare`."""
    import torch

    import neuronlake.store.layout as layout
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
    from neuronlake.extractor.batching import plan_batches
    from neuronlake.extractor.capture import BlockPlan, capture_block, make_batch
    from neuronlake.extractor.model import Model
    from neuronlake.store import BlockWriter, create_lake, open_lake
    from neuronlake.store.files import read_checked
    from neuronlake.store.plan_record import read_plan_record
    from neuronlake.store.tables import from_parquet

    source = resolve_model(smollm2())
    model = Model.load(source, device="cpu", dtype="float32")
    with scratch() as folder:
        root = Path(folder) / "a.lake"
        corpus = ConlluCorpus(paths=(corpora() / EWT_DEV,))
        # the plan of the whole corpus, and one block, so that everything is compiled and warm
        extract(root, corpus, source, ExtractSettings(block_rows=block_rows, blocks=(0, 1), batch_tokens=BATCH_TOKENS))
        spec, plan = open_lake(root).spec, read_plan_record(root)
        assert plan is not None
        assert create_lake(root, spec)

        def block_plan(block: int) -> BlockPlan:
            return BlockPlan.from_table(from_parquet(read_checked(root, plan.files[layout.table_path("plan", block)])))

        def forward(plans: list[BlockPlan], receive) -> None:  # type: ignore[no-untyped-def]
            for part in plans:
                for members in plan_batches(part.lengths, batch_tokens=BATCH_TOKENS):
                    batch = make_batch(part, members)
                    with torch.inference_mode():
                        if receive is None:
                            model.module(input_ids=torch.from_numpy(batch.ids), use_cache=False)
                        else:
                            model.capture(
                                torch.from_numpy(batch.ids), lambda layer, x, batch=batch: receive(layer, x, batch)
                            )

        def bare(plans: list[BlockPlan], _blocks: list[int]) -> None:
            forward(plans, None)

        def hooks(plans: list[BlockPlan], _blocks: list[int]) -> None:
            shape = (len(spec.layers), block_rows, spec.neurons)
            path = Path(folder) / "hooks.npy"
            for part in plans:
                target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
                tensor = torch.from_numpy(target)

                def receive(layer, x, batch, tensor=tensor) -> None:  # type: ignore[no-untyped-def]
                    rows = torch.from_numpy(batch.target)
                    tensor[layer].index_copy_(0, rows, x.reshape(-1, x.shape[-1])[batch.source].to(torch.float16))

                forward([part], receive)
                target.flush()

        def neuronlake(plans: list[BlockPlan], blocks: list[int]) -> None:
            with BlockWriter(root, spec) as writer:
                for part, block in zip(plans, blocks, strict=True):
                    buffer = writer.buffer(part.rows)
                    capture_block(model, part, buffer, site=spec.sites[0], batch_tokens=BATCH_TOKENS)
                    writer.submit(block, part.rows, buffer, {})

        seconds: dict[str, list[float]] = defaultdict(list)
        tokens = []
        variants = {"bare": bare, "hooks": hooks, "neuronlake": neuronlake}
        for round_number in range(rounds):
            first = 1 + round_number * BLOCKS_PER_SEGMENT
            blocks = [block % plan.blocks for block in range(first, first + BLOCKS_PER_SEGMENT)]
            plans = [block_plan(block) for block in blocks]
            tokens.append(sum(part.rows for part in plans))
            # forwards, then backwards: a drift of the machine's speed falls on all alike
            order = list(variants) if round_number % 2 == 0 else list(reversed(variants))
            for name in order:
                start = time.perf_counter()
                variants[name](plans, blocks)
                seconds[name].append(time.perf_counter() - start)
    rates = {name: sum(tokens) / sum(times) for name, times in seconds.items()}
    ratios = {name: rates[name] / rates["bare"] for name in rates}
    by_round = {
        name: [round(base / spent, 4) for base, spent in zip(seconds["bare"], times, strict=True)]
        for name, times in seconds.items()
    }
    print("| variant | tokens/s | of bare | by round |\n|---|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {ratios[name]:.3f} | {', '.join(f'{ratio:.3f}' for ratio in by_round[name])} |")
    keep("extraction", {"tokens": sum(tokens), "tokens_per_s": rates, "of_bare": ratios, "of_bare_by_round": by_round})
    return ratios
