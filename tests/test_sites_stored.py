"""What the sparse and the two-valued sites cost on the disk, and that they come back as they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from family_models import GROUPED, Array, save

from neuronlake.extractor import resolve_model
from neuronlake.extractor.model import Model
from neuronlake.store import Lake, write_lake

EXPERTS, TOP, NEURONS = 16, 2, 64  # an expert as wide as a chunk, or wider: as real ones are


def bytes_per_value(lake: Lake, values: Array) -> float:
    files = (lake.path / "activations").rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / values.size


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """2,048 tokens of a random mixture of experts: its routing is as irregular as can be."""
    folder = tmp_path_factory.mktemp("mixture")
    settings = {"num_experts": EXPERTS, "num_experts_per_tok": TOP, "intermediate_size": NEURONS, "vocab_size": 1000}
    save("olmoe", {**GROUPED, **settings, "num_hidden_layers": 1, "max_position_embeddings": 128}, folder)
    model = Model.load(resolve_model(str(folder)), device="cpu", sites=["mlp.post", "mlp.routing"])
    ids = torch.randint(3, 1000, (16, 128), generator=torch.Generator().manual_seed(0))
    seen: dict[str, Array] = {}
    model.capture(ids, lambda site, _layer, values: seen.update({site: values.flatten(0, 1).numpy().copy()}))
    return seen


@pytest.mark.parametrize("encoding", ["float16", "int8a"])
def test_experts_cost_what_is_routed(encoding: str, mixture: dict[str, Array], tmp_path: Path) -> None:
    values, routing = mixture["mlp.post"], mixture["mlp.routing"]
    routed = np.repeat(routing > 0, NEURONS, axis=1)
    np.testing.assert_array_equal(values != 0, routed)
    dense = values[routed].reshape(len(values), TOP * NEURONS)
    sparse_lake = write_lake(tmp_path / "sparse.lake", values, name="m", encoding=encoding)
    dense_lake = write_lake(tmp_path / "dense.lake", dense, name="m", encoding=encoding)
    # the share that is routed, and a mask of which: half a bit per token and expert, were it coded well
    assert bytes_per_value(sparse_lake, values) < 1.7 * TOP / EXPERTS * bytes_per_value(dense_lake, dense)
    stored = sparse_lake.read(layer=0)[: len(values)]
    # float16 ends at 6e-8: what is smaller becomes 0
    np.testing.assert_array_equal(stored != 0, values.astype(np.float16) != 0)
    routing_lake = write_lake(tmp_path / "routing.lake", routing, name="m", encoding=encoding, site="mlp.routing")
    stored = routing_lake.read(site="mlp.routing", layer=0)[: len(values)]
    np.testing.assert_array_equal(stored != 0, routing != 0)


@pytest.mark.parametrize(("encoding", "most"), [("float16", 0.15), ("int8a", 0.25)])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_signs_are_exact_and_small(encoding: str, most: float, share: float, tmp_path: Path) -> None:
    values = (np.random.default_rng(0).random((4096, 256)) < share).astype(np.float32)
    lake = write_lake(tmp_path / "a.lake", values, name="signs", encoding=encoding, site="mlp.gate_sign")
    np.testing.assert_array_equal(lake.read(site="mlp.gate_sign", layer=0)[: len(values)], values)
    assert bytes_per_value(lake, values) <= most
