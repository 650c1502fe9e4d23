"""Engines are started once: each takes half a minute."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engines import SITES, TINY, open_tiny
from tiny import make_model

from neuronlake.extractor.vllm_engine import VllmEngine

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    # vLLM leaves sockets to the garbage collector, which may find them after the last test
    config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))  # importing vLLM warns of much
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose heads are as wide as vLLM's CPU attention wants them."""
    return make_model(tmp_path_factory.mktemp("model"), **TINY)


@pytest.fixture(scope="session")
def engine(tiny_model: Path) -> Iterator[VllmEngine]:
    """vLLM with steps so small that prompts are computed in pieces."""
    opened = open_tiny(tiny_model, sites=SITES)
    yield opened
    opened.close()
