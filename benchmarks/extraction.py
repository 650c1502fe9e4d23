"""Extraction against the bare forward pass of the same batches, alternating batch by batch.

Isolates the price of capture, encoding, compression, checksums, fsync and commits. `bare` is transformers' model as it is
loaded. `neuronlake` is the real path up to the commit of each block; what its own, faster forward pass (`packed_linear`)
takes alone is `own forward`. `hooks` is the least one can do (each layer's input of transformers' model copied as float16
into a memory map, flushed at the block's end). Every batch runs in all ways one after the other, in changing order, because
the speed of a shared machine drifts by more than the difference. The sync of a block is waited for and counted in full,
although in a real run it overlaps the next block.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import EWT_DEV, corpora, keep, scratch, smollm2

BLOCKS = 3
BLOCK_ROWS = 8192
BATCH_TOKENS = 512


def run(blocks: int = BLOCKS, block_rows: int = BLOCK_ROWS) -> dict[str, float]:
    """Print tokens per second of each variant and the ratios to `bare`."""
    import torch
    from transformers import AutoModel

    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
    from neuronlake.extractor.batching import plan_batches
    from neuronlake.extractor.capture import Batch, BlockPlan, TransformersEngine, make_batch
    from neuronlake.extractor.model import Model
    from neuronlake.store import BlockWriter, open_lake

    source = resolve_model(smollm2())
    plain = AutoModel.from_pretrained(source.folder, dtype=torch.float32).eval()
    model = Model.load(source, device="cpu", dtype="float32", packed=True)
    engine = TransformersEngine(model, batch_tokens=BATCH_TOKENS)
    with scratch() as folder:
        root = Path(folder) / "a.lake"
        # plans the corpus and extracts its last block, so that everything is compiled and warm
        last = -(-30_245 // block_rows) - 1
        settings = ExtractSettings(block_rows=block_rows, blocks=(last, last + 1), batch_tokens=BATCH_TOKENS)
        extract(root, ConlluCorpus(paths=(corpora() / EWT_DEV,)), source, settings)
        lake = open_lake(root)
        spec = lake.spec
        plans = [BlockPlan.from_table(lake.read_table("plan", block)) for block in range(blocks)]

        def forward(of: Any, batch: Batch) -> None:
            with torch.inference_mode():
                of(input_ids=torch.from_numpy(batch.inputs), use_cache=False)

        def alternate(plan: BlockPlan, *ways: Callable[[Batch], None]) -> list[float]:
            seconds = [0.0] * len(ways)
            for number, members in enumerate(plan_batches(plan.lengths, batch_tokens=BATCH_TOKENS)):
                batch = make_batch(plan, members)
                for turn in range(len(ways)):
                    way = (number + turn) % len(ways)
                    start = time.perf_counter()
                    ways[way](batch)
                    seconds[way] += time.perf_counter() - start
            return seconds

        def neuronlake() -> dict[str, float]:
            spent = {"bare": 0.0, "own forward": 0.0, "forward and capture": 0.0, "encode": 0.0, "sync and commit": 0.0}
            with BlockWriter(root, spec, overlap_encoding=False) as writer:
                for block, plan in enumerate(plans):
                    buffer = writer.buffer(plan.rows)
                    seconds = alternate(
                        plan,
                        lambda batch: forward(plain, batch),
                        lambda batch: forward(model.module, batch),
                        lambda batch, buffer=buffer: model.capture(  # type: ignore[misc]
                            torch.from_numpy(batch.inputs), engine.receiver(buffer, batch)
                        ),
                    )
                    submitted = time.perf_counter()
                    writer.submit(block, plan.rows, buffer, {})
                    encoded = time.perf_counter()
                    writer.flush()
                    _add(spent, *seconds, encoded - submitted, time.perf_counter() - encoded)
            return spent

        def hooks() -> dict[str, float]:
            spent = {"bare": 0.0, "forward and capture": 0.0, "flush": 0.0}
            shape = (len(spec.layers), block_rows, spec.neurons)
            file = np.lib.format.open_memmap(Path(folder) / "hooks.npy", mode="w+", dtype=np.float16, shape=shape)
            target = torch.from_numpy(file)

            where: dict[str, torch.Tensor] = {}

            def keep_input(layer: int, x: torch.Tensor) -> None:
                values = x.reshape(-1, x.shape[-1])[where["source"]].to(torch.float16)
                target[layer].index_copy_(0, where["target"], values)

            def captured(batch: Batch) -> None:
                where.update(source=torch.from_numpy(batch.source), target=torch.from_numpy(batch.target))
                handles = [
                    block.mlp.down_proj.register_forward_pre_hook(
                        lambda _module, inputs, layer=layer: keep_input(layer, inputs[0])
                    )
                    for layer, block in enumerate(plain.layers)
                ]
                forward(plain, batch)
                for handle in handles:
                    handle.remove()

            for plan in plans:
                seconds = alternate(plan, lambda batch: forward(plain, batch), captured)
                start = time.perf_counter()
                file.flush()
                _add(spent, *seconds, time.perf_counter() - start)
            return spent

        spent = {"neuronlake": neuronlake(), "hooks": hooks()}
    tokens = sum(plan.rows for plan in plans)
    ratios = {
        name: parts["bare"] / sum(seconds for part, seconds in parts.items() if part not in ("bare", "own forward"))
        for name, parts in spent.items()
    }
    print("| variant | of bare | tokens/s | bare tokens/s | seconds |\n|---|---|---|---|---|")
    for name, parts in spent.items():
        detail = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())
        bare = tokens / parts["bare"]
        print(f"| {name} | {ratios[name]:.3f} | {bare * ratios[name]:.0f} | {bare:.0f} | {detail} |")
    keep("extraction", {"tokens": tokens, "seconds": spent, "of_bare": ratios})
    return ratios


def _add(spent: dict[str, float], *seconds: float) -> None:
    for name, more in zip(spent, seconds, strict=True):
        spent[name] += more
