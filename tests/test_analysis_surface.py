"""What `neuronlake.analysis` offers, and what importing it must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import neuronlake.analysis as analysis

HEAVY = ("torch", "transformers", "spacy", "vllm")
FOLDER = Path(analysis.__file__).parent


def loaded_after(code):
    program = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_all_is_sorted_complete_and_importable():
    assert len(set(analysis.__all__)) == len(analysis.__all__)
    assert dir(analysis) == sorted(analysis.__all__)
    for name in analysis.__all__:
        public = getattr(analysis, name)
        assert public.__doc__ or not callable(public)
    # The names a type checker sees are those that exist at run time.
    tree = ast.parse((FOLDER / "__init__.py").read_text())
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("neuronlake")
        for alias in node.names
    }
    assert typed == set(analysis.__all__)


def test_no_name_is_hidden_by_a_module():
    modules = {path.stem for path in FOLDER.glob("*.py")}
    assert not modules & set(analysis.__all__)


def test_unknown_names_are_attribute_errors():
    assert not hasattr(analysis, "nonsense")


def test_importing_everything_loads_no_model_library():
    modules = "\n".join(f"import neuronlake.analysis.{path.stem}" for path in FOLDER.glob("*.py") if path.stem[0] != "_")
    assert not loaded_after(modules) & {*HEAVY, "sklearn", "matplotlib"}


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_after("import neuronlake.analysis")
    assert not loaded & {*HEAVY, "sklearn", "matplotlib", "numba", "xarray", "dask", "pyarrow", "scipy"}
