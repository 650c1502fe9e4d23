"""Extraction through vLLM against the same vLLM run without capture, alternating block by block.

Isolates the price of capture in vLLM's workers and of encoding, checksums, fsync and commits in ours. Every block of EWT dev
runs bare (the same engine and prompts, hooks at rest) and captured one after the other, in changing order, because the speed
of a shared machine drifts by more than the difference. Encoding and the sync of a block are waited for and counted in full.
Run as ``.venv-vllm/bin/python -m benchmarks vllm``.
"""

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common import EWT_DEV, corpora, keep, scratch, smollm2

BLOCKS = 8
BLOCK_ROWS = 1024
ENCODING = "int8a"
BATCH_TOKENS = 512


def run(blocks: int = BLOCKS, block_rows: int = BLOCK_ROWS, batch_tokens: int = BATCH_TOKENS) -> dict[str, Any]:
    """Print seconds per block of each part, and the ratios to `bare`."""
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
    from neuronlake.extractor.capture import BlockPlan
    from neuronlake.extractor.engines import open_vllm
    from neuronlake.extractor.model import read_shape
    from neuronlake.store import BlockWriter, open_lake

    source = resolve_model(smollm2())
    with scratch() as folder:
        root = Path(folder) / "a.lake"
        # plans the corpus and extracts its last block by transformers, so that everything of ours is compiled and warm
        last = -(-30_245 // block_rows) - 1
        settings = ExtractSettings(encoding=ENCODING, block_rows=block_rows, blocks=(last, last + 1))
        extract(root, ConlluCorpus(paths=(corpora() / EWT_DEV,)), source, settings)
        lake = open_lake(root)
        plans = [BlockPlan.from_table(lake.read_table("plan", block)) for block in range(blocks)]
        parts: dict[str, list[float]] = {"bare": [], "captured": [], "encode": [], "sync and commit": []}
        settings = ExtractSettings(backend="vllm", batch_tokens=batch_tokens)
        engine: Any = open_vllm(lake.spec, source, read_shape(source), settings)
        provenance = engine.provenance()

        def bare(plan: BlockPlan, number: int) -> None:
            engine._run(plan, plan.lengths, f"bare{number}", lambda tokens: None)

        with BlockWriter(root, lake.spec, overlap_encoding=False, ranks=engine.ranks) as writer:
            bare(plans[-1], blocks)
            engine.capture_block(plans[-1], writer.buffer(plans[-1].rows), lambda tokens: None)  # warm
            writer._free.put(None)
            for block, plan in enumerate(plans):
                buffer = writer.buffer(plan.rows)
                for turn in ("bare", "captured") if block % 2 else ("captured", "bare"):
                    start = time.perf_counter()
                    if turn == "bare":
                        bare(plan, block)
                    else:
                        engine.capture_block(plan, buffer, lambda tokens: None)
                    parts[turn].append(time.perf_counter() - start)
                start = time.perf_counter()
                writer.submit(block, plan.rows, buffer, provenance)
                parts["encode"].append(time.perf_counter() - start)
                start = time.perf_counter()
                writer.flush()
                parts["sync and commit"].append(time.perf_counter() - start)
        engine.close()
    tokens = sum(plan.rows for plan in plans)
    seconds = {name: sum(values) for name, values in parts.items()}
    committed = [
        sum(of_block) for of_block in zip(parts["captured"], parts["encode"], parts["sync and commit"], strict=True)
    ]
    over = {
        "capture": _over(parts["captured"], parts["bare"]),
        "committed": _over(committed, parts["bare"]),
    }
    print("| part | seconds | median of a block |\n|---|---|---|")
    for name, values in parts.items():
        print(f"| {name} | {seconds[name]:.2f} | {statistics.median(values):.3f} |")
    print(f"\n{tokens:,} tokens, {tokens / seconds['bare']:.0f} a second without capture")
    for name, found in over.items():
        print(f"{name}: {found['total']:+.1%} over bare in total, median of blocks {found['median']:+.1%}")
    result = {"tokens": tokens, "provenance": provenance, "seconds": parts, "over_bare": over}
    keep("vllm", result)
    return result


def _over(some: list[float], bare: list[float]) -> dict[str, float]:
    ratios = [a / b - 1 for a, b in zip(some, bare, strict=True)]
    return {"total": sum(some) / sum(bare) - 1, "median": statistics.median(ratios)}


if __name__ == "__main__":
    run()
