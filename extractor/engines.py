"""Which engine runs the model, and one block through it."""

from collections.abc import Callable, Mapping
from typing import Any

import neuronlake.store.layout as layout
from neuronlake.extractor.capture import BlockPlan, MakeBatches, TransformersEngine
from neuronlake.extractor.clips import read_clips
from neuronlake.extractor.engine import Engine
from neuronlake.extractor.model import Model, ModelShape, choose_device
from neuronlake.extractor.settings import BATCH_TOKENS, ExtractSettings
from neuronlake.extractor.source import ModelSource
from neuronlake.store.errors import ActivationError, InputError
from neuronlake.store.files import read_checked
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import PlanRecord
from neuronlake.store.spec import LakeSpec
from neuronlake.store.tables import from_parquet
from neuronlake.store.writer import BlockWriter


def open_engine(
    spec: LakeSpec, source: ModelSource, shape: ModelShape, batches: MakeBatches, settings: ExtractSettings
) -> Engine:
    """Load the model into the engine that the settings name."""
    if settings.backend == "vllm":
        return open_vllm(spec, source, shape, settings)
    model = Model.load(
        source,
        device=settings.device,
        dtype=spec.capture["dtype"],
        trust_remote_code=settings.trust_remote_code,
        sites=spec.sites,
        module=settings.module,
        packed=not settings.plain_kernels,
    )
    return TransformersEngine(model, batch_tokens=settings.batch_tokens or BATCH_TOKENS[model.device.type], batches=batches)


def check_vllm(spec: LakeSpec, shape: ModelShape) -> None:
    """Refuse what vLLM cannot capture before anything is written."""
    from neuronlake.extractor.vllm_engine import check_version, find_places, installed_version

    check_version(installed_version())
    find_places(spec, shape)


def open_vllm(spec: LakeSpec, source: ModelSource, shape: ModelShape, settings: ExtractSettings) -> Engine:
    from neuronlake.extractor.vllm_engine import VllmEngine, VllmSettings, find_places

    device = choose_device(settings.device)
    return VllmEngine(
        source.folder,
        find_places(spec, shape),
        VllmSettings(
            device=device,
            dtype=spec.capture["dtype"],
            max_tokens=spec.plan["max_tokens"],
            batch_tokens=settings.batch_tokens or BATCH_TOKENS[device.partition(":")[0]],
            tensor_parallel=settings.tensor_parallel,
            trust_remote_code=settings.trust_remote_code,
        ),
    )


def extract_block(
    root: LakePath,
    plan: PlanRecord,
    engine: Engine,
    block: int,
    writer: BlockWriter,
    *,
    provenance: Mapping[str, Any],
    progress: Callable[[int], None],
) -> None:
    """Compute one block of the plan of the lake at `root` and hand it to `writer`, which may write elsewhere.

    A pure function of plan, engine and block, on the same hardware and library versions.

    Raises
    ------
    InputError
        When an activation cannot be stored; names the neuron and the token.
    DamageError
        When the block's plan table is damaged.
    """
    table = from_parquet(read_checked(root, plan.files[layout.table_path("plan", block)]), ["token_id", "position", "flags"])
    clips = read_clips(root, plan, block) if plan.unit == "frame" else ()
    block_plan = BlockPlan.from_table(table, clips=clips)
    buffer = writer.buffer(block_plan.rows)
    try:
        engine.capture_block(block_plan, buffer, progress)
    except ActivationError as error:
        raise InputError(f"{error} (token: {_describe(root, plan, block, error.row)})") from error
    writer.submit(block, block_plan.rows, buffer, provenance)


def _describe(root: LakePath, plan: PlanRecord, block: int, row: int) -> str:
    """Name a token for an error message."""
    rows = from_parquet(read_checked(root, plan.files[layout.table_path("plan", block)])).slice(row, 1).to_pylist()[0]
    sentences = from_parquet(read_checked(root, plan.files[layout.table_path("sentences", block)]))
    first = sentences.column("sentence")[0].as_py()
    sentence = sentences.slice(rows["sentence"] - first, 1).to_pylist()[0]
    text = sentence["text"][max(rows["char_start"], 0) : max(rows["char_end"], 0)]
    return f"{text!r}, row {rows['row']}, sentence {sentence['name']!r} of {sentence['source']}"
