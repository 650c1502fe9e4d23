"""NeuroX: `extract_representations`, which keeps the residual stream after each layer, one vector a word.

Settings: it reads text only, one sentence at a time, tokenises each of its words by itself and the sentence once more, and
computes no batches; there is nothing to choose. HDF5, since its JSON is slower and larger; float32, which it always writes;
the embeddings left out; no cache of keys and values. What it prints goes nowhere. Its pins are of 2021 (torch 1.8): it is
installed without them.
"""

import contextlib
import os
from pathlib import Path

import h5py
import numpy as np
import torch
from harness import WARM_BATCHES, ForwardTime, open_job
from neurox.data.extraction import transformers_extractor


def main() -> None:
    """Run."""
    job = open_job()
    model, tokenizer = transformers_extractor.get_model_and_tokenizer(job.model)
    model.eval()
    model.config.use_cache = False
    transformers_extractor.get_model_and_tokenizer = lambda *_, **__: (model, tokenizer)  # loading does not count
    sentences = Path(job.options["sentences"]).read_text().splitlines()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        for sentence in sentences[:WARM_BATCHES]:
            transformers_extractor.extract_sentence_representations(sentence, model, tokenizer)
        forward = ForwardTime(model)
        with job.timed():
            transformers_extractor.extract_representations(
                job.model,
                job.options["sentences"],
                str(job.out / "states.hdf5"),
                output_type="hdf5",
                ignore_embeddings=True,
            )
    tokens = [tokenizer.encode(sentence) for sentence in sentences]
    with h5py.File(job.out / "states.hdf5") as file:
        values = sum(file[str(number)].size for number in range(len(sentences)))
        for number in job.checked:
            encoded = tokenizer(sentences[number], return_offsets_mapping=True)
            ends = np.array([end for _, end in encoded["offset_mapping"]])
            words = np.cumsum([len(word) + 1 for word in sentences[number].split(" ")]) - 1
            last = np.searchsorted(ends, words, side="right") - 1
            job.read_back(encoded["input_ids"], file[str(number)][:], last)
    job.finish(
        ("NeuroX", "h5py"),
        tokens=sum(map(len, tokens)),
        values=values,
        site="residual stream",
        forward_seconds=forward.seconds,
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
