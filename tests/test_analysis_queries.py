"""Top tokens against a full sort."""

import json

import numpy as np
import pytest
from lakes import synthetic_lake
from memory_lake import PADDING, SPECIAL, MemoryLake

from neuronlake.analysis import neuron_name, parse_neuron, top_tokens
from neuronlake.store import open_lake
from neuronlake.store.errors import InputError


def sorted_rows(lake, layer, neuron, eligible, *, bottom=False):
    values = lake.stored(layer)[:, neuron]
    rows = np.flatnonzero(eligible)
    return rows[np.lexsort((rows, values[rows] if bottom else -values[rows]))]


@pytest.mark.parametrize("bottom", [False, True])
@pytest.mark.parametrize("k", [1, 7, 10_000])
def test_equals_a_full_sort(bottom, k):
    lake = MemoryLake()
    lake.values[2][:, 3] = np.round(lake.values[2][:, 3])  # many ties
    expected = sorted_rows(lake, 2, 3, lake.column("flags") != PADDING, bottom=bottom)[:k]
    found = top_tokens(lake, 2, 3, k, bottom=bottom, special=True)
    assert [entry["row"] for entry in found] == expected.tolist()
    assert [entry["value"] for entry in found] == lake.stored(2)[expected, 3].tolist()
    assert [entry["rank"] for entry in found] == list(range(1, len(expected) + 1))
    json.dumps(found, allow_nan=False)


def test_text_and_context():
    lake = MemoryLake()
    texts = lake.sentences().column("text").to_pylist()
    for entry, row in zip(top_tokens(lake, 0, 1, 50, special=True), top_rows(lake, 50), strict=True):
        text = texts[row["sentence"]]
        assert entry["special"] == bool(row["flags"] & SPECIAL)
        assert (entry["document"], entry["sentence"]) == (row["document"], row["sentence"])
        if entry["special"]:
            assert (entry["token"], entry["context"]) == ("", text)
        else:
            assert entry["token"] == text[row["char_start"] : row["char_end"]] != ""
            before, rest = entry["context"].split("«")
            marked, after = rest.split("»")
            assert (before + marked + after, marked) == (text, entry["token"])


def top_rows(lake, k):
    table = lake.tokens().to_pylist()
    return [table[row] for row in sorted_rows(lake, 0, 1, lake.column("flags") != PADDING)[:k]]


def test_only_words():
    lake = MemoryLake()
    lake.values[0][lake.column("flags") == SPECIAL, 1] = 100
    assert all(entry["special"] for entry in top_tokens(lake, 0, 1, 5, special=True))
    expected = sorted_rows(lake, 0, 1, lake.column("flags") == 0)[:5]
    assert [entry["row"] for entry in top_tokens(lake, 0, 1, 5)] == expected.tolist()


def test_only_one_tag_and_labels():
    lake = MemoryLake()
    found = top_tokens(lake, 0, 1, 12, where=("upos", "VERB"), labels=["upos", "form"])
    expected = sorted_rows(lake, 0, 1, lake.column("upos") == "VERB")[:12]
    assert [entry["row"] for entry in found] == expected.tolist()
    forms = lake.column("form")
    assert [entry["labels"] for entry in found] == [{"upos": "VERB", "form": forms[row]} for row in expected]


def test_a_tag_of_one_token_is_found():
    lake = MemoryLake()
    row = int(np.flatnonzero(lake.column("word") == 3)[0])
    lake._words[3]["upos"] = "RARE"
    assert top_tokens(lake, 0, 1, where=("upos", "RARE"))[0]["row"] in (row, row + 1)


def test_a_lake_on_disk(tmp_path):
    _, rows, values = synthetic_lake(tmp_path / "a.lake", tokens=300, encoding="float32")
    lake = open_lake(tmp_path / "a.lake")
    order = np.argsort(-values[1][:, 9], kind="stable")[:5]
    found = top_tokens(lake, 1, 9, 5, labels=["upos"])
    assert [entry["row"] for entry in found] == rows[order].tolist()
    assert [entry["value"] for entry in found] == values[1][order, 9].tolist()
    assert all(f"«{entry['token']}»" in entry["context"] for entry in found)


def test_nothing_committed():
    lake = MemoryLake()
    lake.blocks, lake._rows = (), []
    lake.tokens = lambda labels=(), blocks=None: MemoryLake().tokens(labels).slice(0, 0)
    assert top_tokens(lake, 0, 1) == []


def test_wrong_use():
    lake = MemoryLake()
    for arguments, settings, message in [
        ((1, 0), {}, "no neuron L1.N0 in this lake: valid are layers 0, 2, neurons 0 to 9"),
        ((0, 10), {}, "neurons 0 to 9"),
        ((0, -1), {}, "neurons 0 to 9"),
        ((0, 0, 0), {}, "k must be at least 1"),
        ((0, 0), {"where": ("upos", "X")}, "no tag 'X' of 'upos': known are ADJ, NOUN, VERB"),
        ((0, 0), {"where": ("xpos", "X")}, "no label column 'xpos'"),
        ((0, 0), {"labels": ["xpos"]}, "no label column 'xpos'"),
    ]:
        with pytest.raises(InputError, match=message):
            top_tokens(lake, *arguments, **settings)


def test_names_of_neurons():
    assert parse_neuron("L12.N345") == (12, 345)
    assert parse_neuron(" l0.n7 ", MemoryLake()) == (0, 7)
    assert parse_neuron(neuron_name(3, 4)) == (3, 4)
    for wrong in ("12.345", "L1N2", "L1.N", "L1.N2.3", "", "L-1.N2"):
        with pytest.raises(InputError, match=r"for example L12\.N345"):
            parse_neuron(wrong)
    with pytest.raises(InputError, match=r"valid are layers 0 to 1, neurons 0 to 9"):
        parse_neuron("L0.N10", MemoryLake(layers=(0, 1)))
    with pytest.raises(InputError, match=r"valid are layers 0, 2"):
        parse_neuron("what", MemoryLake())


def test_a_filter_in_sql_and_few_of_a_document():
    lake = MemoryLake()
    found = top_tokens(lake, 0, 1, 12, where="upos='VERB' AND subword=0")
    expected = sorted_rows(lake, 0, 1, (lake.column("upos") == "VERB") & (lake.column("subword") == 0))[:12]
    assert [entry["row"] for entry in found] == expected.tolist()
    one_each = top_tokens(lake, 0, 1, per_document=1)
    documents = [entry["document"] for entry in one_each]
    assert sorted(documents) == sorted(set(lake.column("document")) - {-1})
    assert one_each[0]["row"] == sorted_rows(lake, 0, 1, lake.column("flags") == 0)[0]
    for where, message in [("upos='X'", "is true of none of the tokens"), ("uposs='X'", "uposs")]:
        with pytest.raises(InputError, match=message):
            top_tokens(lake, 0, 1, where=where)
