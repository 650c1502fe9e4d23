"""Shared fixtures."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the helper modules beside the tests

import hypothesis

# kernels compile on their first call, so a deadline per example would only measure that
hypothesis.settings.register_profile("neuronlake", deadline=None)
hypothesis.settings.load_profile("neuronlake")

# they need vLLM, which has an environment of its own: `make test-vllm`
collect_ignore = [] if find_spec("vllm") else ["vllm"]
