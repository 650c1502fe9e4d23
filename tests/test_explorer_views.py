"""Search, sentences, comparisons, neighbours and exports of the explorer, against brute force over the stored values."""

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lakes import assign_documents, make_sentence, make_spec, plan_lake, synthetic_lake, write_blocks
from query_lakes import NEURONS, make_lake, stored
from scipy.stats import spearmanr
from starlette.testclient import TestClient

import neuronlake.analysis.explorer.neighbours as neighbours_view
from neuronlake.analysis.explorer.app import create_app
from neuronlake.analysis.explorer.compare import compare_lakes, compare_tags, spearman
from neuronlake.analysis.explorer.exports import as_csv, figure
from neuronlake.analysis.explorer.firing import FIRING, firing
from neuronlake.analysis.explorer.forms import read_forms
from neuronlake.analysis.explorer.neighbours import like
from neuronlake.analysis.explorer.scatter import MOST, SIDE, scatter
from neuronlake.analysis.explorer.search import search
from neuronlake.analysis.explorer.sentence import CHOSEN, SHOWN, sentence_page
from neuronlake.analysis.explorer.shelf import NotKeptError, Opened, Shelf
from neuronlake.analysis.firing import EVERY_WORD
from neuronlake.analysis.ranking import rank
from neuronlake.analysis.sketch import sketch_neurons
from neuronlake.analysis.statistics import compute_statistics
from neuronlake.store import InputError, Lake, open_lake
from neuronlake.store.tables import PADDING, SPECIAL

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=1+1",
    "@SUM(A1)",
    "-2",
    "+3",
    "{{7*7}}",
    "&lt;b&gt;",
    "'--",
    "a,b",
]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Words of one or two tokens, a special token before every sentence, statistics of upos kept."""
    made = make_lake(tmp_path_factory.mktemp("views") / "a.lake", encoding="float16", seed=1)
    compute_statistics(made, "upos")
    return open_lake(made.path)


@pytest.fixture
def opened(lake: Lake) -> Opened:
    return Shelf([lake.path]).open("a")


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Forms, tags and documents that are markup, formulas and quotes."""
    root = tmp_path_factory.mktemp("nasty") / "b.lake"
    rng = np.random.default_rng(3)
    spec = make_spec(layers=2, neurons=10, block_rows=64, chunk_neurons=4, encoding="float16")
    sentences = []
    for _ in range(30):
        forms = [NASTY[place] for place in rng.integers(0, len(NASTY), size=6)]
        labels = [{"upos": NASTY[place]} for place in rng.integers(0, 3, size=6)]
        sentences.append(make_sentence(forms, labels, name=NASTY[0], document="?"))
    record, rows = plan_lake(root, spec, assign_documents(sentences, 3))
    write_blocks(root, spec, record, rows, rng.standard_normal((2, len(rows), 10)).astype(np.float32))
    made = open_lake(root)
    compute_statistics(made, "upos")
    return open_lake(root)


@pytest.fixture(scope="module")
def client(lake: Lake, nasty: Lake) -> Iterator[TestClient]:
    with TestClient(create_app(Shelf([lake.path, nasty.path])), base_url="http://127.0.0.1:8421") as made:
        yield made


def files(lake: Lake) -> dict[str, int]:
    assert isinstance(lake.path, Path)
    return {str(path): path.stat().st_mtime_ns for path in lake.path.rglob("*") if path.is_file()}


def ordinary(lake: Lake) -> np.ndarray:
    return (lake.tokens().column("flags").to_numpy() & (PADDING | SPECIAL)) == 0


# ---- every page ---------------------------------------------------------------------------------------------------------

PAGES = [
    "search",
    "search?q=w3",
    "search?q=%3Cscript%3Ealert(1)%3C/script%3E",
    "search?q=upos%20%3D%20'%3Cscript%3E'",
    "search?q=form+LIKE+'%25%3C%25'",
    "firing?form=w3",
    "firing?where=subword=0",
    "sentence",
    "sentence?sentence=3&neurons=L0.N1,L1.N7&labels=upos,form",
    "sentence?sentence=%3Cscript%3E",
    "compare",
    "compare?method=cohen_d",
    "compare?tag=%3Cscript%3E",
    "neighbours?neuron=L0.N1",
    "neighbours?neuron=L0.N1&signature=activation",
    "neuron?neuron=L0.N1",
    "",
]


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("page", PAGES)
def test_corpus_text_is_text_and_no_page_has_inline_code(client: TestClient, name: str, page: str) -> None:
    answer = client.get(f"/{name}/{page}")
    assert answer.status_code in (200, 400)
    elements = Elements()
    elements.feed(answer.text)
    for tag, attributes in elements.found:
        assert tag != "img"
        assert tag != "script" or (attributes.get("src") or "").startswith("/static/")
        assert not [key for key in attributes if key == "style" or key.startswith("on")]
        assert not (attributes.get("href") or "/").lower().startswith("javascript")


class Elements(HTMLParser):
    """Elements of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_pages_are_only_read(client: TestClient, method: str) -> None:
    assert getattr(client, method)("/a/search").status_code == 405


# ---- search -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["L1.N7", "l1.n7", "1.7", " L1 N7 ", "l1n7", "L1.7"])
def test_a_neuron_s_name_leads_to_its_page(client: TestClient, text: str) -> None:
    answer = client.get("/a/search", params={"q": text}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/a/neuron?neuron=L1.N7")


@pytest.mark.parametrize("text", ["L7.N0", "L0.N70", "l0n999999999"])
def test_a_wrong_neuron_says_what_is_valid(client: TestClient, text: str) -> None:
    answer = client.get("/a/search", params={"q": text})
    assert answer.status_code == 400
    assert "valid are layers 0 to 1, neurons 0 to 69" in answer.text


def test_a_word_is_counted_tagged_and_shown(opened: Opened) -> None:
    words = opened.lake.words().to_pylist()
    for form in ("w0", "w3", "w39"):
        mine = [word for word in words if word["form"] == form]
        found = search(opened, f" {form} ")
        assert found["count"] == len(mine)
        (tags,) = found["tags"]
        assert {entry["tag"]: entry["count"] for entry in tags["tags"]} == Counter(word["upos"] for word in mine)
        assert [hit.sentence for hit in found["hits"]] == [word["sentence"] for word in mine][:50]
        for hit in found["hits"]:
            assert [piece.text for piece in hit.pieces if piece.target] == [form]


def test_a_word_that_does_not_occur_suggests_others(opened: Opened) -> None:
    assert ("w3", read_forms(opened.lake).count("w3")) in search(opened, "W3")["near"]
    assert search(opened, "W3")["count"] == 0
    assert ("w12", read_forms(opened.lake).count("w12")) in search(opened, "ww12")["near"]
    assert search(opened, "3.14")["kind"] == "word"


@given(st.lists(st.lists(st.sampled_from(["a", "A", "b", None]), max_size=6), min_size=1, max_size=4))
def test_forms_find_every_word(blocks: list[list[str | None]]) -> None:
    class Fake:
        def __init__(self) -> None:
            self.blocks = tuple(range(len(blocks)))

        def read_table(self, _: str, block: int, __: list[str]) -> Any:
            return pa.table({"form": pa.array(blocks[block], pa.string())})

    forms = read_forms(Fake())  # type: ignore[arg-type]
    for form in ("a", "A", "b", "c"):
        expected = {at: [place for place, other in enumerate(block) if other == form] for at, block in enumerate(blocks)}
        assert {at: found.tolist() for at, found in forms.words(form).items()} == {at: w for at, w in expected.items() if w}
        assert forms.count(form) == sum(map(len, expected.values()))


@pytest.mark.parametrize(
    "predicate",
    ["upos='NOUN'", "upos=NOUN", "form LIKE 'w1%' AND subword = 0", "position in (0, 1)", "flags = 0", "upos IS NULL"],
)
def test_sql_finds_what_is_true(opened: Opened, predicate: str) -> None:
    tokens = opened.lake.tokens(labels=["upos", "form"]).to_pylist()
    true = {
        "upos='NOUN'": lambda token: token["upos"] == "NOUN",
        "upos=NOUN": lambda token: token["upos"] == "NOUN",
        "form LIKE 'w1%' AND subword = 0": lambda token: (token["form"] or "").startswith("w1") and token["subword"] == 0,
        "position in (0, 1)": lambda token: token["position"] in (0, 1),
        "flags = 0": lambda token: token["flags"] == 0,
        "upos IS NULL": lambda token: token["upos"] is None,
    }[predicate]
    rows = [token["row"] for token in tokens if not token["flags"] & (PADDING | SPECIAL) and true(token)]
    found = search(opened, predicate)
    assert (found["kind"], found["count"], [hit.row for hit in found["hits"]]) == ("SQL", len(rows), rows[:50])


def test_a_window_looks_at_all_blocks(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuronlake.analysis.explorer.search._GROUP", 2)
    tokens = [t for t in opened.lake.tokens(labels=["form"]).to_pylist() if not t["flags"] & PADDING]
    often = Counter(token["form"] for token in tokens)
    expected = sum(often[t["form"]] > 20 for t in tokens if not t["flags"] & SPECIAL)
    assert search(opened, "count(*) OVER (PARTITION BY form) > 20")["count"] == expected
    assert search(opened, "upos = 'VERB'")["count"] == sum(
        tag == "VERB" for tag in opened.lake.tokens(labels=["upos"])["upos"].to_pylist()
    )


@pytest.mark.parametrize(
    "text",
    ["upos = 'NOUN", "foo = 1", "(SELECT 1) = 1", "upos = 'X'; DROP TABLE x", "read_csv('/etc/passwd') = 1", "x" * 3000],
)
def test_refused_sql_is_said_beside_the_question(client: TestClient, text: str) -> None:
    answer = client.get("/a/search", params={"q": text})
    assert answer.status_code == 400
    assert 'class="problem said"' in answer.text
    assert 'name="q"' in answer.text


# ---- which neurons fire -------------------------------------------------------------------------------------------------


def test_firing_by_hits_and_by_difference(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "a.lake", encoding="float16", seed=5)
    opened = Shelf([lake.path]).open("a")
    before = files(lake)
    tokens = lake.tokens(labels=["form"])
    values = np.concatenate([stored(lake, layer) for layer in lake.layers], axis=1)  # (lines, layers × neurons)
    mine = np.array([form == "w3" for form in tokens["form"].to_pylist()]) & tokens["is_last_subword"].to_numpy()
    # the 32 of largest magnitude, of equal ones the lower neuron
    listed = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :32]
    among = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(among, listed, True, axis=1)
    usual = among[ordinary(lake)].mean(axis=0)
    found = firing(opened, form="w3")
    assert (found["score"], found["count"], found["of"]) == ("hits", mine.sum(), mine.sum())
    gain = [entry["share"] - entry["share_all"] for entry in found["neurons"]]
    np.testing.assert_allclose(gain, np.sort(among[mine].mean(axis=0) - usual)[::-1][: len(gain)], atol=1e-12)
    assert files(lake) == before

    compute_statistics(lake, EVERY_WORD, subword="all", basic=True, folds=1)
    opened, before = Shelf([lake.path]).open("a"), files(lake)
    word = tokens["word"].to_numpy() >= 0
    mean, deviation = values[word].mean(axis=0, dtype=np.float64), values[word].std(axis=0, ddof=1, dtype=np.float64)
    nouns = np.array([tag == "NOUN" for tag in lake.tokens(labels=["upos"])["upos"].to_pylist()])
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.nan_to_num((values[nouns].mean(axis=0, dtype=np.float64) - mean) / deviation)
    found = firing(opened, where="upos='NOUN'")
    assert found["score"] == "difference"
    expected = np.argsort(-np.abs(apart), kind="stable")[:FIRING]
    assert [entry["layer"] * NEURONS + entry["neuron"] for entry in found["neurons"]] == expected.tolist()
    np.testing.assert_allclose([entry["difference"] for entry in found["neurons"]], apart[expected], rtol=1e-4)
    assert files(lake) == before


def test_firing_asks_for_an_index(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "a.lake", encoding="float16", seed=5, tokens=100)
    shutil.rmtree(tmp_path / "a.lake" / "index")
    opened = Shelf([lake.path]).open("a")
    with pytest.raises(NotKeptError, match="neuronlake index"):
        firing(opened, form="w3")
    with pytest.raises(InputError, match="form="):
        firing(opened)
    assert sentence_page(opened, 0)["neurons"] == []


# ---- sentences ----------------------------------------------------------------------------------------------------------


def test_a_sentence_s_numbers_are_the_stored_ones(opened: Opened) -> None:
    lake = opened.lake
    tokens = [token for token in lake.tokens(labels=["upos"]).to_pylist() if not token["flags"] & PADDING]
    numbers = sorted({token["sentence"] for token in tokens})
    for number in (numbers[0], numbers[len(numbers) // 2], numbers[-1]):
        mine = [token for token in tokens if token["sentence"] == number]
        view = sentence_page(opened, number, ["L1.N69", "l0.n3"])
        assert [token["row"] for token in view["tokens"]] == [token["row"] for token in mine]
        assert [token["labels"] for token in view["tokens"]] == [[token["upos"]] for token in mine]
        expected = np.stack(
            [lake.read(layer=layer, rows=[t["row"] for t in mine], neurons=[n])[:, 0] for layer, n in ((1, 69), (0, 3))],
            axis=1,
        )
        cells = [[cell["value"] for cell in token["cells"]] for token in view["tokens"]]
        np.testing.assert_array_equal(np.array(cells, dtype=np.float32), expected)
        assert [each["limit"] for each in view["neurons"]] == np.abs(expected).max(axis=0).tolist()
        at = numbers.index(number)
        assert view["previous"] == (numbers[at - 1] if at else None)
        assert view["next"] == (numbers[at + 1] if at + 1 < len(numbers) else None)
        words = [word for word in lake.words().to_pylist() if word["sentence"] == number]
        assert [token["word"] for token in view["tokens"] if token["word"]] == [word["form"] for word in words]


def test_the_index_chooses_what_is_far_from_its_mean(opened: Opened) -> None:
    lake = opened.lake
    values = np.concatenate([stored(lake, layer) for layer in lake.layers], axis=1).astype(np.float64)
    tokens = lake.tokens()
    last = tokens["is_last_subword"].to_numpy() & (tokens["word"].to_numpy() >= 0)
    listed = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :32]
    view = sentence_page(opened, 7)
    rows = [token["row"] for token in view["tokens"] if not token["special"]]  # no block is missing: a row is a line
    spread = values[last].std(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.nan_to_num(np.abs(values[rows] - values[last].mean(axis=0)) / spread, posinf=0)
    best = {int(n): 0.0 for n in np.unique(listed[rows])}
    for at, row in enumerate(rows):
        for neuron in listed[row]:
            best[int(neuron)] = max(best[int(neuron)], float(apart[at, neuron]))
    expected = sorted(sorted(best, key=lambda neuron: -best[neuron])[:CHOSEN])
    assert [each["layer"] * NEURONS + each["neuron"] for each in view["neurons"]] == expected


def test_sentences_of_a_lake_with_missing_blocks(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "some.lake", encoding="float16", seed=1, blocks=[1, 3, 4])
    opened = Shelf([lake.path]).open("some")
    there = sorted(set(lake.sentences()["sentence"].to_pylist()))
    walked, number = [], sentence_page(opened, None)["sentence"]
    while number is not None:
        walked.append(number)
        number = sentence_page(opened, number)["next"]
    assert walked == there
    gap = next(number for number in range(there[0], there[-1]) if number not in there)
    for wrong in (there[0] - 1, gap, there[-1] + 1):
        with pytest.raises(InputError, match=rf"no sentence {wrong} .* {there[0]} to {there[-1]}; not all blocks"):
            sentence_page(opened, wrong)


def test_a_long_sentence_comes_in_parts(tmp_path: Path) -> None:
    spec = make_spec(layers=1, neurons=4, block_rows=512, chunk_neurons=4, encoding="float16")
    length = 2 * SHOWN + 7
    long = make_sentence([f"w{place}" for place in range(length)], [{"upos": "X"}] * length, name="s", document="d")
    record, rows = plan_lake(tmp_path / "long.lake", spec, [replace(long, new_document=True)])
    write_blocks(tmp_path / "long.lake", spec, record, rows, np.ones((1, length, 4), dtype=np.float32))
    opened = Shelf([tmp_path / "long.lake"]).open("long")
    parts = [sentence_page(opened, 0, ["L0.N1"], first=first) for first in (0, SHOWN, 2 * SHOWN)]
    assert [token["position"] for part in parts for token in part["tokens"]] == list(range(length))
    assert "".join(piece.text for part in parts[1:2] for piece in part["pieces"]).split() == [
        f"w{place}" for place in range(SHOWN, 2 * SHOWN)
    ]


def test_frames_have_a_time_and_no_token(tmp_path: Path) -> None:
    spec = make_spec(layers=1, neurons=4, block_rows=64, chunk_neurons=4, encoding="float16")
    frames = {"sampling_rate": 16000, "hop": 320, "needed": 400, "first_centre": 200.0}
    spec = replace(spec, plan={**spec.plan, "frames": frames})
    said = make_sentence(["the", "dog"], [{"upos": "DET"}, {"upos": "NOUN"}], name="u", document="d")
    record, rows = plan_lake(tmp_path / "s.lake", spec, [replace(said, new_document=True)])
    write_blocks(tmp_path / "s.lake", spec, record, rows, np.ones((1, 2, 4), dtype=np.float32))
    shelf = Shelf([tmp_path / "s.lake"])
    view = sentence_page(shelf.open("s"), 0)
    assert [token["time"] for token in view["tokens"]] == [0.0125, 0.0325]
    with TestClient(create_app(shelf), base_url="http://localhost") as client:
        page = client.get("/s/sentence").text
        assert client.get("/s/").status_code == 200
    assert '<th scope="col">token</th>' not in page
    assert '<th scope="row">dog</th>' in page


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("neurons=L1", "is no neuron"),
        ("neurons=L9.N1", "valid are"),
        ("labels=foo", "no label column"),
        ("sentence=99999", "it has sentences 0 to"),
        ("sentence=-1", "no sentence -1"),
        ("neurons=" + ",".join(f"L0.N{n}" for n in range(30)), "at most 24"),
    ],
)
def test_wrong_sentences_say_what_is_valid(client: TestClient, query: str, said: str) -> None:
    answer = client.get(f"/a/sentence?{query}")
    assert answer.status_code == 400
    assert said in answer.text


# ---- comparisons --------------------------------------------------------------------------------------------------------


def test_two_tags(opened: Opened) -> None:
    for method in ("auroc", "cohen_d"):
        scores = opened.scores("upos", method)
        x, y = (scores[method].sel(tag=tag).to_numpy().ravel() for tag in ("NOUN", "VERB"))
        view = compare_tags(opened, None, method, "NOUN", "VERB")
        np.testing.assert_allclose(view["rho"], spearmanr(x, y).statistic, rtol=1e-12)
        higher, lower = ([(e["layer"] * NEURONS + e["n"]) for e in map(named, side["neurons"])] for side in view["sides"])
        assert higher == np.argsort(y - x, kind="stable")[: len(higher)].tolist()
        assert lower == np.argsort(x - y, kind="stable")[: len(lower)].tolist()
        assert sum(cell["count"] for cell in view["scatter"]["cells"]) == len(x) == view["neurons"]
    chosen = compare_tags(opened, None, "auroc", None, None)
    assert chosen["counts"][0] >= chosen["counts"][1]


def named(entry: dict[str, Any]) -> dict[str, int]:
    layer, neuron = entry["name"][1:].split(".N")
    return {"layer": int(layer), "n": int(neuron)}


def test_two_lakes(opened: Opened, tmp_path: Path) -> None:
    other = make_lake(tmp_path / "o.lake", encoding="float16", seed=9)
    compute_statistics(other, "upos")
    small, _ = synthetic_lake(tmp_path / "small.lake")[0], compute_statistics(open_lake(tmp_path / "small.lake"), "upos")
    shelf = Shelf([other.path, tmp_path / "small.lake"])
    there = shelf.open("o")
    view = compare_lakes(opened, there, None, "auroc", "ADJ")
    x, y = (each.scores("upos", "auroc")["auroc"].sel(tag="ADJ").to_numpy().ravel() for each in (opened, there))
    np.testing.assert_allclose(view["rho"], spearmanr(x, y).statistic, rtol=1e-12)
    agree = np.where((x > 0.5) == (y > 0.5), np.minimum(abs(x - 0.5), abs(y - 0.5)), -1)
    best = [named(entry)["layer"] * NEURONS + named(entry)["n"] for entry in view["sides"][2]["neurons"]]
    np.testing.assert_allclose(agree[best], np.sort(agree)[::-1][: len(best)])
    for arguments, said in (
        ((opened, shelf.open("small"), None, "auroc", None), "same shape"),
        ((opened, opened, None, "auroc", None), "choose another"),
        ((opened, there, None, "auroc", "FOO"), "no tag 'FOO'"),
        ((opened, there, None, "foo", None), "unknown ranking"),
    ):
        with pytest.raises(InputError, match=said):
            compare_lakes(*arguments)
    assert small.neurons == 10


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=30))
def test_spearman(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(spearman(x, y))
    else:
        np.testing.assert_allclose(spearman(x, y), spearmanr(x, y).statistic, atol=1e-12)


@pytest.mark.parametrize("spread", ["normal", "uniform", "equal", "one"])
def test_a_scatter_has_few_marks_and_loses_none(spread: str) -> None:
    rng = np.random.default_rng(0)
    size = 1 if spread == "one" else 50_000
    x, y = rng.uniform(size=(2, size)) if spread == "uniform" else rng.normal(size=(2, size))
    if spread == "equal":
        x[:] = y[:] = 0.5
    drawn = scatter(x, y, {"L0.N0": 0})
    assert len(drawn["cells"]) <= MOST
    assert sum(cell["count"] for cell in drawn["cells"]) == size
    for mark in (*drawn["cells"], *drawn["marks"]):
        assert 0 <= mark["x"] <= SIDE
        assert 0 <= mark["y"] <= SIDE
    (mark,) = drawn["marks"]
    low, high = drawn["ticks"][0][0]["value"], drawn["ticks"][0][-1]["value"]
    assert mark["x"] == pytest.approx((x[0] - low) / (high - low) * SIDE, abs=0.01)
    own = [
        c for c in drawn["cells"] if 0 <= mark["x"] - c["x"] <= drawn["cell"] and 0 <= mark["y"] - c["y"] <= drawn["cell"]
    ]
    assert own


# ---- neighbours ---------------------------------------------------------------------------------------------------------


def test_neighbours_by_profile(opened: Opened) -> None:
    area = opened.statistics("upos")["auroc"].transpose("layer", "neuron", "tag").to_numpy().reshape(2 * NEURONS, -1)
    distance = np.sqrt(((2 * area - 2 * area[3]) ** 2).mean(axis=1))
    distance[3] = np.inf
    found = like(opened, 0, 3, "profile", None)["neurons"]
    np.testing.assert_allclose([entry["distance"] for entry in found], np.sort(distance)[: len(found)], atol=1e-6)


def test_neighbours_by_activation_write_nothing(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, before = opened.lake, files(opened.lake)
    values = np.concatenate([stored(lake, layer) for layer in lake.layers], axis=1)[ordinary(lake)]
    values = values[:, values.std(axis=0) > 0]
    found = like(opened, 0, 0, "activation", None)["neurons"]
    r = np.corrcoef(values.T)[0]
    np.testing.assert_allclose(
        [abs(entry["correlation"]) for entry in found], np.sort(np.abs(r[1:]))[::-1][: len(found)], atol=1e-5
    )
    assert files(lake) == before
    monkeypatch.setattr(neighbours_view, "_SCANNED", 1)
    with pytest.raises(NotKeptError, match="neuronlake neighbours"):
        like(opened, 0, 0, "activation", None)
    kept = make_lake(tmp_path / "k.lake", encoding="float16", seed=1)
    sketch_neurons(kept)
    with_sketch = like(Shelf([kept.path]).open("k"), 0, 0, "activation", None)["neurons"]
    assert [entry["name"] for entry in with_sketch[:5]] == [entry["name"] for entry in found[:5]]
    with pytest.raises(InputError, match="unknown signature"):
        like(opened, 0, 0, "foo", None)


def test_the_neuron_page_offers_neighbours(client: TestClient) -> None:
    page = client.get("/a/neuron?neuron=L0.N3").text
    assert "signature=profile" in page
    assert "signature=activation" in page
    assert "signature=weights" not in page


# ---- exports ------------------------------------------------------------------------------------------------------------


def table(client: TestClient, address: str) -> list[dict[str, str]]:
    answer = client.get(address)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert re.fullmatch(r'attachment; filename="[\w.-]+\.csv"', answer.headers["content-disposition"])
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_tables_have_all_digits(client: TestClient, lake: Lake) -> None:
    statistics = compute_statistics(lake, "upos")
    for address, top, layers in (
        ("top=7", 7, None),
        ("", 2 * NEURONS, None),
        ("layer=1", NEURONS, [1]),
        ("layer=0", NEURONS, [0]),
    ):
        lines = table(client, f"/a/tag.csv?tag=NOUN&{address}")
        expected = rank(statistics, "auroc", top=top, tags=["NOUN"], layers=layers)
        assert [line["name"] for line in lines] == [entry["name"] for entry in expected]
        for name in ("score", "auroc", "p", "q", "mean"):
            assert [float(line[name]) for line in lines] == [entry[name] for entry in expected]
    profile = table(client, "/a/profile.csv?neuron=L0.N3")
    own = statistics.sel(layer=0, neuron=3)
    assert {line["tag"]: float(line["mean"]) for line in profile} == {
        str(tag): float(own["mean"].sel(tag=tag)) for tag in own["tag"].to_numpy()
    }
    cells = table(client, "/a/heatmap.csv?method=cohen_d")
    for cell in cells:
        (best,) = rank(statistics, "cohen_d", top=1, tags=[cell["tag"]], layers=[int(cell["layer"])])
        assert (cell["neuron"], float(cell["cohen_d"])) == (best["name"], best["score"])
    contexts = table(client, "/a/contexts.csv?neuron=L0.N3&k=5")
    assert [line["end"] for line in contexts] == ["top"] * 5 + ["bottom"] * 5
    usable = np.flatnonzero(ordinary(lake))
    values = stored(lake, 0)[usable, 3]
    assert [float(line["activation"]) for line in contexts[:5]] == np.sort(values)[::-1][:5].tolist()


def test_cells_that_spreadsheets_would_run_are_text(client: TestClient) -> None:
    answer = client.get("/b/contexts.csv?neuron=L0.N1&k=60").text
    cells = [cell for line in csv.reader(io.StringIO(answer)) for cell in line]
    assert "'=1+1" in cells
    assert "'@SUM(A1)" in cells
    assert "<script>alert(1)</script>" in cells
    assert not [c for c in cells if c.startswith(("=", "+", "@"))]
    assert all(re.fullmatch(r"-[\d.e-]+", cell) for cell in cells if cell.startswith("-"))


@given(st.lists(st.lists(st.one_of(st.text(), st.floats(), st.integers(), st.none()), min_size=2, max_size=2), max_size=5))
def test_csv_reads_back(lines: list[list[Any]]) -> None:
    (_, *read) = csv.reader(io.StringIO(as_csv(["a", "b"], lines), newline=""))
    for line, cells in zip(lines, read, strict=True):
        for value, cell in zip(line, cells, strict=True):
            if isinstance(value, str):
                assert cell in (value, f"'{value}")
            elif value is None or value != value:
                assert cell == ""
            else:
                assert type(value)(cell) == value


def test_pictures(client: TestClient) -> None:
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for address, kind in (
        ("heatmap.svg", "image/svg+xml"),
        ("bars.png?tag=NOUN", "image/png"),
        ("volcano.pdf?tag=NOUN", "application/pdf"),
        ("histogram.svg?neuron=L0.N3", "image/svg+xml"),
    ):
        answer = client.get(f"/a/{address}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.content.startswith(begins[address.split(".")[1][:3]])
        assert answer.headers["content-disposition"].startswith('attachment; filename="a-')
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("volcano.png", "of one tag"),
        ("histogram.png", "of one neuron"),
        ("bars.png?tag=FOO", "unknown tag"),
        ("heatmap.png?method=foo", "unknown method"),
        ("tag.csv", "lacks tag="),
        ("tag.csv?tag=NOUN&top=0", "top must be"),
        ("tag.csv?tag=NOUN&layer=9", "unknown layer"),
        ("profile.csv?neuron=x", "is no neuron"),
    ],
)
def test_wrong_exports_say_what_is_wrong(client: TestClient, address: str, said: str) -> None:
    answer = client.get(f"/a/{address}")
    assert answer.status_code == 400
    assert said in answer.text


def test_an_unknown_picture(opened: Opened) -> None:
    with pytest.raises(InputError, match="unknown kind"):
        figure(opened, "pie", "png", by=None)


# ---- what is missing ----------------------------------------------------------------------------------------------------


def test_the_overview_says_what_a_lake_lacks(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "my lake.lake", encoding="float16", seed=1, blocks=[0, 1, 2])
    shutil.rmtree(tmp_path / "my lake.lake" / "index")
    shelf = Shelf([lake.path])
    with TestClient(create_app(shelf), base_url="http://localhost") as client:
        page = client.get("/my%20lake/")
        assert page.status_code == 200
        for said in (
            f"3 of {lake.plan.blocks} blocks are extracted",
            "covers 0 of 3 blocks",
            "No statistics are kept",
            "No weights",
        ):
            assert said in page.text
        assert f"neuronlake index &#39;{lake.path}&#39;" in page.text
    compute_statistics(lake, "upos")
    make_lake_go_on(lake)
    with TestClient(create_app(Shelf([lake.path])), base_url="http://localhost") as client:
        page = client.get("/my%20lake/")
        assert page.status_code == 200
        assert "Statistics of upos are not of all blocks" in page.text


def make_lake_go_on(lake: Lake) -> None:
    """Commit the blocks that are missing."""
    assert isinstance(lake.path, Path)
    again = make_lake(lake.path.parent / "again.lake", encoding="float16", seed=1)
    for part in ("activations", "scales", "commits"):
        if (again.path / part).exists():
            shutil.copytree(str(again.path / part), lake.path / part, dirs_exist_ok=True)
