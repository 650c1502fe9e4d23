"""Tokens beyond a threshold, weighted sets and firing neurons, against NumPy over all stored values."""

import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_lake import PADDING, SPECIAL, MemoryLake
from query_lakes import NEURONS, ROWS, flags, lakes_of, make_lake, stored

from neuronlake.analysis import (
    choose_tokens,
    describe_lines,
    firing_neurons,
    strongest_neurons,
    tokens_above,
    top_tokens,
    top_tokens_weighted,
)
from neuronlake.analysis.weighted import find_weighted
from neuronlake.store import open_lake
from neuronlake.store.errors import InputError
from neuronlake.store.index_build import EXTREMES
from neuronlake.store.kept import INDEX
from neuronlake.store.token_kernels import STRONGEST


@pytest.fixture(scope="module", params=["float16", "bfloat16", "float32", "int8a"])
def lakes(request, tmp_path_factory):
    return lakes_of(tmp_path_factory.mktemp(request.param), request.param, special=request.param != "float32")


def filters(data):
    """A filter as SQL, or none, and special tokens or not."""
    share = data.draw(st.sampled_from([None, 0.004, 0.02, 0.1, 0.5, 1.0]))
    salt = data.draw(st.integers(0, 5))
    # a hash of the row that Python can repeat
    return None if share is None else (f"(row * 7919 + {salt} * 104729) % 1009 < {share * 1009}", share, salt)


def mask_of(lake, chosen, *, special):
    found = flags(lake)
    keep = (found & PADDING) == 0 if special else (found & (PADDING | SPECIAL)) == 0
    if chosen is not None:
        _, share, salt = chosen
        rows = lake.tokens().column("row").to_numpy()
        keep &= (rows * 7919 + salt * 104729) % 1009 < share * 1009
    return keep


def capped(lake, lines, cap):
    if cap is None:
        return lines
    documents, counts, kept = lake.tokens().column("document").to_numpy(), Counter(), []
    for line in lines:
        counts[documents[line]] += 1
        if counts[documents[line]] <= cap:
            kept.append(line)
    return np.array(kept, dtype=np.int64)


@settings(max_examples=35)
@given(data=st.data())
def test_beyond_equals_brute_force(lakes, data):
    lake = data.draw(st.sampled_from(lakes))
    layer, neuron = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 9) | st.integers(0, NEURONS - 1))
    values = stored(lake, layer)[:, neuron]
    threshold = st.sampled_from([-30.0, -1.5, -1.0, 0.0, 0.5, 1.5, 2.0, 2.6, 3.0, 15.0, 50.0]) | st.sampled_from(
        [float(value) for value in values[::17]]
    )
    above, below = data.draw(
        st.tuples(threshold, st.none()) | st.tuples(st.none(), threshold) | st.tuples(threshold, threshold)
    )
    if above is not None and below is not None:
        above, below = min(above, below), max(above, below)
        if above == below:
            below = None
    cap, special, by_row = data.draw(st.none() | st.integers(1, 8)), data.draw(st.booleans()), data.draw(st.booleans())
    limit = data.draw(st.none() | st.integers(1, 100))
    chosen = filters(data)
    mask = mask_of(lake, chosen, special=special)
    where = None if chosen is None else chosen[0]
    question = {"below": below, "where": where, "per_document": cap, "limit": limit, "by_row": by_row, "special": special}
    if not mask.any():
        with pytest.raises(InputError, match="is true of none"):
            tokens_above(lake, layer, neuron, above, **question)
        return
    inside = mask & ((values > above) if above is not None else True) & ((values < below) if below is not None else True)
    lines = np.flatnonzero(inside)
    lines = capped(lake, lines[np.lexsort((lines, values[lines] if above is None else -values[lines]))], cap)
    if by_row:
        lines = np.sort(lines)
    found = tokens_above(lake, layer, neuron, above, **question)
    assert found.total == len(lines)
    assert found.lines.tolist() == lines[:limit].tolist()
    assert found.rows.tolist() == lake.tokens().column("row").to_numpy()[found.lines].tolist()
    np.testing.assert_array_equal(found.values, values[found.lines])
    assert found.bytes_read == sum(lake.chunk_bytes(layer=layer, block=b, neuron=neuron) for b in found.blocks_read)


def test_the_lists_alone_answer_where_they_reach(lakes):
    by_block, merged, _, bare, _ = lakes
    values = stored(merged, 0)[:, 11]
    ordinary = mask_of(merged, None, special=False)
    by_value = np.sort(values[ordinary])[::-1]
    for lake in (by_block, merged):
        few = tokens_above(lake, 0, 11, float(by_value[EXTREMES // 2]))
        assert (few.blocks_read, few.bytes_read) == ((), 0)
        assert tokens_above(lake, 0, 11, -50.0).total == ordinary.sum()
        # a block is read where all that is listed is above, and there is more
        for threshold in (float(by_value[EXTREMES * 5]), float(by_value[EXTREMES * 8]), -50.0):
            above = (ordinary & (values > threshold)).reshape(-1, ROWS).sum(axis=1)
            more = ordinary.reshape(-1, ROWS).sum(axis=1) > EXTREMES
            assert tokens_above(lake, 0, 11, threshold).blocks_read == tuple(np.flatnonzero((above >= EXTREMES) & more))
    assert tokens_above(bare, 0, 11, 50.0).blocks_read == bare.blocks


def test_a_threshold_is_compared_in_float64(tmp_path):
    from lakes import synthetic_lake

    values = np.full((1, 40, 3), np.float32(0.1))
    synthetic_lake(tmp_path / "a.lake", tokens=40, layers=1, neurons=3, encoding="float32", values=values)
    lake = open_lake(tmp_path / "a.lake")
    assert tokens_above(lake, 0, 1, 0.1).total == 40  # float32(0.1) is 0.10000000149
    assert tokens_above(lake, 0, 1, float(np.float32(0.1))).total == 0


def test_beyond_of_a_lake_in_memory():
    lake = MemoryLake()
    found = tokens_above(lake, 2, 3, 1.0)
    expected = np.flatnonzero((lake.stored(2)[:, 3] > 1) & (lake.column("flags") == 0))
    assert sorted(found.lines.tolist()) == expected.tolist()
    assert found.blocks_read == lake.blocks
    described = describe_lines(lake, found.lines, found.values, ["upos"])
    assert [entry["value"] for entry in described] == found.values.tolist()


@settings(max_examples=35)
@given(data=st.data())
def test_weighted_equals_brute_force(lakes, data):
    lake = data.draw(st.sampled_from(lakes))
    names = st.tuples(st.integers(0, 1), st.integers(0, 9) | st.integers(0, NEURONS - 1))
    weight = st.sampled_from([1.0, -1.0, 0.5, -0.2, 0.0, 1e-3, 30.0]) | st.floats(-2, 2)
    weights = data.draw(st.dictionaries(names, weight, min_size=1, max_size=6).filter(lambda given: any(given.values())))
    k, bottom = data.draw(st.sampled_from([1, 2, 20, EXTREMES, 100, 10_000])), data.draw(st.booleans())
    cap, special = data.draw(st.none() | st.integers(1, 8)), data.draw(st.booleans())
    chosen = filters(data)
    mask = mask_of(lake, chosen, special=special)
    where = None if chosen is None else chosen[0]
    question = {"bottom": bottom, "where": where, "per_document": cap, "special": special}
    if not mask.any():
        with pytest.raises(InputError, match="is true of none"):
            find_weighted(lake, weights, k, **question)
        return
    sums = np.zeros(len(mask))
    for (layer, neuron), w in weights.items():
        sums += w * stored(lake, layer)[:, neuron].astype(np.float64)
    lines = np.flatnonzero(mask)
    lines = capped(lake, lines[np.lexsort((lines, sums[lines] if bottom else -sums[lines]))], cap)[:k]
    found = find_weighted(lake, weights, k, **question)
    assert found.lines.tolist() == lines.tolist()
    np.testing.assert_array_equal(found.values, sums[lines])


def test_one_neuron_of_weight_one_is_top(lakes):
    merged, bare = lakes[1], lakes[3]
    for bottom in (False, True):
        found = top_tokens_weighted(merged, {(1, 20): 1.0}, 7, bottom=bottom, labels=["upos"])
        assert found == top_tokens(merged, 1, 20, 7, bottom=bottom, labels=["upos"])
    # a burst in one block: the others' bounds are below it
    found = find_weighted(merged, {(0, 4): 1.0, (0, 5): -1.0}, 5)
    assert len(found.blocks_read) < len(merged.blocks)
    assert found.chunks_read == len(found.blocks_read)  # one chunk holds both
    assert found.bytes_read == sum(merged.chunk_bytes(layer=0, block=block, neuron=4) for block in found.blocks_read)
    everything = find_weighted(bare, {(0, 4): 1.0, (1, 5): -1.0}, 5)
    assert everything.chunks_read == 2 * len(bare.blocks)


def flat_values(lake):
    return np.concatenate([stored(lake, layer) for layer in lake.layers], axis=1)


def strongest_of(values, k):
    return np.argsort(-np.abs(values), kind="stable")[:k]


@settings(max_examples=25)
@given(data=st.data())
def test_strongest_equals_brute_force(lakes, data):
    lake = data.draw(st.sampled_from(lakes))
    line = data.draw(st.sampled_from(np.flatnonzero((flags(lake) & PADDING) == 0).tolist()))
    row = int(lake.tokens().column("row")[line].as_py())
    k, layer = data.draw(st.sampled_from([1, 5, STRONGEST, STRONGEST + 1, 1000])), data.draw(st.sampled_from([None, 0, 1]))
    values = flat_values(lake)[line] if layer is None else stored(lake, layer)[line]
    expected = strongest_of(values, k)
    found = strongest_neurons(lake, row, k, layers=None if layer is None else [layer])
    first = 0 if layer is None else layer * NEURONS
    assert [entry["layer"] * NEURONS + entry["neuron"] for entry in found] == (first + expected).tolist()
    assert [entry["value"] for entry in found] == values[expected].tolist()
    assert found[0]["name"] == f"L{found[0]['layer']}.N{found[0]['neuron']}"


@settings(max_examples=8)
@given(data=st.data())
def test_firing_equals_brute_force(lakes, data):
    lake = data.draw(st.sampled_from(lakes))
    table = lake.tokens(labels=["form", "upos"]).to_pydict()
    way = data.draw(st.sampled_from(["rows", "sentence", "form", "where", "tag"]))
    line = data.draw(st.sampled_from(np.flatnonzero(flags(lake) == 0).tolist()))
    special = way in ("sentence", "where") and data.draw(st.booleans())
    subword = data.draw(st.sampled_from(["last", "first", "all"]))
    counted = mask_of(lake, None, special=special)
    if way == "rows":
        mask = np.isin(
            np.arange(len(counted)), [line, *data.draw(st.lists(st.sampled_from(np.flatnonzero(counted).tolist())))]
        )
        rows = np.array(table["row"])[mask].tolist()
        tokens = choose_tokens(lake, rows=[*rows[::-1], rows[0]])
    elif way == "sentence":
        mask = counted & (np.array(table["sentence"]) == table["sentence"][line])
        tokens = choose_tokens(lake, sentence=table["sentence"][line], special=special)
    elif way == "form":
        mask = np.array([form == table["form"][line] for form in table["form"]])
        if subword != "all":
            place = np.array(table["is_last_subword"]) if subword == "last" else np.array(table["subword"]) == 0
            mask &= place
        tokens = choose_tokens(lake, form=table["form"][line], subword=subword)
    elif way == "tag":
        mask = np.array([tag == "NOUN" for tag in table["upos"]])
        tokens = choose_tokens(lake, where=("upos", "NOUN"))
    else:
        mask = counted & (np.array(table["document"]) == table["document"][line])
        tokens = choose_tokens(lake, where=f"document = {table['document'][line]}", special=special)
    assert tokens.rows.tolist() == np.array(table["row"])[mask].tolist()
    values = flat_values(lake).astype(np.float64)
    layer = data.draw(st.sampled_from([None, 0, 1]))
    places = np.arange(2 * NEURONS) if layer is None else layer * NEURONS + np.arange(NEURONS)
    layers = None if layer is None else [layer]

    hits, everywhere = (
        Counter(np.concatenate([strongest_of(line, STRONGEST) for line in values[of]]).tolist())
        for of in (mask, mask_of(lake, None, special=False))
    )
    share = {place: hits[place] / mask.sum() for place in places.tolist()}
    share_all = {place: everywhere[place] / mask_of(lake, None, special=False).sum() for place in places.tolist()}
    expected = [place for place in places.tolist() if hits[place]]
    expected = sorted(expected, key=lambda place: (share_all[place] - share[place], place))[:15]
    found = firing_neurons(lake, tokens, 15, score="hits", layers=layers)
    assert [entry["layer"] * NEURONS + entry["neuron"] for entry in found] == expected
    assert [entry["hits"] for entry in found] == [hits[place] for place in expected]
    assert [entry["share"] for entry in found] == [share[place] for place in expected]
    assert [entry["share_all"] for entry in found] == [share_all[place] for place in expected]
    np.testing.assert_allclose(
        [entry["mean"] for entry in found], values[mask][:, expected].mean(axis=0), rtol=1e-12, atol=1e-12
    )

    found = firing_neurons(lake, tokens, 1000, layers=layers)
    of_words = values[np.array(table["word"]) >= 0]
    deviation = of_words.std(axis=0, ddof=1)
    varies = [place for place in places if np.ptp(of_words[:, place]) > 0]
    assert {entry["layer"] * NEURONS + entry["neuron"] for entry in found} == set(varies)
    for entry in found:
        place = entry["layer"] * NEURONS + entry["neuron"]
        np.testing.assert_allclose(entry["mean"], values[mask, place].mean(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(entry["mean_all"], of_words[:, place].mean(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(entry["deviation_all"], deviation[place], rtol=1e-9)
        expected = (values[mask, place].mean() - of_words[:, place].mean()) / deviation[place]
        np.testing.assert_allclose(entry["difference"], expected, rtol=1e-7, atol=1e-9)
    sizes = [abs(entry["difference"]) for entry in found]
    assert sizes == sorted(sizes, reverse=True)


def test_damaged_lists_cost_time_only(lakes, tmp_path):
    root = shutil.copytree(lakes[1].path, tmp_path / "a.lake")
    for path in (*(root / INDEX).glob("*/top/values/c.0.*"), *(root / INDEX).glob("*/tokens/neurons/c.*")):
        data = bytearray(path.read_bytes())
        data[10] ^= 1
        path.write_bytes(data)
    lake, whole = open_lake(root), lakes[1]
    assert tokens_above(lake, 0, 7, 3.0).lines.tolist() == tokens_above(whole, 0, 7, 3.0).lines.tolist()
    weights = {(0, 7): 1.0, (1, 8): 0.5}
    assert find_weighted(lake, weights, 9).lines.tolist() == find_weighted(whole, weights, 9).lines.tolist()
    row = int(choose_tokens(lake, form="w3").rows[0])
    assert strongest_neurons(lake, row) == strongest_neurons(whole, row)
    chosen = choose_tokens(lake, where="document = 1")
    assert firing_neurons(lake, chosen, score="hits") == firing_neurons(whole, chosen, score="hits")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda lake: tokens_above(lake, 0, 1), "no threshold given"),
        (lambda lake: tokens_above(lake, 0, 1, float("nan")), "above must be a number, got nan"),
        (lambda lake: tokens_above(lake, 0, 1, 5, below=2), "no value is above 5 and below 2"),
        (lambda lake: tokens_above(lake, 0, 1, 5, limit=0), "limit must be at least 1, got 0"),
        (
            lambda lake: tokens_above(lake, 2, 1, 5),
            r"no neuron L2\.N1 in this lake: valid are layers 0 to 1, neurons 0 to 69",
        ),
        (
            lambda lake: tokens_above(lake, 0, 1, 5, where=("upos", "QUX")),
            "no tag 'QUX' of 'upos': known are ADJ, NOUN, VERB",
        ),
        (lambda lake: find_weighted(lake, {}, 5), "no neuron has a weight other than zero"),
        (lambda lake: find_weighted(lake, {(0, 1): 0.0}, 5), "no neuron has a weight other than zero"),
        (lambda lake: find_weighted(lake, {(0, 1): float("inf")}, 5), r"weight of L0\.N1 must be a finite number, got inf"),
        (lambda lake: find_weighted(lake, {(0, 70): 1.0}, 5), r"no neuron L0\.N70"),
        (lambda lake: find_weighted(lake, {(0, 1): 1.0}, 0), "k must be at least 1"),
        (lambda lake: top_tokens_weighted(lake, {(0, 1): 1.0}, labels=["upso"]), "no label column 'upso'"),
        (lambda lake: strongest_neurons(lake, 100_000), r"no row 100000 in .*: it has rows 0 to \d+"),
        (lambda lake: strongest_neurons(lake, -1), r"no row -1 in"),
        (
            lambda lake: strongest_neurons(lake, int(np.flatnonzero(flags(lake) & PADDING)[0])),
            "is padding at the end of block",
        ),
        (lambda lake: strongest_neurons(lake, 0, layers=[5]), "no layer 5: stored are 0, 1"),
        (lambda lake: strongest_neurons(lake, 0, 0), "at least 1, got 0"),
        (lambda lake: choose_tokens(lake), "by one of rows, sentence, form or where, got none"),
        (lambda lake: choose_tokens(lake, form="w1", sentence=2), "got sentence, form"),
        (lambda lake: choose_tokens(lake, rows=[]), "no row given"),
        (
            lambda lake: choose_tokens(lake, sentence=9999),
            r"no token of a sentence 9999 in .*: committed are sentences 0 to \d+",
        ),
        (lambda lake: choose_tokens(lake, form="W1"), "no token of a word 'W1' in .*did you mean 'w1'"),
        (lambda lake: choose_tokens(lake, form="w1", subword="middle"), "unknown sub-word policy 'middle'"),
        (lambda lake: choose_tokens(lake, where="row < 0"), "where='row < 0' is true of none of the tokens"),
        (lambda lake: firing_neurons(lake, choose_tokens(lake, form="w1"), score="loud"), "unknown score 'loud'"),
    ],
)
def test_refusals(lakes, ask, said):
    with pytest.raises(InputError, match=said):
        ask(lakes[1])


def test_a_lake_without_blocks(tmp_path):
    lake = make_lake(tmp_path / "a.lake", encoding="float16", seed=1, blocks=[])
    with pytest.raises(InputError, match="has no committed block yet"):
        choose_tokens(lake, sentence=1)
    assert tokens_above(lake, 0, 1, 0.0).total == 0
    assert tokens_above(lake, 0, 1, 0.0, special=True, per_document=1).total == 0
    assert find_weighted(lake, {(0, 1): 1.0}, 5, special=True, per_document=1).lines.tolist() == []


def test_a_row_that_is_not_extracted(lakes):
    with pytest.raises(InputError, match=r"row 5 \(block 0\) of .* is not extracted yet"):
        choose_tokens(lakes[4], rows=[ROWS + 1, 5])
