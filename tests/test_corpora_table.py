"""Tables tagged beforehand: JSON lines and Parquet give the same sentences; malformed ones are refused."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuronlake.extractor.corpora import Sentence, TableCorpus
from neuronlake.extractor.corpora.table import RESERVED_LABELS
from neuronlake.store.errors import InputError

RECORDS: list[dict[str, Any]] = [
    {"words": ["Hi", "you"], "document": "d1", "sentence": "s1", "upos": ["INTJ", "PRON"], "genre": "chat", "freq": [3, 4]},
    {"words": ["Hi", "!"], "spaces": [False, True], "document": "d1", "upos": ["INTJ", ""], "freq": [3, None], "year": 1999},
    {"words": ["a", "b"], "text": " a   b", "upos": [None, "X"], "year": 2000, "genre": None},
]
EXPECTED = [
    (
        "Hi you",
        [(0, 2), (3, 6)],
        [{"upos": "INTJ", "freq": "3"}, {"upos": "PRON", "freq": "4"}],
        "s1",
        "d1",
        {"genre": "chat"},
    ),
    ("Hi!", [(0, 2), (2, 3)], [{"upos": "INTJ", "freq": "3"}, {}], "t:2", "d1", {"year": "1999"}),
    (" a   b", [(1, 2), (5, 6)], [{}, {"upos": "X"}], "t:3", "t", {"year": "2000"}),
]


def read(path: Path, **settings: int) -> list[Sentence]:
    return list(TableCorpus(paths=(path,), **settings).sentences())


def write(folder: Path, suffix: str, records: list[dict[str, Any]]) -> Path:
    path = folder / f"t{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records, schema=schema_of(records)), path, row_group_size=2)
    else:
        text = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    return path


def schema_of(records: list[dict[str, Any]]) -> pa.Schema:
    return pa.unify_schemas([pa.Table.from_pylist([record]).schema for record in records], promote_options="permissive")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_kind_gives_the_same_sentences(tmp_path: Path, suffix: str) -> None:
    sentences = read(write(tmp_path, suffix, RECORDS))
    assert [
        (s.text, [(w.start, w.end) for w in s.words], [w.labels for w in s.words], s.name, s.document, s.metadata)
        for s in sentences
    ] == EXPECTED
    separator = ": row " if suffix == ".parquet" else ":"
    assert [s.place for s in sentences] == [f"t{suffix}{separator}{i}" for i in (1, 2, 3)]
    assert len(read(tmp_path, limit_sentences=2)) == 2


def test_parquet_is_read_past_one_batch(tmp_path: Path) -> None:
    path = write(tmp_path, ".parquet", [{"words": [f"w{i}"], "n": [i]} for i in range(1_000)])
    assert [s.words[0].labels["n"] for s in read(path)] == [str(i) for i in range(1_000)]


def test_scalars_become_strings(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('\n{"words": ["a", "b", "c"], "x": [1.5, true, NaN], "document": 7, "sentence": 8, "ok": false}\n')
    [sentence] = read(path)
    assert [w.labels for w in sentence.words] == [{"x": "1.5"}, {"x": "true"}, {}]
    assert (sentence.document, sentence.name, sentence.metadata) == ("7", "8", {"ok": "false"})
    assert sentence.place == "t.jsonl:2"


@dataclass(frozen=True, kw_only=True)
class Malformed:
    id: str
    line: str
    message: str


MALFORMED = [
    Malformed(id="not-json", line="{", message="not a JSON object on one line"),
    Malformed(id="not-an-object", line="[1]", message="expected a JSON object, got list"),
    Malformed(id="key-twice", line='{"words": ["a"], "x": ["1"], "x": ["2"]}', message=".*a key is given twice"),
    Malformed(id="no-words", line='{"text": "a"}', message="words must be a list of at least one string, got None"),
    Malformed(id="empty-words", line='{"words": []}', message="words must be a list of at least one string"),
    Malformed(id="words-string", line='{"words": "a b"}', message="words must be a list of at least one string, got 'a b'"),
    Malformed(
        id="blank-word", line='{"words": ["a", " "]}', message=r"words\[1\] must be a string that is not blank, got ' '"
    ),
    Malformed(id="number-word", line='{"words": [1]}', message=r"words\[0\] must be a string .* got 1"),
    Malformed(id="length", line='{"words": ["a"], "x": ["1", "2"]}', message="label column 'x' has 2 values, expected 1"),
    Malformed(id="nested", line='{"words": ["a"], "x": [["1"]]}', message=r"x\[0\] must be text, a number or null"),
    Malformed(id="object", line='{"words": ["a"], "x": {"y": 1}}', message="x must be text, a number or null"),
    Malformed(id="spaces", line='{"words": ["a"], "spaces": [1]}', message="spaces must be a list of 1 booleans"),
    Malformed(id="spaces-length", line='{"words": ["a"], "spaces": []}', message="spaces must be a list of 1 booleans"),
    Malformed(id="text", line='{"words": ["a"], "text": 1}', message="text must be a string, got 1"),
    Malformed(
        id="text-differs",
        line='{"words": ["a", "b"], "text": "a c", "sentence": "s"}',
        message=r"sentence s, words\[1\]: .* expected 'b' at character 2, got 'c'",
    ),
    Malformed(id="document", line='{"words": ["a"], "document": ["d"]}', message="'document' is the id of the document"),
]


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.id)
def test_malformed_lines_are_refused_with_file_and_line(tmp_path: Path, case: Malformed) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"words": ["fine"]}\n' + case.line)
    with pytest.raises(InputError, match=f"^t.jsonl:2: {case.message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(RESERVED_LABELS))
def test_reserved_names_are_no_labels(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"t.jsonl:1: '{name}' (cannot be the name of a label|is the id)"):
        read(write(tmp_path, ".jsonl", [{"words": ["a"], name: ["x"]}]))


def test_bad_parquet_names_the_row_or_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, ".parquet", [{"words": ["a"], "x": ["1"]}, {"words": ["a"], "x": ["1", "2"]}])
    with pytest.raises(InputError, match=r"t.parquet: row 2: label column 'x' has 2 values"):
        read(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"t.parquet: not a readable Parquet file"):
        read(path)
    pq.write_table(pa.table([[["a"]], [["b"]]], names=["words", "words"]), path)
    with pytest.raises(InputError, match=r"t.parquet: a column name is given twice"):
        read(path)


def test_files_and_identity(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("words\na")
    with pytest.raises(InputError, match=r"t.csv: unknown kind of table; expected a file named \*.jsonl"):
        TableCorpus(paths=(tmp_path / "t.csv",)).sentences()
    write(tmp_path, ".jsonl", RECORDS)
    identity = TableCorpus(paths=(tmp_path,), limit_sentences=5).identity()
    assert (identity["kind"], identity["limit_sentences"]) == ("table", 5)
    assert [sorted(file) for file in identity["files"]] == [["name", "sha256"]]
    json.dumps(identity)
