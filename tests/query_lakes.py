"""Lakes for queries: words of one or two tokens, a special token before every sentence, ties, constants and bursts."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
from lakes import assign_documents, make_spec, plan_lake, write_blocks

from neuronlake.extractor.align import align
from neuronlake.extractor.corpora.records import Sentence, Word
from neuronlake.extractor.sequences import Sequence
from neuronlake.store import Lake, open_lake
from neuronlake.store.index import complete_index
from neuronlake.store.kept import INDEX, kept_results

ROWS = 128
NEURONS = 70  # a chunk of 64, which is compared at once, and a narrow one


def sentences(rng: np.random.Generator, tokens: int, *, documents: int, special: bool) -> list[Sequence]:
    """Sentences of about so many tokens in all."""
    found: list[Sequence] = []
    left = tokens
    while left > 0:
        length = int(rng.integers(1, 13))
        forms = [f"w{number}" for number in rng.integers(0, 40, size=length)]
        text, ends = " ".join(forms), np.cumsum([len(form) + 1 for form in forms]) - 1
        starts = ends - [len(form) for form in forms]
        words = tuple(
            Word(form=form, start=int(start), end=int(end), labels={"upos": str(rng.choice(["ADJ", "NOUN", "VERB"]))})
            for form, start, end in zip(forms, starts, ends, strict=True)
        )
        spans = [(0, 0)] if special else []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            cuts = [start, start + 1, end] if rng.random() < 0.3 else [start, end]
            spans += pairwise(cuts)
        offsets = np.array(spans)
        flags = np.arange(len(spans)) < special
        found.append(
            Sequence(
                sentences=(
                    Sentence(text=text, words=words, name=f"s{len(found)}", document="?", source="synthetic", place="?"),
                ),
                ids=np.arange(len(spans), dtype=np.int32),
                alignment=align(starts=starts.tolist(), ends=ends.tolist(), offsets=offsets, special=flags),
                sentence=np.zeros(len(spans), dtype=np.int64),
                spans=np.where(flags[:, None], -1, offsets).astype(np.int32),
                truncated=False,
                new_document=False,
            )
        )
        left -= len(spans)
    return assign_documents(found, documents)


def make_lake(
    root: Path, *, encoding: str, seed: int, special: bool = True, tokens: int = 620, blocks: list[int] | None = None
) -> Lake:
    """Blocks of 128 rows, two layers of 70 neurons; special tokens are larger than all others."""
    rng = np.random.default_rng(seed)
    spec = make_spec(layers=2, neurons=NEURONS, block_rows=ROWS, chunk_neurons=64, encoding=encoding)
    sequences = sentences(rng, tokens, documents=6, special=special)
    record, rows = plan_lake(root, spec, sequences)
    values = rng.standard_normal((2, len(rows), NEURONS)).astype(np.float32)
    values[:, :, 1] = np.round(values[:, :, 1])
    values[:, :, 2] = 0
    values[0, ::2, 2] = -0.0
    values[:, :, 3] = np.abs(values[:, :, 3])
    values[:, 40:110, 4] += 5
    values[:, :, 5] = 1.5
    firsts = np.cumsum([0, *(len(sequence.ids) for sequence in sequences)])[:-1]
    if special:
        values[:, firsts, 6:10] += 20
    write_blocks(root, spec, record, rows, values, blocks)
    return open_lake(root)


def lakes_of(folder: Path, encoding: str, *, special: bool) -> list[Lake]:
    """One lake indexed by block, the same one merged, partly indexed, not indexed, and with blocks missing."""
    by_block = make_lake(folder / "a.lake", encoding=encoding, seed=1, special=special)
    merged, partly, bare = (folder / name for name in ("merged.lake", "partly.lake", "bare.lake"))
    for path in (merged, partly, bare):
        shutil.copytree(by_block.path, path)
    complete_index(open_lake(merged))
    for name in kept_results(partly, kept=INDEX)[::2]:
        shutil.rmtree(partly / INDEX / name)
    shutil.rmtree(bare / INDEX)
    some = make_lake(folder / "some.lake", encoding=encoding, seed=1, special=special, blocks=[1, 3, 4])
    return [by_block, open_lake(merged), open_lake(partly), open_lake(bare), some]


def stored(lake: Lake, layer: int) -> np.ndarray:
    """All values of the committed blocks, float32 (lines, neurons)."""
    return np.concatenate([lake.read_block(layer=layer, block=block) for block in lake.blocks])


def flags(lake: Lake) -> np.ndarray:
    """Flags of all lines."""
    return lake.tokens().column("flags").to_numpy()
