"""Correlations of neurons with all others, against NumPy's."""

import json

import numpy as np
import pytest
from lakes import make_spec, plan_lake, random_sentences, write_blocks

from neuronlake.analysis.correlation import coactivation
from neuronlake.cli.main import main
from neuronlake.store import InputError, Lake, open_lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    root = tmp_path_factory.mktemp("coactivation") / "a.lake"
    rng = np.random.default_rng(0)
    spec = make_spec(layers=3, neurons=70, block_rows=128, chunk_neurons=64, encoding="float32")
    record, rows = plan_lake(root, spec, random_sentences(rng, 900, tags=("NOUN", "VERB"), documents=5))
    values = rng.standard_normal((3, len(rows), 70)).astype(np.float32)
    values[1, :, 5] = values[0, :, 3] * 2 + 0.3 * values[1, :, 5]
    values[1, :, 6] += 1e4  # an offset far larger than the spread
    values[2, :, 7] = 4.25
    write_blocks(root, spec, record, rows, values)
    return open_lake(root)


def columns(lake, rows):
    layers = [np.concatenate([lake.read_block(layer=layer, block=block) for block in lake.blocks]) for layer in lake.layers]
    return np.concatenate(layers, axis=1)[rows]


@pytest.mark.parametrize("where", [None, "upos='VERB'"])
def test_is_pearsons(lake, where):
    table = lake.tokens(labels=["upos"])
    rows = table.column("flags").to_numpy() == 0
    if where:
        rows &= np.array(table.column("upos").to_pylist(), dtype=object) == "VERB"
    asked = [(0, 3), (1, 6), (2, 7)]
    found = coactivation(lake, asked, where=where)
    assert found.dims == ("of", "layer", "neuron")
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.corrcoef(columns(lake, rows).astype(np.float64).T)
    for name, (layer, neuron) in zip(found["of"].values, asked, strict=True):
        assert name == f"L{layer}.N{neuron}"
        np.testing.assert_allclose(found.sel(of=name).values.ravel(), expected[layer * 70 + neuron], atol=2e-5)
    assert abs(float(found.sel(of="L0.N3", layer=1, neuron=5))) > 0.9
    assert np.isnan(found.sel(layer=2, neuron=7).values).all()
    assert np.isnan(found.sel(of="L2.N7").values).all()


def test_one_neuron_and_some_layers(lake):
    whole = coactivation(lake, (1, 5))
    some = coactivation(lake, (1, 5), layers=[0, 2])
    np.testing.assert_allclose(some.values, whole.sel(layer=[0, 2]).values, atol=1e-12)


def test_wrong_use(lake):
    for arguments, message in [((3, 0), "valid are layers 0 to 2"), ((0, 70), "neurons 0 to 69")]:
        with pytest.raises(InputError, match=message):
            coactivation(lake, arguments)
    with pytest.raises(InputError, match="upos"):
        coactivation(lake, (0, 1), where="upos='NOPE'")


def test_the_command_lists_the_strongest(lake, capsys):
    assert main(["coactivation", str(lake.path), "L0.N3", "--top", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["rank"] for entry in found] == [1, 2, 3]
    assert found[0]["name"] == "L1.N5"
    assert main(["coactivation", str(lake.path), "L0.N3"]) == 0
    assert "L1.N5" in capsys.readouterr().out
    assert main(["coactivation", str(lake.path), "L9.N3"]) == 2
