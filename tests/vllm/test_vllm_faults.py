"""What would lose or mix up activations in silence is an error; what dies is resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from engines import (
    CONTEXT,
    LAYERS,
    NEURONS,
    SITES,
    capture,
    make_plan,
    open_tiny,
    random_prompts,
    tiny_spec,
)
from tiny import conllu, some_sentences

from neuronlake.extractor import resolve_model
from neuronlake.extractor.model import ModelShape
from neuronlake.extractor.recompute import recompute
from neuronlake.extractor.vllm_engine import VllmEngine, VllmSettings, check_version, find_places
from neuronlake.store import InputError, LakeSpec, open_lake
from neuronlake.store.buffer import BlockBuffer
from neuronlake.store.commits import committed_blocks


class Unchecked(VllmEngine):
    """An engine that accepts settings under which activations are lost."""

    def _check(self, config: Any) -> None:
        pass


def run_block(engine: VllmEngine, *, told: list[Any], run: list[Any], prefix: str = "x", name: str = "x") -> None:
    """Tell the workers of one block, and let vLLM compute another."""
    plan, other = make_plan(told), make_plan(run)
    buffer = BlockBuffer(tiny_spec(SITES), ranks=engine.ranks)
    buffer.reset(plan.rows)
    starts = plan.starts.astype("<i8").tobytes()
    engine._call("neuronlake_begin", buffer.shared_path, buffer.spec.as_dict(), plan.ids.tobytes(), starts, prefix)
    engine._run(other, other.lengths, name, lambda tokens: None)
    engine._call("neuronlake_finish")
    buffer.check_complete()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"enable_prefix_caching": True}, "prefix caching is True, expected False: cached tokens are not computed"),
        ({"enforce_eager": False}, "enforce_eager is False, expected True: compiled models do not run hooks"),
        ({"pipeline_parallel_size": 2}, "pipeline parallel size is 2, expected 1"),
        ({"max_model_len": 65}, "takes sequences of 64 tokens, the plan may have 128: make the lake with --max-tokens 64"),
        ({"max_model_len": -5}, "does not take the model"),
    ],
    ids=["prefix caching", "compiled", "pipeline", "short context", "nonsense"],
)
def test_settings_that_lose_activations_are_refused(tiny_model: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_tiny(tiny_model, **more)


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_version("0.32.0+cpu") == "0.32.0+cpu"
    with pytest.raises(InputError, match=r"needs vLLM: pip install"):
        check_version(None)
    with pytest.raises(InputError, match=r"vLLM 0\.31\.2 is installed, neuronlake was tested with 0\.32\.0"):
        check_version("0.31.2")
    monkeypatch.setenv("NEURONLAKE_VLLM_VERSION", "0.31.2")
    assert check_version("0.31.2") == "0.31.2"


def test_a_site_that_vllm_does_not_show(tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"vLLM does not show site resid\.post"):
        open_tiny(tiny_model, sites=("mlp.post", "resid.post"))


@pytest.mark.parametrize(
    ("module", "causal", "message"),
    [
        ("layers.{layer}.mlp.experts", True, "mixtral is a mixture of experts, which vLLM computes in one piece"),
        ("encoder.layer.{layer}.output.dense", False, "mixtral is not known to be causal: use --backend transformers"),
    ],
)
def test_models_that_vllm_does_not_show(module: str, causal: bool, message: str) -> None:
    shape = ModelShape(
        layers=LAYERS,
        widths={"mlp.post": NEURONS},
        module=module,
        causal=causal,
        rope_boundary=None,
        max_positions=CONTEXT,
        architecture="mixtral",
        dtype="float32",
    )
    with pytest.raises(InputError, match=message):
        find_places(tiny_spec(), shape)


def test_a_device_of_a_number() -> None:
    with pytest.raises(InputError, match="device 'cuda:1': vLLM takes the first ones it sees"):
        VllmSettings(device="cuda:1", dtype="float32", max_tokens=8, batch_tokens=8)


def test_modules_that_are_not_there(engine: VllmEngine) -> None:
    with pytest.raises(InputError, match=r"has no linear layer layers\.0\.mlp\.experts as transformers' model has"):
        engine._call("neuronlake_install", [["mlp.post", 0, "layers.0.mlp.experts", "input"]])


def test_too_long_a_prompt(engine: VllmEngine) -> None:
    with pytest.raises(InputError, match="a sequence has 129 tokens, expected at most 128"):
        capture(engine, make_plan(random_prompts(4, CONTEXT + 1)), tiny_spec(SITES))
    capture(engine, make_plan(random_prompts(4, CONTEXT)), tiny_spec(SITES))  # and it goes on


def test_other_tokens_than_the_plan(engine: VllmEngine) -> None:
    told, run = random_prompts(5, 70, seed=1), random_prompts(5, 70, seed=1)
    run[1][60] += 1 if run[1][60] < 399 else -1
    with pytest.raises(InputError, match=r"other tokens than the plan's in sequence 1 of the block, positions \d+ to"):
        run_block(engine, told=told, run=run)


def test_a_request_of_somebody_else(engine: VllmEngine) -> None:
    prompts = random_prompts(5, 7)
    with pytest.raises(InputError, match=r"vLLM computes a request 'y/0-[0-9a-f]{8}', expected those of block 'x' only"):
        run_block(engine, told=prompts, run=prompts, name="y")


def test_a_sequence_that_was_not_run(engine: VllmEngine) -> None:
    prompts = random_prompts(5, 7, 9)
    with pytest.raises(InputError, match=r"row 12 of the block was captured 0 times \(9 rows are wrong\)"):
        run_block(engine, told=prompts, run=prompts[:2])


def test_a_lake_of_another_width(engine: VllmEngine) -> None:
    with pytest.raises(InputError, match="got 88 neurons, the lake has 80"):
        capture(engine, make_plan(random_prompts(5)), LakeSpec(**{**tiny_spec(SITES).__dict__, "neurons": 80}))


def test_cached_tokens_are_noticed(tiny_model: Path) -> None:
    """Prefix caching that slipped through all settings."""
    from vllm import SamplingParams

    opened = open_tiny(tiny_model, kind=Unchecked, enable_prefix_caching=True, block_size=32)
    opened._sampling = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    try:
        prompts = random_prompts(100, 20) * 2
        with pytest.raises(InputError, match="of which 0 tokens were computed: it took tokens from a cache"):
            capture(opened, make_plan(prompts), tiny_spec())
    finally:
        opened.close()


def test_hooks_that_do_not_run_are_noticed(tiny_model: Path) -> None:
    """A compiled model that slipped through all settings."""
    compiled = {"mode": 2, "backend": "eager"}  # traced once, before there are hooks, but without minutes of compiling
    opened = open_tiny(tiny_model, kind=Unchecked, enforce_eager=False, compilation_config=compiled)
    try:
        with pytest.raises(InputError, match=r"row 0 of the block was captured 0 times \(20 rows are wrong\)"):
            capture(opened, make_plan(random_prompts(20)), tiny_spec())
    finally:
        opened.close()


def start(root: Path, model: Path, corpus: Path) -> "subprocess.Popen[str]":
    command = [
        sys.executable, "-m", "neuronlake.cli.main", "extract", str(root), "--model", str(model), "--conllu", str(corpus),
        "--block-rows", "256", "--batch-tokens", "32", "--backend", "vllm", "--stats", "none",
    ]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)


def after_a_block(process: "subprocess.Popen[str]", root: Path, blocks: int) -> None:
    """Wait until so many blocks are committed and the next one is under way."""
    while process.poll() is None and len(committed_blocks(root) if root.is_dir() else ()) < blocks:
        time.sleep(0.005)
    assert process.poll() is None


def finish(process: "subprocess.Popen[str]") -> None:
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages


def test_killed_and_interrupted_it_resumes_to_the_same_bytes(tmp_path: Path, tiny_model: Path) -> None:
    corpus, root = tmp_path / "tiny.conllu", tmp_path / "a.lake"
    corpus.write_text(conllu(some_sentences(500)), encoding="utf-8")
    process = start(root, tiny_model, corpus)
    after_a_block(process, root, 1)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 1, messages
    assert messages.strip().splitlines()[-1].startswith("neuronlake: vLLM's engine died in the middle of a block"), messages
    assert "Traceback" not in messages
    killed_at = len(committed_blocks(root))

    process = start(root, tiny_model, corpus)
    after_a_block(process, root, killed_at + 1)
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130, messages
    assert "blocks are committed" in messages.strip().splitlines()[-1], messages
    assert "Traceback" not in messages
    interrupted_at = len(committed_blocks(root))

    finish(start(root, tiny_model, corpus))
    lake = open_lake(root)
    assert lake.complete
    assert 0 < killed_at < interrupted_at < lake.plan.blocks
    finish(start(tmp_path / "b.lake", tiny_model, corpus))
    assert contents(root) == contents(tmp_path / "b.lake")

    report = recompute(root, resolve_model(str(tiny_model)), blocks=2, seed=0)
    assert report.ok
    assert any("backend: vllm then" in line for line in report.blocks[0].provenance_differences)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
