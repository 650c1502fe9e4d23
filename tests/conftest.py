"""Shared fixtures."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the helper modules beside the tests

import hypothesis

# kernels compile on their first call, so a deadline per example would only measure that
hypothesis.settings.register_profile("neuronlake", deadline=None)
hypothesis.settings.load_profile("neuronlake")

# They need vLLM, in its own environment: `make test-vllm`. The folder itself is found as a package without origin.
found = find_spec("vllm")
collect_ignore = ["vllm"] if found is None or found.origin is None else []
