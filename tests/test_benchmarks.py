"""The benchmarks run, at small sizes and without touching their records. Their figures are not judged here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import ForkServer

ROOT = Path(__file__).parent.parent
CORPORA = Path(os.environ.get("NEURONLAKE_CORPORA", ROOT.parent / "shared" / "corpora"))

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

SHOWN = {
    "alignment": "en_pud-ud-test.conllu.gz | 397 | 1,000 | 21,180",
    "analysis": "| numpy memory map, column | ",
    "encodings": "| int8a | ",
    "explorer": "| neuron on a tag | ",
    "extraction": "| neuronlake | ",
    "faults": "'found by verify': 48",
    "growth": "| 8,192 | 50 % | ",
    "kill": "every finished lake is byte-identical",
    "languages": "LAPE neurons of each language",
    "memory": "| 2x | ",
    "neighbours": "| recall@10 with 50 candidates | ",
    "objects": "| one column | ",
    "peers": "| neuronlake, int8a | ",
    "planted": "| f_statistic, textbook | ",
    "probes": "| svm, all layers | ",
    "queries": "| one column against its layer | ",
    "replay": "cores that keep up with 20,000 tokens/s",
    "reproduction": "| tag | words | neurons | own Δ | others |",
    "scaling": "identical to threads: True",
    "statistics": "| all and on request | ",
    "storage": "| npy, memory map | ",
    "writers": "2 workers of a cluster: ",
}

# Imports and compiled kernels are most of such a small run: each is forked from a process that has both.
_PREPARATION = """
import os, sys, traceback
sys.path.insert(0, os.getcwd())
import dask.array, flox, pandas, scipy.stats, sklearn.linear_model, tensorstore, xarray, zarr
import torch, transformers
import neuronlake.analysis, neuronlake.extractor.extract, neuronlake.extractor.model
import benchmarks.__main__, writing_run
from transformers import AutoModel, LlamaForCausalLM, PreTrainedTokenizerFast
from neuronlake.store import ENCODINGS
for encoding in ENCODINGS:
    writing_run.Work(encoding=encoding).prepare_values().warm_up()

def work(request):
    for descriptor, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(os.path.join(request["folder"], name), os.O_WRONLY | os.O_CREAT), descriptor)
    try:
        status = benchmarks.__main__.main([request["name"], "--size", "tiny", "--results", request["folder"]])
        sys.stdout.flush()
        assert status == 0, status
    except BaseException:
        traceback.print_exc()
        raise
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    if not (CORPORA / "en_ewt-ud-dev.conllu.gz").is_file():
        pytest.skip(f"no gold treebanks in {CORPORA}: set NEURONLAKE_CORPORA to the folder of en_ewt-ud-dev.conllu.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("NEURONLAKE_SMALL_LAKES", str(tmp_path_factory.mktemp("lakes")))
        with ForkServer(_PREPARATION) as server:
            yield server


@pytest.mark.parametrize("name", SHOWN)
def test_benchmark_runs(tmp_path: Path, name: str, server: ForkServer) -> None:
    server.start(name=name, folder=str(tmp_path))
    status = server.wait()
    assert status == 0, (tmp_path / "stderr").read_text()
    assert SHOWN[name] in (tmp_path / "stdout").read_text()
    assert (tmp_path / f"{name}.json").is_file()


def test_every_small_form_is_tried() -> None:
    from benchmarks.small import SMALL

    assert set(SMALL) == set(SHOWN)
