"""Shared fixtures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the helper modules beside the tests

import hypothesis

# kernels compile on their first call, so a deadline per example would only measure that
hypothesis.settings.register_profile("neuronlake", deadline=None)
hypothesis.settings.load_profile("neuronlake")
