"""Values captured in vLLM are those of the model, however vLLM cuts and mixes the prompts."""

from pathlib import Path

import numpy as np
import pytest
from engines import (
    CONTEXT,
    SITES,
    STEP_TOKENS,
    by_hand,
    capture,
    make_plan,
    open_tiny,
    random_prompts,
    read,
    tiny_spec,
    worst,
)
from tiny import conllu, some_sentences

from neuronlake.cli.demo import model_file
from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
from neuronlake.extractor.capture import BlockPlan, TransformersEngine
from neuronlake.extractor.model import Model, read_shape
from neuronlake.extractor.vllm_engine import VllmEngine, VllmSettings, find_places
from neuronlake.store import open_lake
from neuronlake.store.buffer import BlockBuffer

NOISE = 1e-5  # of two float32 forward passes, relative to the layer's largest value


def test_mixed_lengths_in_pieces_and_duplicates(engine: VllmEngine, tiny_model: Path) -> None:
    prompts = random_prompts(5, 1, CONTEXT, 17, 60, 100, 1, 33)
    prompts += [prompts[0], prompts[2], prompts[0]]
    assert max(map(len, prompts)) > STEP_TOKENS  # the scheduler must cut
    got = capture(engine, make_plan(prompts), tiny_spec(SITES))
    assert worst(got, by_hand(tiny_model, prompts)) < NOISE


def test_a_batch_is_one_prompt_at_a_time(engine: VllmEngine) -> None:
    prompts = random_prompts(9, 40, 1, 25, 64, seed=1)
    together = capture(engine, make_plan(prompts), tiny_spec(SITES))
    alone = [capture(engine, make_plan([prompt]), tiny_spec(SITES)) for prompt in prompts]
    assert worst(together, {key: np.concatenate([part[key] for part in alone]) for key in together}) < NOISE


def test_the_same_block_gives_the_same_bits(engine: VllmEngine) -> None:
    plan = make_plan(random_prompts(*range(1, 30), seed=2))
    first = capture(engine, plan, tiny_spec(SITES))
    capture(engine, make_plan(random_prompts(70, 3, seed=3)), tiny_spec(SITES))
    again = capture(engine, plan, tiny_spec(SITES))
    assert all(np.array_equal(first[key], again[key]) for key in first)


def test_two_ranks_write_their_slices(tiny_model: Path) -> None:
    prompts = random_prompts(5, 1, CONTEXT, 17, 60, seed=4)
    opened = open_tiny(tiny_model, sites=SITES, batch_tokens=160, tensor_parallel=2)
    try:
        assert opened.provenance()["tensor_parallel"] == 2
        got = capture(opened, make_plan(prompts), tiny_spec(SITES))
    finally:
        opened.close()
    assert worst(got, by_hand(tiny_model, prompts)) < NOISE


@pytest.mark.model
def test_smollm2_equals_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = resolve_model(model_file())
    path = tmp_path / "some.conllu"
    path.write_text(conllu(some_sentences(40)), encoding="utf-8")
    root = tmp_path / "a.lake"
    settings = ExtractSettings(encoding="float32", block_rows=1024)
    extract(root, ConlluCorpus(paths=(path,)), source, settings)
    lake = open_lake(root)
    plan = BlockPlan.from_table(lake.read_table("plan", 0))
    reference = BlockBuffer(lake.spec)
    reference.reset(plan.rows)
    model = Model.load(source, device="cpu", dtype="float32")
    TransformersEngine(model, batch_tokens=512).capture_block(plan, reference, lambda tokens: None)
    opened = VllmEngine(
        source.folder,
        find_places(lake.spec, read_shape(source)),
        VllmSettings(device="cpu", dtype="float32", max_tokens=1024, batch_tokens=512),
    )
    try:
        got = capture(opened, plan, lake.spec)
    finally:
        opened.close()
    expected = read(reference, plan.rows)
    assert len(got) == 30
    difference = worst(got, expected)
    with capsys.disabled():
        print(
            f"\nSmolLM2, {plan.rows} tokens: worst difference from transformers {difference:.1e} of a layer's largest value"
        )
    assert difference < 1e-4
