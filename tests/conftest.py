"""Shared fixtures."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the helper modules beside the tests

import hypothesis
import pytest

# kernels compile on their first call, so a deadline per example would only measure that
hypothesis.settings.register_profile("neuronlake", deadline=None)
hypothesis.settings.load_profile("neuronlake")

# They need vLLM, in its own environment: `make test-vllm`. The folder itself is found as a package without origin.
found = find_spec("vllm")
collect_ignore = ["vllm"] if found is None or found.origin is None else []


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """Endpoint of a running object store."""
    from object_server import object_server

    with object_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an empty bucket that the environment leads to."""
    from object_server import empty_bucket, make_bucket, settings

    for name, value in settings(object_store).items():
        monkeypatch.setenv(name, value)
    name = make_bucket(object_store)
    yield name
    empty_bucket(object_store, name)
