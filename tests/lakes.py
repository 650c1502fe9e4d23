"""Synthetic lakes written through the real plan builder and block writer."""

from collections.abc import Mapping
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.extractor.align import align
from neuronlake.extractor.corpora.records import Sentence, Word
from neuronlake.extractor.plan import PlanBuilder
from neuronlake.extractor.sequences import Sequence
from neuronlake.store import BlockWriter, Lake, LakeSpec, create_lake, open_lake
from neuronlake.store.commits import Commit, commit_bytes
from neuronlake.store.plan_record import PlanRecord, publish_plan


def make_spec(
    *,
    layers: int,
    neurons: int,
    block_rows: int,
    chunk_neurons: int,
    encoding: str,
    site: str = layout.DEFAULT_SITE,
    others: Mapping[str, int] | None = None,
) -> LakeSpec:
    """A spec for activations of no particular model; `others` are further sites and their widths."""
    widths = dict(others or {})
    return LakeSpec(
        model={"name": "synthetic", "sha256": "0", "architecture": "none"},
        capture={"dtype": "float32"},
        plan={"corpus": {"kind": "synthetic"}, "context": "sentence"},
        sites=(site, *widths),
        layers=tuple(range(layers)),
        neurons=neurons,
        block_rows=block_rows,
        chunk_neurons=chunk_neurons,
        encoding=encoding,
        widths={site: width for site, width in widths.items() if width != neurons},
    )


def make_sentence(forms: Many[str], labels: Many[dict[str, str]], *, name: str, document: str) -> Sequence:
    """One sequence whose tokens are exactly its words."""
    text = " ".join(forms)
    ends = np.cumsum([len(form) + 1 for form in forms]) - 1
    starts = ends - [len(form) for form in forms]
    words = tuple(
        Word(form=form, start=int(start), end=int(end), labels=label)
        for form, start, end, label in zip(forms, starts, ends, labels, strict=True)
    )
    return make_sequence(Sentence(text=text, words=words, name=name, document=document, source="synthetic", place=name))


def make_sequence(sentence: Sentence, *, new_document: bool = False) -> Sequence:
    """One sequence with a token for every span of the sentence's words."""
    spans = np.array(sorted({(word.start, word.end) for word in sentence.words}))
    texts = [sentence.text[start:end] for start, end in spans]
    return Sequence(
        sentences=(sentence,),
        ids=np.array([sum(map(ord, text)) % 1000 for text in texts], dtype=np.int32),
        alignment=align(
            starts=[word.start for word in sentence.words],
            ends=[word.end for word in sentence.words],
            offsets=spans,
            special=np.zeros(len(spans), dtype=np.bool_),
        ),
        sentence=np.zeros(len(spans), dtype=np.int64),
        spans=spans.astype(np.int32),
        truncated=False,
        new_document=new_document,
    )


def plan_lake(root: Path, spec: LakeSpec, sequences: Many[Sequence]) -> tuple[PlanRecord, NDArray[np.int64]]:
    """Plan the sequences (each document's first must be marked) and return the record and every token's global row."""
    root_record = create_lake(root, spec)
    builder = PlanBuilder(root, block_rows=spec.block_rows)
    rows: list[int] = []
    block_fill = 0
    for sequence in sequences:
        if block_fill + len(sequence.ids) > spec.block_rows:
            rows.append(-1)
            block_fill = 0
        builder.add(sequence)
        block_fill += len(sequence.ids)
        rows.extend([len(sequence.ids)])
    builder.finish()
    where, block, fill = [], 0, 0
    for length in rows:
        if length < 0:
            block, fill = block + 1, 0
        else:
            where.extend(range(block * spec.block_rows + fill, block * spec.block_rows + fill + length))
            fill += length
    record = publish_plan(
        root,
        spec,
        PlanRecord(
            fingerprint=spec.fingerprint,
            blocks=builder.blocks,
            label_columns=tuple(sorted(builder.labels)),
            counts=dict(builder.counts),
            special_tokens={},
            files={root_record.path: root_record, **builder.files},
        ),
    )
    return record, np.array(where)


def write_blocks(
    root: Path,
    spec: LakeSpec,
    record: PlanRecord,
    rows: NDArray[np.int64],
    values: NDArray[np.float32] | Mapping[str, NDArray[np.float32]],
    blocks: Many[int] | None = None,
    tap: Any = None,
) -> None:
    """Commit blocks: `values` is float32 (layers, tokens, neurons), or by site; `rows` each token's global row."""
    of_sites = values if isinstance(values, Mapping) else {spec.sites[0]: values}
    with BlockWriter(root, spec, tap=tap) as writer:
        for block in range(record.blocks) if blocks is None else blocks:
            mine = np.flatnonzero(rows // spec.block_rows == block)
            buffer = writer.buffer(len(mine))
            for site, layer in buffer.keys:
                buffer.put(
                    site,
                    layer,
                    np.ascontiguousarray(of_sites[site][layer][mine]),
                    np.arange(len(mine)),
                    rows[mine] % spec.block_rows,
                )
            writer.submit(block, len(mine), buffer, {"backend": "synthetic"})


def random_sentences(rng: np.random.Generator, tokens: int, *, tags: Many[str], documents: int = 4) -> list[Sequence]:
    """Sentences of 1 to 12 words until `tokens` are there, with a random upos each."""
    sentences: list[Sequence] = []
    left = tokens
    while left:
        length = min(left, int(rng.integers(1, 13)))
        upos = rng.choice(list(tags), size=length)
        forms = [f"w{int(number)}" for number in rng.integers(0, 50, size=length)]
        sentences.append(make_sentence(forms, [{"upos": str(tag)} for tag in upos], name=f"s{len(sentences)}", document="?"))
        left -= length
    return assign_documents(sentences, documents)


def assign_documents(sentences: list[Sequence], documents: int) -> list[Sequence]:
    """Divide sentences into contiguous documents."""
    import dataclasses

    bounds = {int(first) for first in np.linspace(0, len(sentences), documents + 1)[:-1]}
    current, result = -1, []
    for index, sequence in enumerate(sentences):
        opens = index in bounds
        current += opens
        sentence = dataclasses.replace(sequence.sentences[0], document=f"d{current}")
        result.append(dataclasses.replace(sequence, sentences=(sentence,), new_document=opens))
    return result


def synthetic_lake(
    root: Path,
    *,
    tokens: int = 100,
    layers: int = 2,
    neurons: int = 10,
    block_rows: int = 64,
    chunk_neurons: int = 4,
    encoding: str = "float16",
    seed: int = 0,
    values: Any = None,
) -> tuple[LakeSpec, NDArray[np.int64], NDArray[np.float32]]:
    """Write a whole random lake; returns spec, every token's row, and the float32 values (layers, tokens, neurons)."""
    rng = np.random.default_rng(seed)
    spec = make_spec(layers=layers, neurons=neurons, block_rows=block_rows, chunk_neurons=chunk_neurons, encoding=encoding)
    record, rows = plan_lake(root, spec, random_sentences(rng, tokens, tags=("ADJ", "NOUN", "VERB")))
    if values is None:
        values = rng.standard_normal((layers, tokens, neurons)).astype(np.float32)
    write_blocks(root, spec, record, rows, values)
    return spec, rows, values


def two_site_lake(
    root: Path, *, tokens: int = 300, encoding: str = "float16", start: Any = None, sites: Mapping[str, int] | None = None
) -> tuple[LakeSpec, NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """Write a random lake of 10 neurons at mlp.post and 7 units at resid.post, or of other sites, in blocks of 64 rows.

    Returns spec, every token's row, and the float32 values of every site (layers, tokens, units); unit 3 of both is large on
    nouns, the more so at the second. `start` gets the planned lake and returns the writer's tap.
    """
    rng = np.random.default_rng(11)
    widths = {layout.DEFAULT_SITE: 10, "resid.post": 7} if sites is None else dict(sites)
    (first, neurons), *others = widths.items()
    spec = make_spec(
        layers=2, neurons=neurons, block_rows=64, chunk_neurons=4, encoding=encoding, site=first, others=dict(others)
    )
    sentences = random_sentences(rng, tokens, tags=("ADJ", "NOUN", "VERB"))
    record, rows = plan_lake(root, spec, sentences)
    nouns = np.array([word.labels["upos"] == "NOUN" for sequence in sentences for word in sequence.sentences[0].words])
    values = {site: rng.standard_normal((2, tokens, width)).astype(np.float32) for site, width in widths.items()}
    for place, site in enumerate(widths):
        values[site][:, nouns, 3] += 1 + place
    write_blocks(root, spec, record, rows, values, tap=None if start is None else start(root))
    return spec, rows, values


class GrowingLake:
    """A lake of six blocks that are committed when asked for; a tag occurs in the later ones only."""

    def __init__(self, root: Path, encoding: str = "float16"):
        self.root = root
        self.spec = make_spec(layers=2, neurons=10, block_rows=64, chunk_neurons=4, encoding=encoding)
        rng = np.random.default_rng(5)
        sentences = random_sentences(rng, 180, tags=("ADJ", "NOUN")) + random_sentences(rng, 180, tags=("NOUN", "VERB"))
        self.record, self.rows = plan_lake(root, self.spec, assign_documents(sentences, 7))
        self.values = rng.standard_normal((2, 360, 10)).astype(np.float32)

    def commit(self, *blocks: int, tap: Any = None) -> Lake:
        write_blocks(self.root, self.spec, self.record, self.rows, self.values, blocks=blocks, tap=tap)
        return open_lake(self.root)


def assert_close_statistics(found: Any, expected: Any) -> None:
    """Equal up to the order in which blocks were added and the bins that the first block chose."""
    assert found["tag"].to_numpy().tolist() == expected["tag"].to_numpy().tolist()
    for name in found.data_vars:
        if f"{name}_error" in found:
            slack = found[f"{name}_error"] + expected[f"{name}_error"]
            assert (abs(found[name] - expected[name]) <= slack + 1e-12).all(), name
        elif name in ("count", "minimum", "maximum", "fraction_active"):
            assert found[name].identical(expected[name]), name
        elif name in ("mean", "variance", "third_moment", "fourth_moment", "mean_absolute"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


def foreign_values(root: Path, layer: int, site: str = layout.DEFAULT_SITE) -> NDArray[np.float32]:
    """A layer through plain zarr-python and the formula in its attributes alone: float32 (rows of the plan, neurons)."""
    array = zarr.open_array(root / f"activations/{site}/{layer}", mode="r")
    formula, a = str(array.attrs["decode"]), array[:]
    if "scales" not in array.attrs:
        return np.asarray(eval(formula, {"a": a, "numpy": np}), dtype=np.float32)
    scales = zarr.open_array(root / str(array.attrs["scales"]), mode="r")
    rows = a.shape[0] // scales.shape[1]
    blocks = []
    for block in range(scales.shape[1]):
        unit, knee = np.moveaxis(scales[scales.attrs["layers"].index(layer), block], -1, 0)
        names = {"a": a[block * rows : (block + 1) * rows], "unit": unit, "knee": knee, "numpy": np}
        blocks.append(eval(formula, names))
    return np.concatenate(blocks).astype(np.float32)


def forge_commit(root: Path, commit: Commit) -> None:
    """Put a commit record in place of the one that is there, which `write_commit` would not."""
    (root / layout.commit_path(commit.block)).write_bytes(commit_bytes(commit))
