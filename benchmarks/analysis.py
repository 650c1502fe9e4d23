"""Questions side by side: statistics per tag, AUROC, probeless, a probe, the highest tokens of a neuron; ours and others'.

EWT dev through SmolLM2 (the default encoding). Everybody computes on the same values: others get them decoded, as float16
.npy files in the page cache, ours reads the lake. They are slow or need much memory: they are given some of the layers, with
which their time grows in proportion; what is computed from that is marked. Neither imports nor compilation count; peaks of
memory are of whole processes, in which rows that share a library follow each other, and count files that are mapped. Answers
are compared before a row counts. `analysis_ours`, `analysis_others` and `peer_scripts/analyse_neurox.py` say how each tool
is used.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import analysis_work
from benchmarks.common import ewt_lake, keep, scratch, small_lake
from benchmarks.peers import SCRIPTS, NotRunError, Tool, _call, _python, _try
from benchmarks.statistics import linked

K = 64
NEURONS = 50
SAMPLE = 20
"""Neurons of each layer that scikit-learn's AUROC is given."""
TOP = 100
Answers = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    task: str
    tool: str
    function: str
    reference: str
    """Function whose answer it is compared with."""


MOMENTS = "count, mean, variance, share active per tag"
AUROC = "AUROC of every neuron and tag"
PROBELESS = "probeless ranking per tag"
PROBE = "probe of one layer"
HIGHEST = f"top {K} tokens of a neuron"
NOUNS = f"top {K} nouns of a neuron"
_ROWS = (
    (MOMENTS, "neuronlake", "lake_moments", "lake_moments"),
    (MOMENTS, "numpy, products with a one-hot matrix", "numpy_moments", "lake_moments"),
    (MOMENTS, "xarray.groupby + flox", "flox_moments", "lake_moments"),
    (MOMENTS, "dask.array, a tag at a time", "dask_moments", "lake_moments"),
    (AUROC, "neuronlake, bounded; the ten best of each tag exact", "lake_auroc", "lake_auroc"),
    (AUROC, "scipy rankdata, one sort for all tags", "scipy_auroc", "lake_auroc"),
    (AUROC, "scikit-learn roc_auc_score, a neuron and tag at a time", "sklearn_auroc", "lake_auroc"),
    (PROBELESS, "neuronlake", "lake_probeless", "lake_probeless"),
    (PROBELESS, "neuronlake, asked again", "lake_asked_again", "lake_probeless"),
    (PROBELESS, "NeuroX", "neurox_probeless", "lake_probeless"),
    (PROBE, "neuronlake, logistic, four epochs", "lake_logistic_epochs", "lake_logistic"),
    (PROBE, "neuronlake, logistic, to the end", "lake_logistic", "lake_logistic"),
    (PROBE, "neuronlake, LDA", "lake_lda", "lake_logistic"),
    (PROBE, "scikit-learn LogisticRegression, our penalty", "sklearn_logistic", "lake_logistic"),
    (PROBE, "scikit-learn LogisticRegression, its defaults", "sklearn_defaults", "lake_logistic"),
    (PROBE, "scikit-learn LDA", "sklearn_lda", "lake_logistic"),
    (PROBE, "NeuroX linear probe, its defaults", "neurox_probe", "lake_logistic"),
    (HIGHEST, "neuronlake, index", "lake_top", "lake_top"),
    (HIGHEST, "neuronlake, column without index", "lake_column", "lake_top"),
    (HIGHEST, "numpy memory map, column", "npy_top", "lake_top"),
    (HIGHEST, "h5py, column", "h5py_top", "lake_top"),
    (NOUNS, "neuronlake, lists per tag", "lake_top_nouns", "lake_top_nouns"),
    (NOUNS, "numpy memory map, column", "npy_top_nouns", "lake_top_nouns"),
)
ROWS = tuple(Row(task=task, tool=tool, function=function, reference=of) for task, tool, function, of in _ROWS)
_NEUROX = Tool(name="NeuroX", script="analyse_neurox.py", environment="neurox")


def run(
    *,
    peer_layers: int = 3,
    tools: Sequence[str] | None = None,
    sentences: int | None = None,
    apart: bool = True,
    make_environments: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Print the table; interrupted, that of the rows measured so far.

    Parameters
    ----------
    peer_layers
        Layers that others are given, evenly spaced; the probe is of the middle one.
    tools
        Functions of the rows, see `ROWS`; all by default.
    sentences
        Only so many sentences of EWT dev, in a lake that is removed afterwards.
    apart
        Rows that share a library in a process of their own, or all in this one, but for NeuroX.
    make_environments
        Make NeuroX' one where it is missing, or leave NeuroX out of the run.
    """
    chosen = [row for row in ROWS if tools is None or row.function in tools]
    with scratch() as name:
        folder = Path(name)
        root = ewt_lake("int8a") if sentences is None else small_lake(folder, sentences)
        job = _job(linked(root, folder / "copy"), folder, peer_layers, seed) | {"make_environments": make_environments}
        groups: dict[str, list[str]] = {}
        for row in chosen:
            groups.setdefault(_group(row), []).append(row.function)
        answers: Answers = {}
        try:
            for group in random.Random(seed).sample(sorted(groups), len(groups)):  # the machine's speed drifts
                start, left = time.perf_counter(), groups[group]
                while left:  # after one that fails, the others are tried again
                    answers |= _answers({**job, "names": left}, folder, apart)
                    left = [name for name in left if name not in answers]
                seconds = time.perf_counter() - start
                print(f"{group}: {', '.join(groups[group])}, {seconds:.1f} s", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(table(_summary(chosen, answers, job)))
            raise
        result = _summary(chosen, answers, job)
    print(table(result))
    keep("analysis", result)
    return result


def _summary(chosen: list[Row], answers: Answers, job: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: job[name] for name in ("tokens", "labelled", "all_layers", "layers", "width", "train")},
        "rows": [_result(row, answers, job) for row in chosen],
    }


def _job(root: Path, folder: Path, peer_layers: int, seed: int) -> dict[str, Any]:
    """Write what others read: layers as float16, of all tokens and of those with a tag; tags; which documents are tested."""
    from neuronlake.analysis import complete_tag_lists, labelled_matrix, token_labels
    from neuronlake.store import complete_index, open_lake
    from neuronlake.store.tables import PADDING, SPECIAL

    lake = open_lake(root)
    complete_index(lake)
    complete_tag_lists(lake, "upos")
    labels = token_labels(lake, "upos")
    _, y, documents = labelled_matrix(lake, "upos", layer=lake.layers[0])
    tags = list(labels.tags)
    codes = labels.codes[labels.codes >= 0].astype(np.int64)
    assert [tags[code] for code in codes[:100]] == y[:100].tolist()
    train = np.unique(documents, return_inverse=True)[1] % 5 > 0
    tokens = np.flatnonzero(lake.tokens().column("flags").to_numpy() & (PADDING | SPECIAL) == 0)
    upos = np.array(lake.tokens(labels=["upos"]).column("upos").to_pylist(), dtype=object)[tokens]
    rows = _rows(lake)
    labelled = np.flatnonzero(labels.codes >= 0)
    layers = [lake.layers[at] for at in np.linspace(0, len(lake.layers) - 1, peer_layers + 2).astype(int)[1:-1]]
    for layer in layers:
        for what, wanted in (("labelled", labelled), ("tokens", tokens)):
            values = lake.read(layer=layer, rows=rows[wanted])
            np.save(folder / f"{what}-{layer}.npy", values.astype(np.float16))
    np.savez(folder / "labels.npz", codes=codes, train=train, nouns=upos == "NOUN")
    rng = random.Random(seed)
    return {
        "lake": str(root),
        "folder": str(folder),
        "tags": tags,
        "all_layers": len(lake.layers),
        "layers": layers,
        "probe_layer": layers[len(layers) // 2],
        "width": lake.neurons,
        "tokens": len(tokens),
        "labelled": len(codes),
        "train": int(train.sum()),
        "sample": sorted(rng.sample(range(lake.neurons), SAMPLE)),
        "neurons": [(rng.choice(layers), rng.randrange(lake.neurons)) for _ in range(NEURONS)],
        "k": K,
    }


def _rows(lake: Any) -> Any:
    """Return the row number of every line of the token table."""
    return np.concatenate([np.arange(lake.block_rows) + block * lake.block_rows for block in lake.blocks])


def _answers(job: dict[str, Any], folder: Path, apart: bool) -> Answers:
    """Run some functions in a process: what each found, up to the first that failed, and why that one did."""
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    environment = dict(os.environ)
    command = [sys.executable, "-m", "benchmarks.analysis_work", str(path)]
    if job["names"][0].startswith("neurox_"):
        python = _try(_python, _NEUROX, job["make_environments"])
        if isinstance(python, NotRunError):
            return {name: {"not_run": str(python)} for name in job["names"]}
        command = [python, str(SCRIPTS / _NEUROX.script), str(path)]
        environment.pop("PYTHONPATH", None)
    here = not apart and command[0] == sys.executable
    failed = analysis_work.main(job) if here else _try(_call, command, environment)
    found: Answers = {}
    for name in job["names"]:
        kept = folder / f"found-{name}.npz"
        if not kept.is_file():
            found[name] = {"not_run": str(failed)}
            break  # those that would have followed
        with np.load(kept) as file:
            found[name] = {key: file[key] for key in file.files}
    return found


def _group(row: Row) -> str:
    """Rows that share a process: what they compile or import is the same."""
    library = row.function.split("_")[0]
    return f"{library}, {row.task}" if library == "lake" and row.task == PROBE else library


# ---- agreement ------------------------------------------------------------------------------------------------------------


def _same_moments(theirs: dict[str, Any], ours: dict[str, Any], _: dict[str, Any]) -> tuple[str, bool]:
    spread = np.sqrt(np.maximum(ours["variance"], 1e-30))
    mean = float(np.max(np.abs(theirs["mean"] - ours["mean"]) / spread))
    variance = float(np.max(np.abs(theirs["variance"] / np.maximum(ours["variance"], 1e-30) - 1)))
    active = float(np.max(np.abs(theirs["active"] - ours["active"])))
    text = f"means within {mean:.0e} of a deviation, variances {variance:.0e}, shares {active:.0e}"
    return text, max(mean, variance, active) < 1e-6


def _same_auroc(theirs: dict[str, Any], ours: dict[str, Any], job: dict[str, Any]) -> tuple[str, bool]:
    true, bound, value = theirs["auroc"], ours["bound"], ours["auroc"]
    if true.shape[2] < value.shape[2]:
        bound, value = bound[:, :, job["sample"]], value[:, :, job["sample"]]
    bound, value = bound[:, : true.shape[1]], value[:, : true.shape[1]]
    apart = np.abs(true - value)
    inside = bool(np.all(apart <= bound + 1e-9))
    exact = bound == 0
    text = f"within our bounds, {float(apart.max()):.4f} at most" if inside else "outside our bounds"
    if exact.any():
        text += f"; {float(apart[exact].max()):.0e} of the {int(exact.sum()):,} that are exact"
    return text, inside


def _same_ranking(theirs: dict[str, Any], ours: dict[str, Any], job: dict[str, Any]) -> tuple[str, bool]:
    from scipy.stats import spearmanr

    correlations, overlaps = [], []
    for tag in range(len(job["tags"])):
        for layer in range(len(job["layers"])):
            pair = theirs["score"][tag, layer], ours["score"][tag, layer]
            correlations.append(float(spearmanr(*pair).statistic))
            best = [set(np.argsort(-scores, kind="stable")[:TOP].tolist()) for scores in pair]
            overlaps.append(len(best[0] & best[1]) / min(TOP, len(pair[0])))
    text = f"rank correlation {min(correlations):.6f} at least, top {TOP} {min(overlaps):.0%} at least"
    return text, min(correlations) > 0.999


def _same_probe(theirs: dict[str, Any], ours: dict[str, Any], job: dict[str, Any]) -> tuple[str, bool]:
    with np.load(Path(job["folder"]) / "labels.npz") as file:
        truth = file["codes"][~file["train"]]
    accuracy = float(np.mean(theirs["predicted"] == truth))
    same = float(np.mean(theirs["predicted"] == ours["predicted"]))
    text = f"accuracy {accuracy:.4f}; {same:.1%} of the predictions are those of our logistic probe"
    return text + (f"; {int(theirs['iterations'])} iterations" if theirs.get("iterations", 0) else ""), True


def _same_values(theirs: dict[str, Any], ours: dict[str, Any], _: dict[str, Any]) -> tuple[str, bool]:
    apart = float(np.abs(theirs["values"] - ours["values"]).max())
    return f"largest difference {apart:g}", apart == 0


_AGREEMENT: dict[str, Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], tuple[str, bool]]] = {
    MOMENTS: _same_moments,
    AUROC: _same_auroc,
    PROBELESS: _same_ranking,
    PROBE: _same_probe,
    HIGHEST: _same_values,
    NOUNS: _same_values,
}
_OF_LAYERS = (MOMENTS, AUROC, PROBELESS)


def _result(row: Row, answers: Answers, job: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a row."""
    source = SCRIPTS / _NEUROX.script if row.function.startswith("neurox_") else None
    settings = (analysis_work.function(row.function).__doc__ or "") if source is None else f"see {source.name}"
    about = {"task": row.task, "tool": row.tool, "settings": " ".join(settings.split())}
    missing = {"not_run": "interrupted, or not chosen"}
    found, ours = answers.get(row.function, missing), answers.get(row.reference, missing)
    if "not_run" in found:
        return {**about, "not_run": found["not_run"]}
    figures: dict[str, Any] = {**about, "seconds": float(found["seconds"]), "peak_bytes": int(found["peak"])}
    if row.task in _OF_LAYERS:
        figures["layers"] = float(found["layers"])
        figures["all_layers_seconds"] = figures["seconds"] * job["all_layers"] / figures["layers"]
    if "not_run" not in ours and (row.function != row.reference or row.task == PROBE):
        figures["agreement"], agrees = _AGREEMENT[row.task](found, ours, job)
        if not agrees:
            return {**about, "not_run": f"its answer differs: {figures['agreement']}"}
    return figures


def table(result: dict[str, Any]) -> str:
    """Return the Markdown table."""
    lines = [
        f"{result['tokens']:,} tokens, {result['labelled']:,} with a tag; {result['all_layers']} layers × "
        f"{result['width']:,} neurons, of which others get {len(result['layers'])} layers",
        "",
        "| task | tool | seconds | layers | all layers, s | peak MB | agreement with ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "not_run" in row:
            lines.append(f"| {row['task']} | {row['tool']} | not run: {row['not_run']} | | | | |")
            continue
        short = row["seconds"] < 1
        seconds = f"{row['seconds'] * 1e3:.2f} ms" if short else f"{row['seconds']:.2f}"
        layers = whole = ""
        if "layers" in row:
            layers = f"{row['layers']:.3g}"
            computed = " (computed)" if row["layers"] < result["all_layers"] else ""
            whole = f"{row['all_layers_seconds']:.1f}{computed}"
        lines.append(
            f"| {row['task']} | {row['tool']} | {seconds} | {layers} | {whole} | {row['peak_bytes'] / 1e6:.0f} | "
            f"{row.get('agreement', '')} |"
        )
    return "\n".join(lines)
