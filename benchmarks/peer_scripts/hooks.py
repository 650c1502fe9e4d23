"""The floor of effort: forward hooks that cast each layer's neurons into one float16 memory map of known size."""

import numpy as np
import torch
from harness import WARM_BATCHES, Batch, ForwardTime, open_job
from transformers import AutoModel


def main() -> None:
    """Run."""
    job = open_job()
    model = AutoModel.from_pretrained(job.model, dtype=torch.float32).eval()
    config = model.config
    shape = (config.num_hidden_layers, int(job.starts[-1]), config.intermediate_size)
    file = np.lib.format.open_memmap(job.out / "neurons.npy", mode="w+", dtype=np.float16, shape=shape)
    target = torch.from_numpy(file)
    now: dict[str, torch.Tensor] = {}

    def hook(layer: int, values: torch.Tensor) -> None:
        target[layer].index_copy_(0, now["rows"], values.reshape(-1, values.shape[-1])[now["real"]].to(torch.float16))

    for layer, block in enumerate(model.layers):
        block.mlp.down_proj.register_forward_pre_hook(lambda _, inputs, layer=layer: hook(layer, inputs[0]))

    def run(batch: Batch) -> None:
        now["real"] = torch.from_numpy(batch.real)
        now["rows"] = torch.from_numpy(
            np.concatenate([np.arange(job.starts[member], job.starts[member + 1]) for member in batch.members])
        )
        model(input_ids=torch.from_numpy(batch.ids), use_cache=False)

    with torch.inference_mode():
        for batch in job.batches[:WARM_BATCHES]:
            run(batch)
        forward = ForwardTime(model)
        with job.timed():
            for batch in job.batches:
                run(batch)
            file.flush()
    for sequence in job.checked:
        job.read_back(job.sequence(sequence), file[:, job.starts[sequence] : job.starts[sequence + 1]])
    job.finish((), forward_seconds=forward.seconds)


if __name__ == "__main__":
    main()
