"""SAELens: `CacheActivationsRunner`, which keeps one place of the model a run.

Settings: its pre-tokenised way (a data set of token ids, all contexts full, so that it computes no padding: our sentences
one after the other, cut into contexts of 128), batches of the same 512 tokens, one buffer for everything, not shuffled,
float16. Of its two ways to hold a Llama the one of transformers (`AutoModelForCausalLM`): its `HookedTransformer` takes no
model from a folder. That way sees what modules return, not what they are given, hence an identity before the down
projection; it is the only module with a hook, and SAELens stops each forward pass there. So a run costs the more the
later the layer is: the middle one is measured, and stands for the mean.
"""

import torch
from datasets import Dataset
from harness import WARM_BATCHES, open_job
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
from sae_lens.load_model import HookedProxyLM
from transformers import AutoModelForCausalLM, AutoTokenizer

CONTEXT = 128
CONTEXTS_PER_BATCH = 4


def main() -> None:
    """Run."""
    job = open_job()
    module = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).eval()
    layer = module.config.num_hidden_layers // 2
    mlp = module.model.layers[layer].mlp
    mlp.down_proj = torch.nn.Sequential(torch.nn.Identity(), mlp.down_proj)
    hook = f"model.layers.{layer}.mlp.down_proj.0"
    # the runner loads models by name only, and hooks every module of them
    proxy = HookedProxyLM(module, AutoTokenizer.from_pretrained(job.model), hook_names=[hook])
    cache_activations_runner.load_model = lambda **_: proxy

    batches = len(job.ids) // (CONTEXT * CONTEXTS_PER_BATCH)
    contexts = job.ids[: batches * CONTEXTS_PER_BATCH * CONTEXT].reshape(-1, CONTEXT)
    neurons = module.config.intermediate_size
    settings = CacheActivationsRunnerConfig(
        dataset_path="the sentences",
        model_name="SmolLM2",
        model_class_name="AutoModelForCausalLM",
        model_batch_size=CONTEXTS_PER_BATCH,
        hook_name=hook,
        d_in=neurons,
        training_tokens=contexts.size,
        context_size=CONTEXT,
        new_cached_activations_path=str(job.out / "activations"),
        shuffle=False,
        dtype="float16",
        device="cpu",
        buffer_size_gb=(contexts.size + 0.5) * neurons * 2 / 1e9,  # half a token more, since it is rounded down
        prepend_bos=False,
        streaming=False,
    )
    runner = CacheActivationsRunner(settings, override_dataset=Dataset.from_dict({"input_ids": contexts.tolist()}))
    with torch.inference_mode():
        for number in range(min(WARM_BATCHES, batches)):
            first = number * CONTEXTS_PER_BATCH
            tokens = torch.from_numpy(contexts[first : first + CONTEXTS_PER_BATCH]).long()
            proxy.run_with_cache(tokens, names_filter=[hook], stop_at_layer=layer + 1)
    with job.timed():
        stored = runner.run()
    stored = stored.with_format("numpy")
    for context in sorted({0, len(contexts) // 2, len(contexts) - 1}):
        job.read_back(stored[context]["token_ids"], stored[context][hook][None])
    job.finish(
        ("sae-lens", "transformer-lens", "datasets"), tokens=contexts.size, values=contexts.size * neurons, layers=[layer]
    )


if __name__ == "__main__":
    main()
