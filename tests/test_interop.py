"""A lake opens with the libraries people have, without neuronlake, as docs/format.md promises."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pytest
import tensorstore
import xarray
import zarr
from lakes import foreign_values, synthetic_lake

from neuronlake.store import ENCODINGS, Lake, open_lake

FORMAT = Path(__file__).parent.parent / "docs" / "format.md"


@pytest.fixture(scope="module", params=list(ENCODINGS))
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    root = tmp_path_factory.mktemp("interop") / "a.lake"
    synthetic_lake(root, tokens=150, layers=13, neurons=350, block_rows=128, chunk_neurons=64, encoding=request.param)
    return open_lake(root)


def test_the_formula_in_the_attributes_decodes(lake: Lake) -> None:
    for layer in (0, 12):
        np.testing.assert_array_equal(foreign_values(lake.path, layer), lake.read(layer=layer))


def test_the_three_lines_of_the_format_page_decode(tmp_path: Path) -> None:
    """The very text of the page, on a lake at the page's path."""
    root = tmp_path / "demo" / "demo.lake"
    synthetic_lake(root, tokens=100, layers=13, neurons=350, block_rows=128, chunk_neurons=64, encoding="int8a")
    (code,) = re.findall(r"```python\n(.*?)```", FORMAT.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "demo/demo.lake" in code
    names: dict[str, object] = {}
    exec(code.replace("demo/demo.lake", str(root)), names)
    expected = open_lake(root).read(layer=12, rows=slice(0, 100), neurons=[345])[:, 0]
    np.testing.assert_array_equal(np.asarray(names["x"]).astype(np.float16), expected)


def test_zarr_opens_the_whole_tree(lake: Lake) -> None:
    group = zarr.open_group(lake.path, mode="r")
    assert group.attrs["neuronlake"]["encoding"] == lake.encoding
    assert group["activations/mlp.post/3"].shape == (256, 350)
    assert group["activations/mlp.post/3"].metadata.dimension_names == ("row", "neuron")


def test_tensorstore_reads_codes_and_scales(lake: Lake) -> None:
    names = ["activations/mlp.post/3"] + ["scales/mlp.post"] * ENCODINGS[lake.encoding].quantised
    for name in names:
        store = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(lake.path / name)}}).result()
        np.testing.assert_array_equal(store.read().result(), zarr.open_array(lake.path / name, mode="r")[:])


def test_xarray_opens_a_site(lake: Lake) -> None:
    dataset = xarray.open_zarr(lake.path / "activations" / "mlp.post", consolidated=False, mask_and_scale=False)
    assert dataset["3"].dims == ("row", "neuron")
    np.testing.assert_array_equal(dataset["3"].values, zarr.open_array(lake.path / "activations/mlp.post/3", mode="r")[:])


def test_duckdb_and_pyarrow_read_the_tables(lake: Lake) -> None:
    words = lake.words().to_pandas()
    counted = duckdb.sql(f"SELECT upos, count(*) FROM '{lake.path}/words/*.parquet' GROUP BY upos").fetchall()
    assert dict(counted) == words["upos"].value_counts().to_dict()
    joined = duckdb.sql(
        f"SELECT count(*) FROM '{lake.path}/plan/*.parquet' p JOIN '{lake.path}/words/*.parquet' w USING (word)"
    ).fetchall()
    assert joined == [(150,)]
    assert ds.dataset(lake.path / "sentences", format="parquet").count_rows() == lake.sentences().num_rows
