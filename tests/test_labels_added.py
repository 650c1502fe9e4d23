"""Labels added to a lake from a table: what is read is what was given, and what does not fit is refused whole."""

import csv
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lakes import GrowingLake, make_sentence, make_spec, plan_lake, random_sentences, synthetic_lake

import neuronlake.store.layout as layout
from neuronlake.analysis import (
    StatisticsBuilder,
    complete_tag_lists,
    compute_statistics,
    permutation_test,
    probe,
    rank,
    refine,
    token_labels,
    top_tokens,
)
from neuronlake.analysis.kept_statistics import discard_of_labels
from neuronlake.store import (
    DamageError,
    InputError,
    LabelSettings,
    create_lake,
    label_from_table,
    open_lake,
    remove_label_set,
    verify,
)
from neuronlake.store.label_sets import LABELS
from neuronlake.store.reader import ShardReader


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    synthetic_lake(root, tokens=300)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "a.lake"))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write(table: dict[str, Any], path: Path) -> Path:
    frame = pd.DataFrame(table)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        tabs = path.suffix == ".tsv"  # where a quote is a character like any other
        frame.to_csv(path, index=False, sep="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    return path


def by_word(root: Path, column: str) -> dict[int, str | None]:
    table = open_lake(root).words(["word", column])
    return dict(zip(table.column("word").to_pylist(), table.column(column).to_pylist(), strict=True))


# ---- what is read is what was given -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_a_table_by_word_number(root: Path, tmp_path: Path, suffix: str) -> None:
    """In any order, not all words, text that looks like numbers, null and empty."""
    words = np.random.default_rng(0).permutation(300)[:200]
    given = {
        "word": words,
        "family": [None if word % 7 == 0 else f'0{word % 5} é"x' for word in words],
        "empty": ["" if word % 2 else "full" for word in words],
    }
    before = contents(root)
    labels = label_from_table(root, write(given, tmp_path / f"my words{suffix}"))
    assert labels.name == "my-words"
    assert labels.columns == ("empty", "family")
    assert labels.labelled == {"empty": int(np.sum(words % 2 == 0)), "family": int(np.sum(words % 7 != 0))}
    expected = dict.fromkeys(range(300)) | dict(zip(given["word"].tolist(), given["family"], strict=True))
    assert by_word(root, "family") == expected
    assert set(by_word(root, "empty").values()) == {"full", None}
    table = open_lake(root).tokens(labels=["family", "upos", "form"]).to_pylist()
    assert [row["family"] for row in table] == [expected.get(row["word"]) for row in table]
    after = contents(root)
    assert {path: after[path] for path in before} == before  # nothing of the lake was rewritten
    assert open_lake(root).label_columns == ("upos", "empty", "family", "form", "source", "document_name")
    report = verify(root, full=True)
    assert report.ok
    assert (report.leftovers, report.unknown_files) == ([], [])


def test_numbers_and_booleans_become_text(root: Path) -> None:
    count = 300
    table = pa.table(
        {
            "word": pa.array(range(count), pa.int32()),
            "integer": pa.array([None if i % 3 == 0 else i for i in range(count)]),
            "real": pa.array([float("nan") if i % 2 else i / 4 for i in range(count)]),
            "flag": pa.array([i % 2 == 0 for i in range(count)]),
            "category": pa.array([f"c{i % 4}" for i in range(count)]).dictionary_encode(),
        }
    )
    labels = label_from_table(root, table, LabelSettings(name="x"))
    assert labels.source == {"kind": "table", "files": []}
    assert by_word(root, "integer") == {i: None if i % 3 == 0 else str(i) for i in range(count)}
    real = by_word(root, "real")
    assert [value is None for value in real.values()] == [i % 2 == 1 for i in range(count)]
    assert all(float(value) == i / 4 for i, value in real.items() if value is not None)
    assert by_word(root, "flag") == {i: "true" if i % 2 == 0 else "false" for i in range(count)}
    assert by_word(root, "category") == {i: f"c{i % 4}" for i in range(count)}


def test_one_line_per_word_in_order(root: Path, tmp_path: Path) -> None:
    forms = open_lake(root).words(["form"]).column("form").to_pylist()
    path = write({"form": forms, "long": [str(len(form)) for form in forms]}, tmp_path / "lengths.tsv")
    label_from_table(root, path)
    assert list(by_word(root, "long").values()) == [str(len(form)) for form in forms]


def test_labels_of_tokens_by_row(root: Path) -> None:
    lake = open_lake(root)
    rows = lake.tokens().filter(pa.compute.not_equal(lake.tokens().column("flags"), 2)).column("row").to_pylist()
    chosen = rows[::-2]
    labels = label_from_table(root, pa.table({"row": chosen, "parity": [f"p{row % 3}" for row in chosen]}))
    assert (labels.of, labels.lines, labels.labelled) == ("rows", 300, {"parity": len(chosen)})
    lake = open_lake(root)
    expected = {row: f"p{row % 3}" for row in chosen}
    found = lake.tokens(labels=["parity", "upos"]).to_pylist()
    assert [row["parity"] for row in found] == [expected.get(row["row"]) for row in found]
    assert "parity" not in lake.words().column_names
    with pytest.raises(InputError, match="no word column 'parity'"):
        lake.words(["parity"])
    counted = token_labels(lake, "parity", where="upos = 'NOUN' AND parity <> 'p1'")
    by_hand = [row["parity"] for row in found if row["upos"] == "NOUN" and row["parity"] in ("p0", "p2")]
    assert dict(zip(counted.tags, counted.counts.tolist(), strict=True)) == {tag: by_hand.count(tag) for tag in ("p0", "p2")}
    # shifted: the label of the last token of the word so many words later, in the same sentence
    of_word = {row["word"]: row for row in found if row["word"] >= 0}
    for shift in (1, -2):
        shifted = token_labels(lake, "parity", shift=shift, min_tokens=1)
        for row, code in zip(found, shifted.codes, strict=True):
            target = of_word.get(row["word"] + shift) if row["word"] >= 0 else None
            same = target is not None and target["sentence"] == row["sentence"]
            assert (shifted.tags[code] if code >= 0 else None) == (target["parity"] if same else None)


@settings(max_examples=30)
@given(data=st.data())
def test_any_words_get_any_text(original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.getbasetemp() / "property.lake"
    if not root.exists():
        shutil.copytree(original, root)
    words = data.draw(st.lists(st.integers(0, 299), unique=True, min_size=1, max_size=40))
    text = st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=4))
    values = data.draw(st.lists(text, min_size=len(words), max_size=len(words)))
    label_from_table(root, pa.table({"word": words, "x": pa.array(values, pa.string())}), LabelSettings(name="x"))
    expected = dict.fromkeys(range(300)) | {word: value or None for word, value in zip(words, values, strict=True)}
    assert by_word(root, "x") == expected
    remove_label_set(root, "x")


def test_blocks_that_are_not_extracted_yet(tmp_path: Path) -> None:
    """The plan is enough: labels are there before the activations, and statistics are gathered of them on the way."""
    growing = GrowingLake(tmp_path / "a.lake")
    growing.commit(0)
    words = growing.record.counts["words"]
    label_from_table(growing.root, pa.table({"word": range(words), "third": [f"t{i % 3}" for i in range(words)]}))
    first = open_lake(growing.root)
    assert first.blocks == (0,)
    assert all(row["third"] == (f"t{row['word'] % 3}" if row["word"] >= 0 else None) for row in tokens(first, "third"))
    builder = StatisticsBuilder(growing.root, "third")
    lake = growing.commit(*range(1, growing.record.blocks), tap=builder.add)
    builder.finish()
    assert lake.complete
    assert len(tokens(lake, "third")) == growing.record.blocks * 64
    assert all(row["third"] == (f"t{row['word'] % 3}" if row["word"] >= 0 else None) for row in tokens(lake, "third"))
    assert verify(growing.root, full=True).ok


def tokens(lake: Any, *labels: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lake.tokens(labels=labels).to_pylist()
    return found


# ---- a column like any other ------------------------------------------------------------------------------------------


def copy_of_upos(root: Path, **settings: Any) -> None:
    words = open_lake(root).words(["word", "upos"]).to_pydict()
    label_from_table(root, pa.table(words), LabelSettings(**{"name": "copy", "prefix": "my_", **settings}))


def test_questions_about_an_added_column_are_answered_as_of_one_of_the_plan(root: Path) -> None:
    expected = compute_statistics(open_lake(root), "upos", where="upos <> 'ADJ'", keep=False)
    copy_of_upos(root)
    lake = open_lake(root)
    found = compute_statistics(lake, "my_upos", where="MY_UPOS <> 'ADJ'")
    assert found.drop_attrs().identical(expected.drop_attrs())
    ranked, plain = (rank(refine(lake, each, "auroc", top=3), "auroc", top=3) for each in (found, expected))
    assert [(entry["name"], entry["auroc"]) for entry in ranked] == [(entry["name"], entry["auroc"]) for entry in plain]
    both = token_labels(lake, "my_upos×upos")
    assert set(both.tags) == {"ADJ×ADJ", "NOUN×NOUN", "VERB×VERB"}
    shifted, original = (token_labels(lake, by, shift=1) for by in ("my_upos", "upos"))
    np.testing.assert_array_equal(shifted.codes, original.codes)
    top = top_tokens(lake, 0, 3, k=5, where="my_upos = 'NOUN'", labels=["my_upos"])
    assert top == [
        {**entry, "labels": {"my_upos": entry["labels"]["upos"]}}
        for entry in top_tokens(lake, 0, 3, k=5, where="upos = 'NOUN'", labels=["upos"])
    ]
    assert probe(lake, by="my_upos", layer=0).accuracy == probe(lake, by="upos", layer=0).accuracy


def test_adding_labels_leaves_other_results_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compute_statistics(open_lake(root))
    copy_of_upos(root)
    monkeypatch.setattr(ShardReader, "_read", lambda *_: pytest.fail("an activation was read"))
    assert compute_statistics(open_lake(root)).identical(before)


@pytest.mark.parametrize("question", [{"by": "tag"}, {"by": "upos", "where": "tag = 'a'"}, {"by": "upper(TAG)"}])
def test_a_kept_result_is_of_the_labels_that_it_was_made_from(root: Path, question: dict[str, str]) -> None:
    """Removed, and another set with the same column added: nothing of the first is served for the second."""
    one = pa.table({"word": range(300), "tag": ["a" if i % 2 else "b" for i in range(300)]})
    other = pa.table({"word": range(300), "tag": ["a" if i % 3 else "b" for i in range(300)]})
    label_from_table(root, one, LabelSettings(name="x"))
    lake = open_lake(root)
    first = compute_statistics(lake, **question)
    refine(lake, first, "auroc", top=2)
    assert set(first.attrs["added"]) == {"tag"}
    remove_label_set(root, "x")
    label_from_table(root, other, LabelSettings(name="x"))
    lake = open_lake(root)
    second = compute_statistics(lake, **question)
    assert second.drop_attrs().identical(compute_statistics(lake, **question, keep=False).drop_attrs())
    assert not second["mean"].equals(first["mean"])
    with pytest.raises(InputError, match="the labels 'tag' were replaced since these statistics were computed"):
        permutation_test(lake, first, "cohen_d", permutations=1)
    fresh = first.assign(auroc_error=first["auroc_error"] + 0.1)  # so that something has to be made exact
    fresh.attrs["kept"] = ""
    with pytest.raises(InputError, match="the labels 'tag' were replaced since"):
        refine(lake, fresh, "auroc", top=2)
    # the very same labels again are the same question
    remove_label_set(root, "x")
    label_from_table(root, one, LabelSettings(name="x"))
    again = compute_statistics(open_lake(root), **question)
    assert again.identical(first)
    assert again.attrs["kept"] == first.attrs["kept"]


def test_lists_of_top_tokens_are_of_the_labels_that_they_were_made_from(root: Path) -> None:
    """Also where the tag of a token is taken from the lists, without a table being read."""

    def added(modulus: int) -> pa.Table:
        return pa.table({"word": range(300), "tag": ["a" if i % modulus else "b" for i in range(300)]})

    def top(lake: Any) -> list[int]:
        return [entry["row"] for entry in top_tokens(lake, 1, 2, k=6, where=("tag", "b"))]

    found = []
    for modulus in (2, 3, 2):
        label_from_table(root, added(modulus), LabelSettings(name="x"))
        complete_tag_lists(open_lake(root), "tag")
        lake = open_lake(root)
        values = {row["row"]: lake.read(layer=1, rows=[row["row"]], neurons=[2])[0, 0] for row in tokens(lake, "tag")}
        of_tag = [row["row"] for row in tokens(lake, "tag") if row["tag"] == "b"]
        found.append(top(lake))
        assert found[-1] == sorted(of_tag, key=lambda row: (-values[row], row))[:6]
        remove_label_set(root, "x")
    assert found[0] == found[2] != found[1]
    (identity,) = {name for lists in open_lake(root).index().tag_lists for name in lists.labels["added"].values()} - {
        identity_of(root, added(2))
    }
    assert len(discard_of_labels(root, identity)) == 1
    assert discard_of_labels(root, identity) == []


def identity_of(root: Path, table: pa.Table) -> str:
    identity = label_from_table(root, table, LabelSettings(name="x")).identity
    remove_label_set(root, "x")
    return identity


# ---- readers ----------------------------------------------------------------------------------------------------------


def test_no_activation_is_needed(root: Path) -> None:
    shutil.rmtree(root / "activations")
    copy_of_upos(root)
    assert by_word(root, "my_upos") == by_word(root, "upos")


def test_a_reader_whose_labels_are_replaced_is_told(root: Path) -> None:
    copy_of_upos(root)
    lake = open_lake(root)
    assert "my_upos" in lake.label_columns
    remove_label_set(root, "copy")
    for again in (False, True):
        if again:
            label_from_table(root, pa.table({"word": [1], "my_upos": ["X"]}), LabelSettings(name="copy"))
        with pytest.raises(InputError, match=r"the labels 'copy' of .* were removed or replaced since the lake was opened"):
            lake.tokens(labels=["my_upos"])
    assert by_word(root, "my_upos")[1] == "X"


def test_readers_while_labels_come_and_go(root: Path) -> None:
    """Every reader sees a whole set or none."""
    stop, errors = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                lake = open_lake(root)
                for label in [name for name in lake.label_columns if name.startswith("my_")]:
                    found = lake.words(["upos", label])
                    assert found.column(label).to_pylist() == found.column("upos").to_pylist()
            except InputError as error:
                if "removed or replaced" not in str(error):
                    errors.append(error)
            except (AssertionError, DamageError) as error:
                errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(12):
        copy_of_upos(root, prefix=f"my_{number % 2}")
        remove_label_set(root, "copy")
    stop.set()
    for reader in readers:
        reader.join()
    assert not errors


def test_any_parquet_reader_joins_the_labels(root: Path) -> None:
    import duckdb

    copy_of_upos(root)
    words, labels = f"'{root}/words/*.parquet'", f"'{root}/labels/copy/*.parquet'"
    found = duckdb.sql(f"SELECT count(*) FROM {words} w JOIN {labels} l USING (word) WHERE w.upos = l.my_upos").fetchall()
    assert found == [(300,)]


# ---- labels belong to one plan ----------------------------------------------------------------------------------------


def test_labels_of_another_lake_or_plan_are_never_attached(root: Path, tmp_path: Path) -> None:
    copy_of_upos(root)
    spec = open_lake(root).spec
    rng = np.random.default_rng(8)
    other = make_spec(layers=2, neurons=12, block_rows=64, chunk_neurons=4, encoding="float16")
    cases = {
        "of another lake": (other, random_sentences(rng, 300, tags=("X",))),
        "plan: words/block-": (spec, random_sentences(rng, 300, tags=("X",))),
        "plan: it has 5 blocks, this one 1": (spec, random_sentences(rng, 10, tags=("X",))),
    }
    for number, (match, (other_spec, sentences)) in enumerate(cases.items()):
        foreign = tmp_path / f"{number}.lake"
        plan_lake(foreign, other_spec, sentences)
        shutil.copytree(root / LABELS, foreign / LABELS)
        lake = open_lake(foreign)
        with pytest.raises(DamageError, match=f"labels/copy/record.json is .*{match}"):
            lake.tokens(labels=["my_upos"])
        assert lake.plan.label_columns == ("upos",)
        (line,) = verify(foreign).damage
        assert match in line


def test_a_plan_with_labels_is_not_discarded(tmp_path: Path) -> None:
    """Nothing is extracted and the plan record is lost: still, somebody's labels are there."""
    root = tmp_path / "a.lake"
    spec = make_spec(layers=2, neurons=10, block_rows=64, chunk_neurons=4, encoding="float16")
    plan_lake(root, spec, [make_sentence(["a", "b"], [{}, {}], name="s", document="d")])
    label_from_table(root, pa.table({"word": [0, 1], "x": ["p", "q"]}), LabelSettings(name="mine"))
    (root / layout.PLAN_RECORD).unlink()
    before = contents(root)
    other = make_spec(layers=2, neurons=12, block_rows=64, chunk_neurons=4, encoding="float16")
    with pytest.raises(InputError, match="exists with a different plan"):
        create_lake(root, other)
    assert contents(root) == before


def test_the_record_says_where_the_labels_are_from(root: Path, tmp_path: Path) -> None:
    import hashlib

    path = write({"word": [0, 1], "x": ["a", "b"]}, tmp_path / "mine.csv")
    labels = label_from_table(root, path)
    record = json.loads((root / LABELS / "mine" / "record.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["source"] == {"kind": "table", "files": [{"name": "mine.csv", "sha256": digest}]}
    assert record["lake"] == open_lake(root).fingerprint
    assert labels.as_dict()["labelled"] == {"x": 2}
    blocks = [pq.read_table(root / LABELS / "mine" / entry["path"]) for entry in record["files"]]
    assert [block.column("word").to_pylist() for block in blocks] == [
        pq.read_table(root / entry["path"]).column("word").to_pylist() for entry in record["tables"]
    ]
