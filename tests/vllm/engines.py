"""Blocks of random prompts, captured by vLLM and computed by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lakes import make_spec
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from neuronlake.extractor import resolve_model
from neuronlake.extractor.capture import BlockPlan
from neuronlake.extractor.model import read_shape
from neuronlake.extractor.vllm_engine import VllmEngine, VllmSettings, find_places
from neuronlake.store import LakeSpec
from neuronlake.store.buffer import BlockBuffer

TINY = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
LAYERS, NEURONS, HIDDEN, VOCABULARY, CONTEXT = 3, 88, 64, 400, 128
SITES = ("mlp.post", "mlp.out")
STEP_TOKENS = 48

Values = dict[tuple[str, int], NDArray[np.float32]]


def tiny_spec(sites: tuple[str, ...] = ("mlp.post",), **changes: Any) -> LakeSpec:
    """A lake of the tiny model; slices of two ranks begin in the middle of a chunk."""
    spec = make_spec(layers=LAYERS, neurons=NEURONS, block_rows=512, chunk_neurons=16, encoding="float32")
    widths = {"widths": {"mlp.out": HIDDEN}} if "mlp.out" in sites else {}
    return LakeSpec(**{**spec.__dict__, "sites": sites, **widths, **changes})


def open_tiny(
    folder: Path,
    *,
    sites: tuple[str, ...] = ("mlp.post",),
    kind: type[VllmEngine] = VllmEngine,
    batch_tokens: int = STEP_TOKENS,
    tensor_parallel: int = 1,
    **more: Any,
) -> VllmEngine:
    """Start vLLM with the tiny model."""
    settings = VllmSettings(
        device="cpu",
        dtype="float32",
        max_tokens=CONTEXT,
        batch_tokens=batch_tokens,
        tensor_parallel=tensor_parallel,
        more=more,
    )
    shape = read_shape(resolve_model(str(folder)), sites=sites)
    return kind(folder, find_places(tiny_spec(sites), shape), settings)


def make_plan(prompts: list[NDArray[np.int32]]) -> BlockPlan:
    """A block of these prompts."""
    return BlockPlan(ids=np.concatenate(prompts), starts=np.cumsum([0, *map(len, prompts)]))


def random_prompts(*lengths: int, seed: int = 0) -> list[NDArray[np.int32]]:
    """Prompts of random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]


def capture(engine: VllmEngine, plan: BlockPlan, spec: LakeSpec) -> Values:
    """A block as vLLM computes it: float32 (rows, width) of every site and layer."""
    buffer = BlockBuffer(spec, ranks=engine.ranks)
    buffer.reset(plan.rows)
    done: list[int] = []
    engine.capture_block(plan, buffer, done.append)
    assert sum(done) == plan.rows
    return read(buffer, plan.rows)


def read(buffer: BlockBuffer, rows: int) -> Values:
    """The first rows of a float32 buffer."""
    result = {}
    for site, layer in buffer.keys:
        tiles = buffer.tiles(site, layer)  # (chunks, rows, chunk neurons)
        flat = tiles.transpose(1, 0, 2).reshape(tiles.shape[1], -1)
        assert not flat[rows:].any()
        result[site, layer] = flat[:rows, : buffer.spec.width(site)].copy()
    return result


def by_hand(folder: Path, prompts: list[NDArray[np.int32]]) -> Values:
    """act(gate)·up and its projection, from transformers' weights and inputs of the MLP, one prompt at a time: float64."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(network.model.layers):
        layer.mlp.register_forward_pre_hook(lambda _module, args, index=index: inputs.__setitem__(index, args[0]))
    parts: dict[tuple[str, int], list[NDArray[Any]]] = {}
    for prompt in prompts:
        with torch.inference_mode():
            network(input_ids=torch.from_numpy(prompt.astype(np.int64))[None])
            for index, layer in enumerate(network.model.layers):
                x, mlp = inputs[index][0].double(), layer.mlp
                gate, up = x @ mlp.gate_proj.weight.double().T, x @ mlp.up_proj.weight.double().T
                neurons = torch.nn.functional.silu(gate) * up
                parts.setdefault(("mlp.post", index), []).append(neurons.numpy())
                parts.setdefault(("mlp.out", index), []).append((neurons @ mlp.down_proj.weight.double().T).numpy())
    return {key: np.concatenate(values) for key, values in parts.items()}


def worst(got: Values, expected: Values) -> float:
    """Largest difference of any site and layer, relative to its largest magnitude."""
    return max(float(np.abs(got[key] - expected[key]).max() / np.abs(expected[key]).max()) for key in got)
