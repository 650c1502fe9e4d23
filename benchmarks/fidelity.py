"""Every stored value of a sample of EWT sentences against a plain Hugging Face forward of the same sentence.

Two comparisons, all 30 layers: with a forward of the sentence alone (float16 rounding, plus the noise between two float32
forward passes whose sums are in different order), and, of a lake made with plain kernels, with a forward of the very same
batch (only the rounding: must be bit for bit).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import EWT_DEV, corpora, ewt_lake, keep, scratch, smollm2

SENTENCES = 250


def run(sentences: int = SENTENCES, seed: int = 0) -> dict[str, float]:
    """Print the worst errors."""
    import torch
    from transformers import AutoModel

    from neuronlake.extractor import resolve_model
    from neuronlake.store import open_lake
    from neuronlake.store.tables import PADDING

    lake = open_lake(ewt_lake())
    model = AutoModel.from_pretrained(resolve_model(smollm2()).folder, dtype=torch.float32).eval()
    captured: dict[int, np.ndarray] = {}
    for index, layer in enumerate(model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _module, args, index=index: captured.__setitem__(index, args[0].numpy().copy())
        )
    tokens = lake.tokens()
    used = tokens.filter((tokens.column("flags").to_numpy() & PADDING) == 0)
    sentence, row, ids = (used.column(name).to_numpy() for name in ("sentence", "row", "token_id"))
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(sentence.max() + 1, size=sentences, replace=False))
    worst_relative, worst_of_scale, beyond, values, differing = 0.0, 0.0, 0, 0, 0
    rounding, tiny = 2.0**-11, 2.0**-24  # half a unit in the last place of float16; its smallest subnormal
    whole = {layer: lake.read(layer=layer, rows=row) for layer in lake.layers}
    for number in chosen:
        mine = np.flatnonzero(sentence == number)
        with torch.inference_mode():
            model(input_ids=torch.from_numpy(ids[mine][None].astype(np.int64)), use_cache=False)
        for layer in lake.layers:
            expected, stored = captured[layer][0], whole[layer][mine]
            error = np.abs(stored - expected)
            scale = np.abs(expected).max(axis=1, keepdims=True)
            normal = np.abs(expected) > 1e-3 * scale
            worst_relative = max(worst_relative, float((error[normal] / np.abs(expected[normal])).max()))
            noise = np.maximum(error - rounding * np.abs(expected) - tiny, 0)
            worst_of_scale = max(worst_of_scale, float((noise / scale).max()))
            beyond += int((noise > 1e-5 * scale).sum())
            differing += int((expected.astype(np.float16).astype(np.float32) != stored).sum())
            values += error.size
    mismatches, compared = _same_batch(model, captured)
    result = {
        "sentences": sentences,
        "layers": len(lake.layers),
        "values": values,
        "worst_relative_error": worst_relative,
        "worst_excess_over_float16_rounding_of_token_absmax": worst_of_scale,
        "values_beyond_1e-5_of_token_absmax": beyond,
        "share_differing_from_rounded_reference": differing / values,
        "same_batch_values": compared,
        "same_batch_mismatches": mismatches,
    }
    print("| measure | value |\n|---|---|")
    for name, value in result.items():
        print(
            f"| {name.replace('_', ' ')} | {value:,} |"
            if isinstance(value, int)
            else f"| {name.replace('_', ' ')} | {value:.3g} |"
        )
    keep("fidelity", result)
    return result


def _same_batch(model: Any, captured: dict[int, NDArray[np.float32]]) -> tuple[int, int]:
    """Count the values of the first three batches that differ from the model's own of these batches, and all of them."""
    import torch

    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
    from neuronlake.extractor.batching import plan_batches
    from neuronlake.extractor.capture import BlockPlan, make_batch
    from neuronlake.store import open_lake

    mismatches = compared = 0
    with scratch() as folder:
        root = Path(folder) / "plain.lake"
        settings = ExtractSettings(encoding="float16", block_rows=2048, blocks=(0, 1), plain_kernels=True)
        extract(root, ConlluCorpus(paths=(corpora() / EWT_DEV,)), resolve_model(smollm2()), settings)
        lake = open_lake(root)
        plan = BlockPlan.from_table(lake.read_table("plan", 0))
        for members in plan_batches(plan.lengths, batch_tokens=lake.commits[0].provenance["batch_tokens"])[:3]:
            batch = make_batch(plan, members)
            with torch.inference_mode():
                model(input_ids=torch.from_numpy(batch.inputs), use_cache=False)
            for layer in lake.layers:
                flat = captured[layer].reshape(-1, lake.neurons)[batch.source].astype(np.float16).astype(np.float32)
                mismatches += int((flat != lake.read(layer=layer, rows=batch.target)).sum())
                compared += flat.size
    return mismatches, compared
