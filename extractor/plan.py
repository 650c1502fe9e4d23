"""The plan: every row of the lake, decided before the model runs. Same inputs, same plan."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import neuronlake.store.layout as layout
import neuronlake.store.tables as tables
from neuronlake.extractor.corpora.records import Word
from neuronlake.extractor.sequences import Sequence
from neuronlake.store.files import FileRecord, write_file
from neuronlake.store.objects import LakePath


class PlanBuilder:
    """Packs whole sequences into blocks and writes each block's tables as soon as it is full.

    A sequence never straddles two blocks: what does not fit opens the next one, and the rows left over are padding.
    """

    def __init__(self, root: LakePath, *, block_rows: int):
        self._root = root
        self._block_rows = block_rows
        self._sequences: list[Sequence] = []
        self._rows = 0
        self._document = -1
        self._first_document = 0
        self._next_sentence = 0
        self._next_word = 0
        self.blocks = 0
        self.files: dict[str, FileRecord] = {}
        self.labels: set[str] = set()
        self.counts: Counter[str] = Counter(
            dict.fromkeys(
                (  # named here, so that a count of zero is shown too
                    "documents",
                    "sentences",
                    "words",
                    "tokens",
                    "special",
                    "multi",
                    "uncovered",
                    "words_unreached",
                    "words_only_multi",
                    "truncated_sequences",
                    "padding",
                ),
                0,
            )
        )

    def add(self, sequence: Sequence) -> None:
        """Add the next sequence of the corpus."""
        if self._rows + len(sequence.ids) > self._block_rows:
            self._flush()
        self._sequences.append(sequence)
        self._rows += len(sequence.ids)

    def finish(self) -> None:
        """Write the last block."""
        if self._sequences:
            self._flush()

    def _flush(self) -> None:
        rows, sentences, words = self._tables()
        for name, table in (("plan", rows), ("sentences", sentences), ("words", words)):
            path = layout.table_path(name, self.blocks)
            self.files[path] = write_file(self._root, path, [tables.to_parquet(table)])
        self.counts["padding"] += self._block_rows - self._rows
        self.blocks += 1
        self._sequences, self._rows = [], 0

    def _tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        columns: dict[str, list[NDArray[Any]]] = {name: [] for name in tables.PLAN_SCHEMA.names if name != "row"}
        sentence_rows: list[dict[str, Any]] = []
        words: list[tuple[int, int, Word]] = []
        for sequence in self._sequences:
            self._document += sequence.new_document
            first_sentence, first_word = self._next_sentence, self._next_word
            for sentence in sequence.sentences:
                sentence_rows.append(
                    {
                        "sentence": self._next_sentence,
                        "document": self._document,
                        "document_name": sentence.document,
                        "name": sentence.name,
                        "source": sentence.source,
                        "text": sentence.text,
                        "metadata": json.dumps(dict(sentence.metadata), ensure_ascii=False),
                    }
                )
                words.extend((self._next_sentence, index, word) for index, word in enumerate(sentence.words))
                self._next_sentence += 1
                self._next_word += len(sentence.words)
            alignment, tokens = sequence.alignment, len(sequence.ids)
            columns["document"].append(np.full(tokens, self._document))
            columns["sentence"].append(first_sentence + sequence.sentence)
            columns["position"].append(np.arange(tokens))
            columns["token_id"].append(sequence.ids)
            columns["word"].append(np.where(alignment.word >= 0, first_word + alignment.word, -1))
            columns["subword"].append(alignment.subword)
            columns["is_last_subword"].append(alignment.is_last)
            columns["char_start"].append(sequence.spans[:, 0])
            columns["char_end"].append(sequence.spans[:, 1])
            columns["flags"].append(alignment.flags)
            self._count(sequence)
        sentences = pa.Table.from_pylist(sentence_rows, schema=tables.SENTENCE_SCHEMA)
        return self._rows_table(columns), sentences, self._word_table(words)

    def _rows_table(self, columns: dict[str, list[NDArray[Any]]]) -> pa.Table:
        padding = self._block_rows - self._rows
        fill = {"flags": tables.PADDING, "is_last_subword": False}
        first = self.blocks * self._block_rows
        arrays = [pa.array(np.arange(first, first + self._block_rows))]
        for field in tables.PLAN_SCHEMA:
            if field.name != "row":
                values = np.concatenate([*columns[field.name], np.full(padding, fill.get(field.name, -1))])
                arrays.append(pa.array(values.astype(field.type.to_pandas_dtype())))
        return pa.Table.from_arrays(arrays, schema=tables.PLAN_SCHEMA)

    def _word_table(self, words: list[tuple[int, int, Word]]) -> pa.Table:
        labels = sorted({label for _, _, word in words for label in word.labels})
        self.labels.update(labels)
        first = self._next_word - len(words)
        columns = [
            pa.array(np.arange(first, self._next_word)),
            pa.array([sentence for sentence, _, _ in words], pa.int64()),
            pa.array([index for _, index, _ in words], pa.int32()),
            pa.array([word.form for _, _, word in words], pa.string()),
            pa.array([word.start for _, _, word in words], pa.int32()),
            pa.array([word.end for _, _, word in words], pa.int32()),
        ]
        columns += [
            pa.array([word.labels.get(label) for _, _, word in words], pa.string()).dictionary_encode() for label in labels
        ]
        return pa.Table.from_arrays(columns, schema=tables.word_schema(labels))

    def _count(self, sequence: Sequence) -> None:
        flags, reached = sequence.alignment.flags, sequence.alignment.reached
        special = flags == tables.SPECIAL
        alone = np.zeros(len(reached), dtype=np.bool_)
        alone[sequence.alignment.word[sequence.alignment.word >= 0]] = True
        self.counts.update(
            documents=int(sequence.new_document),
            sentences=len(sequence.sentences),
            words=len(reached),
            tokens=int((~special).sum()),
            special=int(special.sum()),
            multi=int((flags == tables.MULTI).sum()),
            uncovered=int((flags == tables.UNCOVERED).sum()),
            words_unreached=int((~reached).sum()),
            words_only_multi=int((reached & ~alone).sum()),
            truncated_sequences=int(sequence.truncated),
        )
