"""nnsight: a trace that saves the input of every down projection, and one np.save a batch.

Settings: `NNsight` around the model without its head, which a user of `LanguageModel` would compute for nothing; token ids
go in as a tensor, so that nothing is tokenised or padded again; inference mode, no cache of keys and values; one trace a
batch, all layers in it, in the order of the forward pass.
"""

import torch
from harness import WARM_BATCHES, Batch, ForwardTime, SavedBatches, open_job
from nnsight import NNsight, save
from transformers import AutoModel


def main() -> None:
    """Run."""
    job = open_job()
    module = AutoModel.from_pretrained(job.model, dtype=torch.float32).eval()
    model = NNsight(module)
    saved = SavedBatches(job)

    def run(batch: Batch) -> list[torch.Tensor]:
        with model.trace(input_ids=torch.from_numpy(batch.ids), use_cache=False):
            layers = save([block.mlp.down_proj.input for block in model.layers])
        return list(layers)

    with torch.inference_mode():
        for batch in job.batches[:WARM_BATCHES]:
            run(batch)
        forward = ForwardTime(module)
        with job.timed():
            for number, batch in enumerate(job.batches):
                saved.save(number, batch, run(batch))
    saved.read_back()
    job.finish(("nnsight",), forward_seconds=forward.seconds)


if __name__ == "__main__":
    main()
