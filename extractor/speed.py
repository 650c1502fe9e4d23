"""What a model is before its weights are there, and how fast it runs here: for estimates."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import neuronlake.store.layout as layout
from neuronlake.extractor.capture import BlockPlan, TransformersEngine
from neuronlake.extractor.model import Model, ModelShape, choose_device, read_shape
from neuronlake.extractor.settings import BATCH_TOKENS
from neuronlake.extractor.source import ModelSource, find_configuration, resolve_model
from neuronlake.extractor.transformers_glue import LOAD_ERRORS, first_line, quiet_transformers
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.errors import InputError
from neuronlake.store.spec import LakeSpec

_LEAST_ROWS = 512


def model_shape(
    model: str,
    *,
    gguf: str | None = None,
    sites: Sequence[str] | None = None,
    module: str | None = None,
    trust_remote_code: bool = False,
) -> ModelShape:
    """Read what a model is from its configuration alone: no weights are needed, read or downloaded.

    Parameters
    ----------
    model, gguf
        See `resolve_model`.
    sites, module
        See `read_shape`.

    Raises
    ------
    InputError
        When there is no such model, or it is not one whose neurons can be found.
    """
    where = find_configuration(model, gguf=gguf, trust_remote_code=trust_remote_code)
    with tempfile.TemporaryDirectory() as scratch:
        folder = where
        if where.is_file():
            _write_configuration(where, Path(scratch))
            folder = Path(scratch)
        source = ModelSource(folder=folder, name=model, sha256="")
        return read_shape(source, sites=sites, module=module, trust_remote_code=trust_remote_code)


def tokens_per_second(
    model: str,
    *,
    seconds: float,
    gguf: str | None = None,
    sites: Sequence[str] | None = None,
    module: str | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    sequence_tokens: int,
    say: Callable[[str], None] = lambda message: None,
) -> float:
    """Run a model over made-up text for about so long, all sites captured into a buffer, and return its tokens a second.

    Encoding and writing are not in it. The first pass, in which libraries set themselves up, is not counted.

    Parameters
    ----------
    sequence_tokens
        Tokens of a sequence.

    Raises
    ------
    InputError
        When there is no such model, or it does not read tokens.
    """
    source = resolve_model(model, gguf=gguf, trust_remote_code=trust_remote_code, say=say)
    shape = read_shape(source, sites=sites, module=module, trust_remote_code=trust_remote_code)
    chosen = choose_device(device)
    batch = batch_tokens or BATCH_TOKENS[chosen.partition(":")[0]]
    length = min(sequence_tokens, shape.max_positions)
    rows = 1 << (max(batch, length, _LEAST_ROWS) - 1).bit_length()
    (neurons, *_), used = shape.widths.values(), rows // length * length
    spec = LakeSpec(
        model={},
        capture={},
        plan={},
        sites=tuple(shape.widths),
        layers=tuple(range(shape.layers)),
        neurons=neurons,
        block_rows=rows,
        chunk_neurons=layout.default_chunk_neurons(rows=rows, neurons=neurons, itemsize=2),
        encoding="bfloat16",  # whose range no activation leaves
        widths={site: width for site, width in shape.widths.items() if width != neurons},
    )
    say(f"loading {source.name}")
    loaded = Model.load(
        source,
        device=chosen,
        dtype=dtype if dtype != "auto" else ("float32" if chosen == "cpu" else shape.dtype),
        trust_remote_code=trust_remote_code,
        sites=spec.sites,
        module=module,
        packed=True,
    )
    if loaded.module.main_input_name != "input_ids":
        raise InputError(f"{model} does not read tokens: give --tokens-per-second instead of --measure")
    vocabulary = int(loaded.module.get_input_embeddings().num_embeddings)
    plan = BlockPlan(
        ids=np.random.default_rng(0).integers(0, vocabulary, used, dtype=np.int32),
        starts=np.arange(0, used + 1, length),
    )
    engine, buffer = TransformersEngine(loaded, batch_tokens=batch), BlockBuffer(spec)
    say(f"running {source.name} for {seconds:g} s")
    try:
        buffer.reset(used)
        engine.capture_block(plan, buffer, lambda tokens: None)
        began, done = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < seconds or not done:
            engine.capture_block(plan, buffer, lambda tokens: None)
            done += used
    finally:
        engine.close()
    return done / passed


def _write_configuration(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's configuration as a model folder has it."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    except LOAD_ERRORS as error:
        raise InputError(f"could not read {gguf} as a GGUF model: {first_line(error)}") from error
