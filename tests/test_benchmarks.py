"""The benchmarks run, at small sizes and without touching their records. Their figures are not judged here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORPORA = Path(os.environ.get("NEURONLAKE_CORPORA", ROOT.parent / "shared" / "corpora"))

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("name", "call", "shown"),
    [
        ("alignment", "run('en_pud*')", "en_pud-ud-test.conllu.gz | 397 | 1,000 | 21,180"),
        (
            "analysis",
            "run(peer_layers=1, sentences=60, apart=False, tools=('lake_moments', 'numpy_moments', 'flox_moments', "
            "'dask_moments', 'lake_probeless', 'lake_asked_again', 'lake_top', 'npy_top'))",
            "| numpy memory map, column | ",
        ),
        ("encodings", "run(0.01, 96, (0,), ('int8a',))", "| int8a | "),
        ("explorer", "run(sentences=60, pages=3)", "| neuron on a tag | "),
        ("extraction", "run(1, 512)", "| neuronlake | "),
        ("faults", "run(60, 80, 20)", "'found by verify': 100"),
        ("growth", "run(blocks=(8,), growth=(2, 4), sentences=60)", "| 8,192 | 50 % | "),
        ("kill", "run(2)", "every finished lake is byte-identical"),
        ("languages", "run(('smollm2',), 12)", "LAPE neurons of each language"),
        ("memory", "run(40, 2)", "| 2x | "),
        ("objects", "run(objects=4, small=8, repeats=1, rounds=1, seeds=1)", "| one column | "),
        ("neighbours", "run(sentences=60, neurons=4, tokens=5, layers=(3,))", "| recall@10 with 50 candidates | "),
        ("peers", "run(12, ('neuronlake, int8a',), 100, block_rows=512)", "| neuronlake, int8a | "),
        (
            "planted",
            "run(tokens=2000, layers=2, neurons=900, lakes=((0, 'int8a'),), draws=4, every=15, small_draws=1, "
            "document_draws=1, sentences=40)",
            "| f_statistic, textbook | ",
        ),
        (
            "probes",
            "run(sentences=40, peer_layers=(0,), peer_iterations=5, blocks=(1, 2))",
            "| svm, all layers | ",
        ),
        ("queries", "run(sentences=60, neurons=4)", "| one column against its layer | "),
        (
            "reproduction",
            "run(60, {'gradient': tuple('--classes-only --layers 29 --per-tag 5 --fdr 1 --tokens 60 --least 3 --random 3 "
            "--random-draws 1 --lesion-k 20 -k 20 --shift 0'.split())})",
            "| tag | words | neurons | own Δ | others |",
        ),
        (
            "replay",
            "run(shapes={'small': (2, 700)}, blocks=2, block_rows=512, sentences=40)",
            "cores that keep up with 20,000 tokens/s",
        ),
        ("scaling", "run(sentences=60, layers=2, repeats=1, pieces=40)", "identical to threads: True"),
        ("statistics", "run(sentences=60, layers=2, repeats=1)", "| all and on request | "),
        (
            "storage",
            "run(layers=2, blocks=2, repeats=1, formats=('neuronlake int8a', 'npy, memory map'), sentences=60, apart=False)",
            "| npy, memory map | ",
        ),
        ("writers", "run(1, (2,), blocks=20, hosts=False)", "2 workers of a cluster: "),
    ],
)
def test_benchmark_runs(tmp_path: Path, name: str, call: str, shown: str) -> None:
    if not (CORPORA / "en_ewt-ud-dev.conllu.gz").is_file():
        pytest.skip(f"no gold treebanks in {CORPORA}: set NEURONLAKE_CORPORA to the folder of en_ewt-ud-dev.conllu.gz")
    code = (
        f"import pathlib, benchmarks.common as common; common.RESULTS = pathlib.Path({str(tmp_path)!r})\n"
        f"import benchmarks.{name} as benchmark; benchmark.{call}"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert shown in result.stdout
    assert (tmp_path / f"{name}.json").is_file()
