"""TransformerLens: `TransformerBridge`, `run_with_cache` of the inputs of the MLPs' output projections, one np.save a batch.

Settings: the names to keep are given as a list, the cache comes as a plain dictionary; attention patterns are not asked
for (`output_attentions=False`; `run_with_cache` would otherwise), nor a cache of keys and values, nor the logits but for one
position (`logits_to_keep=1`: the bridge has no model without its head, and `stop_at_layer` cannot stop after the last
layer's MLP); inference mode.
"""

import torch
from harness import WARM_BATCHES, Batch, ForwardTime, SavedBatches, open_job
from transformer_lens.model_bridge import TransformerBridge


def main() -> None:
    """Run."""
    job = open_job()
    model = TransformerBridge.boot_transformers(job.model, device="cpu", dtype=torch.float32)
    names = [f"blocks.{layer}.mlp.out.hook_in" for layer in range(model.cfg.n_layers)]
    saved = SavedBatches(job)

    def run(batch: Batch) -> list[torch.Tensor]:
        _, cache = model.run_with_cache(
            torch.from_numpy(batch.ids),
            names_filter=names,
            return_cache_object=False,
            return_type="logits",
            output_attentions=False,
            use_cache=False,
            logits_to_keep=1,
        )
        return [cache[name] for name in names]

    with torch.inference_mode():
        for batch in job.batches[:WARM_BATCHES]:
            run(batch)
        forward = ForwardTime(model.original_model)
        with job.timed():
            for number, batch in enumerate(job.batches):
                saved.save(number, batch, run(batch))
    saved.read_back()
    job.finish(("transformer-lens",), forward_seconds=forward.seconds)


if __name__ == "__main__":
    main()
