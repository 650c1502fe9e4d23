"""The store against an in-memory model, and against the libraries that must be able to read it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lakes import foreign_values, make_spec, plan_lake, random_sentences, synthetic_lake, write_blocks

from neuronlake.store import ENCODINGS, BlockWriter, InputError, open_lake, verify

TORCH_FREE = {"float32": np.float32, "float16": np.float16}


def rounded(values: np.ndarray, encoding: str) -> np.ndarray:
    """What the encoding keeps, computed independently of the store."""
    if encoding == "bfloat16":
        bits = values.view(np.uint32).astype(np.uint64)
        return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)
    return values.astype(TORCH_FREE[encoding]).astype(np.float32)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_read_equals_a_plain_array(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    encoding = data.draw(st.sampled_from(list(ENCODINGS)))
    tokens, neurons = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 21))
    root = tmp_path_factory.mktemp("lakes") / "a.lake"
    spec, rows, values = synthetic_lake(
        root,
        tokens=tokens,
        neurons=neurons,
        block_rows=data.draw(st.sampled_from([16, 32, 64])),
        chunk_neurons=data.draw(st.sampled_from([1, 2, 4, 8, 32])),
        encoding=encoding,
    )
    lake = open_lake(root)
    model = np.zeros((len(spec.layers), lake.plan.blocks * spec.block_rows, neurons), dtype=np.float32)
    if ENCODINGS[encoding].quantised:  # how near these are to the truth is tested with the quantiser
        model[:] = [foreign_values(root, layer) for layer in spec.layers]
        assert not np.delete(model, rows, axis=1).any(), "padding must decode to zero"
    else:
        model[:, rows] = rounded(values, encoding)
    chosen = st.lists(st.integers(0, model.shape[1] - 1), max_size=20)
    row_index, neuron_index = data.draw(chosen), data.draw(st.lists(st.integers(0, neurons - 1), max_size=9))
    for layer in spec.layers:
        np.testing.assert_array_equal(lake.read(layer=layer), model[layer])
        np.testing.assert_array_equal(
            lake.read(layer=layer, rows=row_index, neurons=neuron_index),
            model[layer][np.array(row_index, dtype=int)][:, np.array(neuron_index, dtype=int)],
        )
        np.testing.assert_array_equal(lake.dask(layer=layer).compute(scheduler="synchronous"), model[layer])
        np.testing.assert_array_equal(lake.array(layer=layer)[3:7, ::2], model[layer][3:7, ::2])
        np.testing.assert_array_equal(lake.array(layer=layer)[0], model[layer][0])
        stored = zarr.open_array(root / f"activations/mlp.post/{layer}", mode="r")[:]
        tensorstore_view = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{root}/activations/mlp.post/{layer}"}}
        ).result()
        np.testing.assert_array_equal(tensorstore_view.read().result(), stored)
        np.testing.assert_array_equal(foreign_values(root, layer), model[layer])
    assert verify(root, full=True).ok
    np.testing.assert_array_equal(lake.xarray(layers=[0]).values[0], model[0])


def test_special_values_survive(tmp_path: Path) -> None:
    special = np.array([0.0, -0.0, 1e-7, -1e-7, 65504.0, 6e-8, 1.0, -2.5], dtype=np.float32)
    values = np.tile(special, (1, 10, 1)).astype(np.float32)
    _, rows, _ = synthetic_lake(tmp_path / "a.lake", tokens=10, layers=1, neurons=8, values=values)
    read = open_lake(tmp_path / "a.lake").read(layer=0, rows=rows)
    np.testing.assert_array_equal(np.signbit(read), np.signbit(np.tile(special, (10, 1))))
    np.testing.assert_array_equal(read, np.tile(special.astype(np.float16), (10, 1)))


@pytest.mark.parametrize("encoding", ["float16", "int8a"])
@pytest.mark.parametrize(("value", "match"), [(np.nan, "nan"), (np.inf, "inf"), (70000.0, "beyond {}'s range")])
def test_what_cannot_be_stored_is_refused_by_name(tmp_path: Path, value: float, match: str, encoding: str) -> None:
    values = np.zeros((2, 10, 10), dtype=np.float32)
    values[1, 3, 7] = value
    with pytest.raises(InputError, match=f"L1.N7.*{match.format(encoding)}"):
        synthetic_lake(tmp_path / "a.lake", tokens=10, values=values, encoding=encoding)
    assert open_lake(tmp_path / "a.lake").blocks == ()


def test_uncommitted_blocks_are_absent_not_zero(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    rng = np.random.default_rng(0)
    spec = make_spec(layers=1, neurons=4, block_rows=16, chunk_neurons=4, encoding="float32")
    record, rows = plan_lake(root, spec, random_sentences(rng, 60, tags=("A",)))
    values = rng.standard_normal((1, 60, 4)).astype(np.float32)
    write_blocks(root, spec, record, rows, values, blocks=[0, 2])
    lake = open_lake(root)
    assert lake.blocks == (0, 2)
    assert not lake.complete
    assert set(lake.tokens().column("row").to_pylist()) == {*range(16), *range(32, 48)}
    with pytest.raises(InputError, match=r"rows 16 to 31 \(block 1\).*not extracted yet"):
        lake.read(layer=0, rows=slice(10, 20))
    assert lake.dask(layer=0).shape == (32, 4)
    write_blocks(root, spec, record, rows, values, blocks=[1])
    assert lake.blocks == (0, 2), "an open lake keeps the view it was opened with"
    assert 1 in open_lake(root).blocks


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda lake: lake.read(layer=2), "no layer 2.*layers 0 to 1"),
        (lambda lake: lake.read(layer=0, site="resid.post"), "no site 'resid.post'.*mlp.post"),
        (lambda lake: lake.read(layer=0, neurons=[10]), "no neuron 10: valid are 0 to 9"),
        (lambda lake: lake.read(layer=0, rows=[-1]), "no row -1: valid are 0 to 127"),
        (lambda lake: lake.read(layer=0, rows=[0.5]), "chosen by integers"),
        (lambda lake: lake.tokens(labels=["upso"]), "no label column 'upso'.*upos"),
        (lambda lake: lake.words(columns=["nope"]), "no word column 'nope'"),
        (lambda lake: lake.tokens(blocks=[9]), "no block 9"),
    ],
)
def test_wrong_requests_name_the_valid_ones(tmp_path: Path, call: object, match: str) -> None:
    synthetic_lake(tmp_path / "a.lake")
    with pytest.raises(InputError, match=match):
        call(open_lake(tmp_path / "a.lake"))  # type: ignore[operator]


def test_tokens_join_their_words_labels(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    synthetic_lake(root, tokens=150, block_rows=64)
    lake = open_lake(root)
    tokens = lake.tokens(labels=["upos", "form", "source", "document_name"]).to_pylist()
    words = {word["word"]: word for word in lake.words().to_pylist()}
    sentences = {sentence["sentence"]: sentence for sentence in lake.sentences().to_pylist()}
    assert len(tokens) == lake.plan.blocks * 64
    for token in tokens:
        if token["token_id"] < 0:
            assert token["word"] == -1
            assert token["upos"] is None
            continue
        word, sentence = words[token["word"]], sentences[token["sentence"]]
        assert (token["upos"], token["form"]) == (word["upos"], word["form"])
        assert sentence["text"][token["char_start"] : token["char_end"]] == word["form"]
        assert token["document_name"] == sentence["document_name"]


def test_tables_open_with_plain_pyarrow(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    synthetic_lake(root)
    assert pq.read_table(root / "words" / "block-000000.parquet").num_rows == open_lake(root).words(blocks=[0]).num_rows


def test_a_row_captured_twice_or_never_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    spec = make_spec(layers=1, neurons=4, block_rows=16, chunk_neurons=4, encoding="float32")
    plan_lake(root, spec, random_sentences(np.random.default_rng(0), 10, tags=("A",)))
    values = np.ones((10, 4), dtype=np.float32)
    with BlockWriter(root, spec) as writer:
        buffer = writer.buffer(10)
        buffer.put("mlp.post", 0, values, np.arange(9), np.arange(9))
        with pytest.raises(InputError, match="row 9 of the block was captured 0 times"):
            writer.submit(0, 10, buffer, {})
        buffer.put("mlp.post", 0, values, np.arange(8, 10), np.arange(8, 10))
        with pytest.raises(InputError, match="row 8 of the block was captured 2 times"):
            writer.submit(0, 10, buffer, {})
    assert open_lake(root).blocks == ()
