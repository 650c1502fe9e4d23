"""A lake held in memory: the reading side only, for tests that need no files."""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SPECIAL, PADDING, MULTI = 1, 2, 4


def to_codes(values: NDArray[np.float32], encoding: str) -> NDArray[Any]:
    """Stored form of float32 values; bfloat16 by truncation, which is exact for values that fit."""
    if encoding == "float16":
        return values.astype(np.float16).view(np.uint16)
    if encoding == "bfloat16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float32)


def from_codes(codes: NDArray[Any], encoding: str) -> NDArray[np.float32]:
    """Values of stored codes, by NumPy alone."""
    if encoding == "float16":
        return codes.view(np.float16).astype(np.float32)
    if encoding == "bfloat16":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    return codes


class MemoryLake:
    """Documents × sentences × words of random text with planted activations.

    Every word has one or two tokens, every sentence starts with a special token, blocks end in padding.
    """

    fingerprint = "memory"
    site = "mlp.post"
    label_columns = ("upos", "form", "source", "document_name")

    def __init__(
        self,
        *,
        layers: Sequence[int] = (0, 2),
        neurons: int = 10,
        chunk_neurons: int = 4,
        block_rows: int = 64,
        documents: int = 6,
        sentences: int = 4,
        words: int = 9,
        tags: Sequence[str] = ("NOUN", "VERB", "ADJ"),
        encoding: str = "float16",
        seed: int = 0,
        vocabulary: int = 40,
    ):
        self.layers = tuple(layers)
        self.neurons, self.chunk_neurons = neurons, chunk_neurons
        self.block_rows, self.encoding = block_rows, encoding
        rng = np.random.default_rng(seed)
        self._rows: list[dict[str, Any]] = []
        self._words: list[dict[str, Any]] = []
        self._sentences: list[dict[str, Any]] = []
        for document in range(documents):
            for _ in range(sentences):
                self._add_sentence(rng, document, words, tags, vocabulary)
        self._pad()
        self.blocks = tuple(range(len(self._rows) // block_rows))
        self.values = {layer: rng.normal(size=(len(self._rows), neurons)).astype(np.float32) for layer in self.layers}

    def _add_sentence(
        self, rng: np.random.Generator, document: int, words: int, tags: Sequence[str], vocabulary: int
    ) -> None:
        sentence = len(self._sentences)
        chosen = [(f"w{rng.integers(vocabulary)}", int(rng.integers(1, 3))) for _ in range(words)]
        if len(self._rows) % self.block_rows + 1 + sum(count for _, count in chosen) > self.block_rows:
            self._pad()
        self._row(document, sentence, -1, 0, True, -1, -1, SPECIAL)
        text = ""
        for index, (form, count) in enumerate(chosen):
            start = len(text)
            text += form + " "
            word = len(self._words)
            tag = tags[(int(form[1:]) + int(rng.random() < 0.2)) % len(tags)] if rng.random() > 0.05 else None
            self._words.append(
                {
                    "word": word,
                    "sentence": sentence,
                    "index": index,
                    "form": form,
                    "char_start": start,
                    "char_end": start + len(form),
                    "upos": tag,
                    "document": document,
                }
            )
            cuts = [start, *(start + 1 for _ in range(count - 1)), start + len(form)]
            for subword in range(count):
                self._row(document, sentence, word, subword, subword == count - 1, *cuts[subword : subword + 2], 0)
        self._sentences.append(
            {"sentence": sentence, "document": document, "document_name": f"d{document}", "text": text.rstrip()}
        )

    def _row(
        self, document: int, sentence: int, word: int, subword: int, last: bool, start: int, end: int, flags: int
    ) -> None:
        self._rows.append(
            {
                "row": len(self._rows),
                "document": document,
                "sentence": sentence,
                "position": 0,
                "token_id": -1 if flags & PADDING else 1,
                "word": word,
                "subword": subword,
                "is_last_subword": last,
                "char_start": start,
                "char_end": end,
                "flags": flags,
            }
        )

    def _pad(self) -> None:
        while len(self._rows) % self.block_rows:
            self._row(-1, -1, -1, 0, False, -1, -1, PADDING)

    def column(self, name: str) -> NDArray[Any]:
        """A column of the token table; labels as objects, None where absent."""
        return np.array(self.tokens([name] if name in self.label_columns else []).column(name).to_pylist())

    def stored(self, layer: int) -> NDArray[np.float32]:
        """All values of a layer as they are stored, float32 (rows, neurons)."""
        return from_codes(to_codes(self.values[layer], self.encoding), self.encoding)

    def read_codes(self, *, layer: int, block: int, chunk: int, out: NDArray[Any]) -> NDArray[Any]:
        assert out.flags.c_contiguous
        assert out.shape == (self.block_rows, self.chunk_neurons)
        columns = slice(chunk * self.chunk_neurons, (chunk + 1) * self.chunk_neurons)
        codes = to_codes(self.values[layer], self.encoding)[self._block(block), columns]
        out[:] = 0
        out[:, : codes.shape[1]] = codes
        return out[:, : codes.shape[1]]

    def read_chunks(
        self, *, layer: int, block: int, chunks: range, rows: int | None, out: NDArray[Any]
    ) -> Generator[NDArray[Any]]:
        for chunk in chunks:
            found = self.read_codes(layer=layer, block=block, chunk=chunk, out=out)
            out[rows:] = np.nan if out.dtype == np.float32 else 0x7FFF  # NaN in float16 and bfloat16: nobody may look
            yield found

    def chunk_scales(self, *, layer: int, block: int, chunk: int) -> None:
        """None of its encodings has any."""

    def read_block(
        self,
        *,
        layer: int,
        block: int,
        neurons: Sequence[int] | None = None,
        rows: Any = None,
        out: Any = None,
    ) -> NDArray[np.float32]:
        values = self.stored(layer)[self._block(block)]
        if out is not None:
            assert neurons is None
            out[:] = values if rows is None else values[rows]
            return out
        return np.ascontiguousarray(values if neurons is None else values[:, list(neurons)])

    def tokens(self, labels: Sequence[str] = (), blocks: Sequence[int] | None = None) -> pa.Table:
        table = pa.Table.from_pylist(self._rows)
        for label in labels:
            values = [self._label(row, label) for row in self._rows]
            table = table.append_column(label, pa.array(values, pa.string()).dictionary_encode())
        return table if blocks is None else pa.concat_tables([table[self._block(block)] for block in blocks])

    def _label(self, row: dict[str, Any], label: str) -> str | None:
        if label == "document_name":
            return None if row["sentence"] < 0 else str(self._sentences[row["sentence"]]["document_name"])
        return None if row["word"] < 0 else self._words[row["word"]][label]

    def words(self, columns: Sequence[str] | None = None) -> pa.Table:
        table = pa.Table.from_pylist(self._words)
        return table if columns is None else table.select(list(columns))

    def sentences(self, blocks: Sequence[int] | None = None) -> pa.Table:  # noqa: ARG002  (more than asked for is no fault)
        return pa.Table.from_pylist(self._sentences)

    def _block(self, block: int) -> slice:
        return slice(block * self.block_rows, (block + 1) * self.block_rows)
