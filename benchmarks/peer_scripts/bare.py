"""The limit: the forward passes alone. No head, no cache of keys and values: whoever wants neurons needs neither."""

import torch
from harness import WARM_BATCHES, open_job
from transformers import AutoModel


def main() -> None:
    """Run."""
    job = open_job()
    model = AutoModel.from_pretrained(job.model, dtype=torch.float32).eval()
    with torch.inference_mode():
        for batch in job.batches[:WARM_BATCHES]:
            model(input_ids=torch.from_numpy(batch.ids), use_cache=False)
        with job.timed():
            for batch in job.batches:
                model(input_ids=torch.from_numpy(batch.ids), use_cache=False)
    job.finish(())


if __name__ == "__main__":
    main()
