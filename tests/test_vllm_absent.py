"""Without vLLM, its backend says what to install, before anything is written. What needs vLLM is in tests/vllm."""

from pathlib import Path

import pytest
from tiny import conllu, make_model, some_sentences

from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
from neuronlake.extractor.vllm_engine import installed_version
from neuronlake.store import InputError


@pytest.mark.skipif(installed_version() is not None, reason="vLLM is installed")
def test_without_vllm(tmp_path: Path) -> None:
    source = resolve_model(str(make_model(tmp_path / "model")))
    (tmp_path / "tiny.conllu").write_text(conllu(some_sentences(3)), encoding="utf-8")
    with pytest.raises(InputError, match=r"needs vLLM: pip install vllm==0\.32\.0"):
        extract(
            tmp_path / "a.lake", ConlluCorpus(paths=(tmp_path / "tiny.conllu",)), source, ExtractSettings(backend="vllm")
        )
    assert not (tmp_path / "a.lake" / "zarr.json").exists()


def test_ranks_need_vllm() -> None:
    with pytest.raises(InputError, match="tensor_parallel must be 1, or more with backend vllm, got 2"):
        ExtractSettings(tensor_parallel=2)
