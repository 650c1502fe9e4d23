"""Light paths stay light, and the public surface is what it says."""

import importlib
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "spacy", "vllm")


@pytest.mark.parametrize("module", ["neuronlake.store", "neuronlake.analysis", "neuronlake.cli.main"])
def test_no_model_library_is_imported(module: str) -> None:
    code = (
        f"import importlib, sys; package = importlib.import_module({module!r})\n"
        "for name in getattr(package, '__all__', ()): getattr(package, name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_store_knows_neither_extractor_nor_analysis() -> None:
    code = (
        "import sys, neuronlake.store, neuronlake.store.verify, neuronlake.store.views, neuronlake.store.tokens\n"
        "print([name for name in sys.modules if name.startswith(('neuronlake.extractor', 'neuronlake.analysis'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "package", ["neuronlake.store", "neuronlake.extractor", "neuronlake.extractor.corpora", "neuronlake.analysis"]
)
def test_public_names_exist_and_are_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert name.isupper() or getattr(module, name).__doc__
