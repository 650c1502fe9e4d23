"""Answers in a notebook: lists and dictionaries as ever, whose tables say what they hold."""

import copy
import json
import pickle

import numpy as np
import pytest
from html_reading import NASTY, Reader
from lakes import make_sentence, make_spec, plan_lake, write_blocks
from memory_lake import MemoryLake
from test_analysis_figures import make_dataset

from neuronlake.analysis import describe_neuron, rank, top_tokens
from neuronlake.analysis.listings import NeuronDescription, Ranking, TokenList
from neuronlake.store import open_lake

TAGS = [*NASTY[:6], "NOUN"]


@pytest.fixture(scope="module")
def ranking():
    return rank(make_dataset(TAGS, layers=3, neurons=20), "auroc", top=4)


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A lake of nasty words."""
    root = tmp_path_factory.mktemp("nasty") / "a.lake"
    spec = make_spec(layers=1, neurons=4, block_rows=64, chunk_neurons=4, encoding="float32")
    words = [word for text in NASTY for word in text.split()]
    sentences = [
        make_sentence([word, "and", f"{word}."], [{"upos": word}] * 3, name=f"s{at}", document=f"d{at}")
        for at, word in enumerate(words)
    ]
    record, rows = plan_lake(root, spec, sentences[:20])
    values = np.random.default_rng(0).standard_normal((1, len(rows), 4)).astype(np.float32)
    write_blocks(root, spec, record, rows, values)
    return open_lake(root)


def as_number(text):
    return float(text.replace("−", "-").replace(",", ""))


def test_a_ranking_is_a_list(ranking):
    entries = [dict(entry) for entry in ranking]
    assert ranking == entries
    assert entries == ranking
    assert json.loads(json.dumps(ranking)) == json.loads(json.dumps(entries))
    for twin in (pickle.loads(pickle.dumps(ranking)), copy.deepcopy(ranking)):
        assert twin == ranking
        assert type(twin) is Ranking
    assert type(ranking[:2]) is Ranking
    assert ranking[:2] == entries[:2]
    assert ranking[-1] is list(ranking)[-1]
    assert type(sorted(ranking, key=lambda entry: entry["score"])) is list


def test_a_rankings_table_holds_its_data(ranking):
    (read,) = Reader(ranking._repr_html_()).tables
    assert read.caption == f"{len(ranking)} neurons of {len(TAGS)} tags, by auroc"
    assert read.head[:5] == ["tag", "rank", "neuron", "auroc", "tag's tokens"]
    for row, entry in zip(read.rows, ranking, strict=True):
        assert row[:3] == [entry["tag"], str(entry["rank"]), entry["name"]]
        assert row[4] == ("▲ higher" if entry["sign"] > 0 else "▼ lower")
        for name, cell in zip(read.head[3:], row[3:], strict=True):
            if name in ("p", "q") and entry[name] < 1e-300:
                assert cell == "<1e−300"
            elif name != "tag's tokens":
                assert as_number(cell) == pytest.approx(entry[name], rel=0.006)


def test_a_methods_own_column():
    dataset = make_dataset(["A", "B"], layers=2, neurons=5)
    for method in ("cohen_d", "welch_t"):
        found = rank(dataset, method, top=1)
        read = Reader(found._repr_html_()).tables[0]
        assert read.head[3] == method
        assert as_number(read.rows[0][3]) == pytest.approx(found[0][method], rel=0.006)


def test_long_lists_are_cut():
    found = rank(make_dataset(["A", "B"], layers=3, neurons=40), "cohen_d", top=50)
    page = Reader(found._repr_html_())
    assert len(page.tables[0].rows) == 60
    assert "… and 40 more" in page.text
    assert repr(found).splitlines()[-1] == "… and 80 more"
    assert len(repr(found).splitlines()) == 22


def test_what_is_no_ranking_looks_like_a_list(ranking):
    changed = Ranking([*ranking[:2], {"tag": "X"}])
    assert changed._repr_html_() is None
    assert repr(changed) == repr(list(changed))
    assert repr(Ranking()) == "[]"
    assert "none" in Reader(Ranking()._repr_html_()).text


@pytest.mark.parametrize("bottom", [False, True])
def test_tokens_in_context(lake, bottom):
    found = top_tokens(lake, 0, 1, 12, bottom=bottom, labels=["upos"])
    assert type(found) is TokenList
    page = Reader(found._repr_html_())
    (read,) = page.tables
    assert read.head == ["rank", "value", "upos", "sentence", "token in context"]
    assert len(read.rows) == len(page.marks) == 12
    sentences = {entry["sentence"]: entry["text"] for entry in lake.sentences().to_pylist()}
    for row, (token, _), entry in zip(read.rows, page.marks, found, strict=True):
        assert row[4] == sentences[entry["sentence"]]  # the token is marked, not written with « »
        assert token == entry["token"]
        assert row[0] == str(entry["rank"])
        assert row[2] == entry["labels"]["upos"]
        assert as_number(row[1]) == pytest.approx(entry["value"], rel=0.006)
    opacity = [float(style.split(",")[3].split(")")[0]) for _, style in page.marks]
    assert np.argmax(opacity) == np.argmax(np.abs([entry["value"] for entry in found]))
    assert np.all(np.diff([abs(entry["value"]) for entry in found]) * np.diff(opacity) >= 0)


def entry_of(context, start, token, **others):
    return {"rank": 1, "value": 1.0, "token": token, "start": start, "context": context, "sentence": 0, **others}


def test_long_contexts_are_cropped():
    found = TokenList([entry_of("a" * 500 + "«x»" + "b" * 500, 500, "x")])
    assert Reader(found._repr_html_()).tables[0].rows[0][-1] == "…" + "a" * 120 + "x" + "b" * 120 + "…"
    assert repr(found).endswith("…" + "a" * 40 + "«x»" + "b" * 40 + "…")


def test_special_tokens_and_marks_in_the_text():
    found = TokenList([entry_of("a «b» «c» d", 6, "c"), entry_of("bare", None, "", special=True)])
    page = Reader(found._repr_html_())
    assert [row[-1] for row in page.tables[0].rows] == ["a «b» c d", "(special token) bare"]
    assert [text for text, _ in page.marks] == ["c", "(special token)"]


def test_all_zeros_and_similarities():
    found = TokenList([entry_of("«a»", 0, "a")])
    found[0]["value"] = 0.0
    assert ", 0.000)" in Reader(found._repr_html_()).marks[0][1]
    found[0]["similarity"] = -found[0].pop("value") - 0.5
    assert Reader(found._repr_html_()).tables[0].head[1] == "similarity"


def test_a_neuron_is_a_dictionary_with_tables():
    found = describe_neuron(MemoryLake(tags=TAGS, documents=12), 2, 3, k=4)
    assert type(found) is NeuronDescription
    assert found == dict(found)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(dict(found)))
    page = Reader(found._repr_html_())
    of = {read.caption: read for read in page.tables}
    lines = dict(of["neuron L2.N3"].rows)
    mean, deviation = lines["mean ± deviation"].split(" ± ")
    assert as_number(mean) == pytest.approx(found["moments"]["mean"], rel=0.006)
    assert as_number(deviation) == pytest.approx(found["moments"]["standard_deviation"], rel=0.006)
    profile = of[f"tags, {found['tags']['labelled']:,} labelled tokens"].rows
    assert [row[0] for row in profile] == [entry["tag"] for entry in found["tags"]["profile"]][:8]
    assert [as_number(row[4]) for row in profile] == pytest.approx(
        [entry["auroc"] for entry in found["tags"]["profile"]][:8], abs=0.0006
    )
    for caption, name in (("highest tokens", "top"), ("lowest tokens", "bottom")):
        assert [as_number(row[1]) for row in of[caption].rows] == pytest.approx(
            [entry["value"] for entry in found[name]], rel=0.006
        )
    assert repr(found).startswith("<NeuronDescription L2.N3>\n")
    plain = NeuronDescription(json.loads(json.dumps(found)))  # lists are plain ones then
    assert plain._repr_html_() == found._repr_html_()


def test_what_a_neuron_writes():
    found = describe_neuron(MemoryLake(), 2, 3, k=2)
    tokens = [{"token": " <b>", "id": 1, "cosine": 0.5}, {"token": "\n", "id": 2, "cosine": 0.25}]
    found["weights"] = {"vocabulary": {"top": tokens, "bottom": tokens}}
    read = Reader(found._repr_html_()).tables[-1]
    assert read.rows[0] == ["' <b>'", "0.500", "' <b>'", "0.500"]
    assert read.rows[1][0] == "'\\n'"


def test_a_neuron_without_labels_or_with_missing_keys():
    found = describe_neuron(MemoryLake(), 0, 0, k=1)
    found["tags"] = found["strongest_tag"] = None
    assert "strongest tag" not in dict(Reader(found._repr_html_()).tables[0].rows)
    del found["moments"]
    assert found._repr_html_() is None
    assert repr(found) == repr(dict(found))
