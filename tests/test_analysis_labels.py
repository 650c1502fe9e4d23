"""Labels per row against plain loops."""

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pyarrow as pa
import pytest
from lakes import make_spec, plan_lake, random_sentences, synthetic_lake, write_blocks
from memory_lake import MemoryLake

from neuronlake.analysis import split_documents, token_labels
from neuronlake.analysis.labels import LabelRequest
from neuronlake.store import open_lake, write_lake
from neuronlake.store.errors import InputError


def expected_labels(lake, by, subword, shift):
    """One label or None per row, by a loop over the tables."""
    words = {word["word"]: word for word in lake.words().to_pylist()}
    of_sentence = {sentence["sentence"]: sentence["document_name"] for sentence in lake.sentences().to_pylist()}
    found = []
    for row in lake.tokens().to_pylist():
        label = None
        chosen = {"all": True, "first": row["subword"] == 0, "last": row["is_last_subword"]}[subword]
        if row["word"] >= 0 and chosen:
            target = words.get(row["word"] + shift)
            if target is not None and target["sentence"] == row["sentence"]:
                parts = [of_sentence[row["sentence"]] if part == "document_name" else target[part] for part in by.split("×")]
                label = None if None in parts else "×".join(parts)
        found.append(label)
    return found


def as_tags(labels):
    return [None if code < 0 else labels.tags[code] for code in labels.codes]


@pytest.mark.parametrize("subword", ["last", "first", "all"])
@pytest.mark.parametrize("shift", [0, 1, 3, -1, 50])
def test_policies_and_shifts(subword, shift):
    lake = MemoryLake()
    expected = expected_labels(lake, "upos", subword, shift)
    if shift == 50:  # beyond every sentence
        with pytest.raises(InputError, match=r"no word has one labelled 'upos' 50 words later.*shift=50"):
            token_labels(lake, "upos", subword=subword, shift=shift)
        return
    labels = token_labels(lake, "upos", subword=subword, shift=shift)
    assert as_tags(labels) == expected
    assert labels.tags == tuple(sorted({tag for tag in expected if tag is not None}))
    assert labels.codes.dtype == np.int16
    assert labels.counts.tolist() == [expected.count(tag) for tag in labels.tags]
    assert labels.tokens == sum(labels.counts)
    assert (labels.by, labels.subword, labels.shift) == ("upos", subword, shift)


def test_blocks_with_other_values_and_without_any(tmp_path):
    # values come in another order in every block, some in one only; a block holds no label at all
    tags = iter([*"BBA", *["A"] * 30, *[""] * 40, *"CAB" * 12])
    spec = make_spec(layers=1, neurons=2, block_rows=16, chunk_neurons=2, encoding="float16")
    sentences = random_sentences(np.random.default_rng(3), 109, tags=("?",))
    for sequence in sentences:
        for word in sequence.sentences[0].words:
            tag = next(tags)
            word.labels["upos"] = tag
            if not tag:
                del word.labels["upos"]
    record, rows = plan_lake(tmp_path, spec, sentences)
    write_blocks(tmp_path, spec, record, rows, np.zeros((1, 109, 2), dtype=np.float32))
    lake = open_lake(tmp_path)
    labels = token_labels(lake, "upos", min_tokens=1)
    assert as_tags(labels) == expected_labels(lake, "upos", "last", 0)
    assert labels.tags == ("A", "B", "C")
    table = lake.tokens()
    for name, own in (("document", labels.documents), ("sentence", labels.sentences), ("word", labels.words)):
        np.testing.assert_array_equal(own, table.column(name).to_numpy())


def test_memory_of_labels_is_that_of_a_block(tmp_path):
    synthetic_lake(tmp_path, tokens=2000, layers=1, neurons=2, block_rows=256)
    lake = open_lake(tmp_path)
    whole = lake.tokens(labels=["upos"]).nbytes
    token_labels(lake, "upos")  # whatever is read once
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        token_labels(lake, "upos")
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < whole / 2


@pytest.mark.parametrize("shift", [0, 2])
def test_labels_of_sentences(shift):
    lake = MemoryLake()
    labels = token_labels(lake, "document_name", shift=shift)
    assert labels.tags == tuple(f"d{document}" for document in range(6))
    inside = labels.codes >= 0
    np.testing.assert_array_equal(labels.codes[inside], labels.documents[inside])
    position = {word["word"]: word["index"] for word in lake.words().to_pylist()}
    for word, last, labelled in zip(labels.words, lake.column("is_last_subword"), inside, strict=True):
        assert labelled == (word >= 0 and bool(last) and position[word] + shift < 9)


def test_only_some_documents():
    lake = MemoryLake()
    everything, some = token_labels(lake, "upos"), token_labels(lake, "upos", keep_documents=iter([1, 4]))
    np.testing.assert_array_equal(some.codes, np.where(np.isin(everything.documents, [1, 4]), everything.codes, -1))


def test_rare_tags_are_dropped_and_reported():
    lake = MemoryLake()
    for word in lake._words:
        word["upos"] = "NOUN"
    lake._words[3]["upos"] = "RARE"
    labels = token_labels(lake, "upos")
    assert labels.tags == ("NOUN",)
    assert labels.dropped == {"RARE": 1}
    assert labels.codes[lake.column("word") == 3].tolist() == [-1] * np.count_nonzero(lake.column("word") == 3)
    assert token_labels(lake, "upos", min_tokens=1).tags == ("NOUN", "RARE")


def test_nothing_left_is_an_error():
    lake = MemoryLake()
    with pytest.raises(InputError, match="choose another label"):
        token_labels(lake, "upos", keep_documents=[99])


def test_unknown_names_list_the_known_ones():
    lake = MemoryLake()
    with pytest.raises(InputError, match="no label column 'xpos': known are upos, form"):
        token_labels(lake, "xpos")
    with pytest.raises(InputError, match="known are last, first, all"):
        token_labels(lake, "upos", subword="mean")


@pytest.mark.parametrize(("unit", "ids"), [("document", "documents"), ("sentence", "sentences")])
def test_split_is_disjoint_complete_and_repeatable(unit, ids):
    labels = token_labels(MemoryLake(), "upos")
    split = split_documents(labels, test_share=0.3, seed=7, unit=unit)
    units = np.unique(getattr(labels, ids)[labels.codes >= 0])
    np.testing.assert_array_equal(np.sort(np.concatenate([split.train, split.test])), units)
    assert len(split.test) == round(0.3 * len(units))
    again = split_documents(labels, test_share=0.3, seed=7, unit=unit)
    np.testing.assert_array_equal(split.test, again.test)
    others = [split_documents(labels, test_share=0.3, seed=seed, unit=unit).test.tolist() for seed in range(8)]
    assert len({tuple(other) for other in others}) > 1
    train, test = split.rows(labels)
    assert not np.any(train & test)
    assert np.all((train | test)[labels.codes >= 0])


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_sides_get_a_document(share):
    split = split_documents(token_labels(MemoryLake(), "upos"), test_share=share)
    assert len(split.train) >= 1
    assert len(split.test) >= 1


def test_one_document_names_the_alternative():
    labels = token_labels(MemoryLake(documents=1), "upos")
    with pytest.raises(InputError, match="split='sentence'"):
        split_documents(labels)
    assert len(split_documents(labels, unit="sentence").test) == 1
    with pytest.raises(InputError, match="cannot be split"):
        split_documents(token_labels(MemoryLake(documents=1, sentences=1), "upos"), unit="sentence")


@pytest.mark.parametrize("settings", [{"test_share": 0.0}, {"test_share": 1.0}, {"unit": "word"}])
def test_wrong_settings(settings):
    with pytest.raises(InputError):
        split_documents(token_labels(MemoryLake(), "upos"), **settings)


@pytest.mark.parametrize("shift", [0, 1, -2])
def test_a_lake_on_disk(tmp_path, shift):
    synthetic_lake(tmp_path / "a.lake", tokens=200)
    lake = open_lake(tmp_path / "a.lake")
    labels = token_labels(lake, "upos", shift=shift)
    assert as_tags(labels) == expected_labels(lake, "upos", "last", shift)
    if shift == 0:
        assert as_tags(labels) == lake.tokens(labels=["upos"]).column("upos").to_pylist()
    np.testing.assert_array_equal(token_labels(lake, "source", shift=shift).codes >= 0, labels.codes >= 0)


def test_sixteen_bits_of_tags_are_the_limit(monkeypatch):
    monkeypatch.setattr("neuronlake.analysis.labels._MAX_TAGS", 2)
    with pytest.raises(InputError, match="3 different values"):
        token_labels(MemoryLake(), "upos")


@pytest.mark.parametrize("shift", [0, 1])
def test_a_lake_without_a_committed_block(tmp_path, shift):
    spec = make_spec(layers=1, neurons=4, block_rows=64, chunk_neurons=4, encoding="float16")
    plan_lake(tmp_path, spec, random_sentences(np.random.default_rng(0), 50, tags=("NOUN", "VERB")))
    with pytest.raises(InputError, match="among the 0 labelled ones"):
        token_labels(open_lake(tmp_path), "upos", shift=shift)


def test_only_committed_blocks_are_labelled(tmp_path):
    spec = make_spec(layers=1, neurons=4, block_rows=64, chunk_neurons=4, encoding="float16")
    record, rows = plan_lake(tmp_path, spec, random_sentences(np.random.default_rng(0), 200, tags=("NOUN", "VERB")))
    values = np.zeros((1, 200, 4), dtype=np.float32)
    write_blocks(tmp_path, spec, record, rows, values, blocks=[0, 2])
    labels = token_labels(open_lake(tmp_path), "upos", shift=1)
    assert labels.blocks == (0, 2)
    assert as_tags(labels) == expected_labels(open_lake(tmp_path), "upos", "last", 1)


@pytest.mark.parametrize(
    "by", ["upos×form", "form*upos", " form × document_name ", "upos * document_name*form", "upos×upos"]
)
@pytest.mark.parametrize("subword", ["last", "all"])
@pytest.mark.parametrize("shift", [0, 1, -2])
def test_joined_columns(by, subword, shift):
    lake = MemoryLake()
    joined = "×".join(part.strip() for part in by.replace("*", "×").split("×"))
    labels = token_labels(lake, by, subword=subword, shift=shift, min_tokens=1)
    assert as_tags(labels) == expected_labels(lake, joined, subword, shift)
    assert labels.by == joined
    assert any(word["upos"] is None for word in lake.words().to_pylist())


def test_joined_columns_on_disk(tmp_path):
    synthetic_lake(tmp_path / "a.lake", tokens=300)
    lake = open_lake(tmp_path / "a.lake")
    labels = token_labels(lake, "upos×document_name")
    table = lake.tokens(labels=["upos", "document_name"]).to_pylist()
    assert as_tags(labels) == [row["upos"] and f"{row['upos']}×{row['document_name']}" for row in table]
    assert len(labels.tags) > 3


def write_labels(path, labels):
    rows = len(next(iter(labels.values())))
    return write_lake(path, np.ones((rows, 2), dtype=np.float32), tokens=labels, name="labels")


def test_joined_columns_with_odd_names(tmp_path):
    lake = write_labels(tmp_path / "a.lake", {"my-tag": ["x", "y"] * 4, "Number[psor]": ["s"] * 8, "a*b": ["p", "q"] * 4})
    assert token_labels(lake, "my-tag × Number[psor]").tags == ("x×s", "y×s")
    assert token_labels(lake, "Number[psor]").tags == ("s",)
    assert token_labels(lake, "a*b").tags == ("p", "q")
    with pytest.raises(InputError, match="no label column 'Gender': known are"):
        token_labels(lake, "Gender×Number[psor]")


def test_values_that_hold_the_sign_of_joining(tmp_path):
    lake = write_labels(tmp_path / "a.lake", {"a": ["x×y", "x"] * 4, "b": ["z", "y×z"] * 4})
    with pytest.raises(InputError, match="'a×b' that hold a × cannot be told apart"):
        token_labels(lake, "a×b")


@pytest.mark.parametrize(
    "by", ["xpos", "Upos", "NULL", "feats.Number", "token:upos", "position", "upos×xpos", "word*subword"]
)
def test_a_name_alone_is_never_sql(by):
    wrong = {"upos×xpos": "xpos", "word*subword": "word"}.get(by, by)
    with pytest.raises(InputError, match=f"no label column '{wrong}': known are upos, form, source, document_name"):
        token_labels(MemoryLake(), by)


def test_the_nearest_name_is_offered():
    for wrong in ("xpos", "UPOS", "upso"):
        with pytest.raises(InputError, match=r"\(did you mean 'upos'\?\)$"):
            token_labels(MemoryLake(), wrong)
    with pytest.raises(InputError, match=r"document_name$"):
        token_labels(MemoryLake(), "zzz")


def test_requests():
    request = LabelRequest(by="upos * Number", where="form <> 'x'", shift=2)
    assert json.loads(json.dumps(request.as_dict())) == {
        "by": "upos×Number",
        "where": "form <> 'x'",
        "subword": "last",
        "shift": 2,
    }
    assert request == LabelRequest(by="upos×Number", where="form <> 'x'", shift=2)
    assert LabelRequest(by="a[psor]*b").by == "a[psor]×b"
    assert LabelRequest(by="position * 2 + 1").by == "position * 2 + 1"
    assert LabelRequest(by=" upos ").by == "upos"
    with pytest.raises(FrozenInstanceError):
        request.by = "form"
    with pytest.raises(InputError, match="unknown sub-word policy 'mean': known are last, first, all"):
        LabelRequest(by="upos", subword="mean")
