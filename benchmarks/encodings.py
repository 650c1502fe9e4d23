"""What every encoding costs and loses on real activations: bytes per value, values, ranks, top tokens, rankings, probes.

A sample of EWT train's documents through SmolLM2, all layers, is kept in float32 and written again in each encoding. Values,
ranks per neuron and top tokens are compared with float32; per-tag rankings and probes with those of float16, whose AUROC is
exact (float32 is ranked by its upper 16 bits).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import SHARE, ewt_train_lake, keep, reencode, scratch

NEURON_STEP = 12
"""Ranks are computed for every twelfth neuron, in all layers: sorting all of them would take an hour."""
PROBED_LAYERS = (0, 7, 14, 21, 29)
_COLUMNS = {
    "bytes_per_value": "{:.3f}",
    "relative_l2": "{:.2e}",
    "relative_l2_worst_layer": "{:.2e}",
    "rho_1st_percentile": "{:.5f}",
    "rho_min": "{:.5f}",
    "rho_median": "{:.6f}",
    "zeroed": "{:.2%}",
    "signs_kept": "{:.4%}",
    "top_100_recall": "{:.3f}",
    "kendall_tau": "{:.4f}",
    "kendall_tau_worst": "{:.4f}",
    "overlap_50": "{:.3f}",
    "overlap_50_worst": "{:.2f}",
    "probe_accuracy": "{:.4f}",
    "probe_change": "{:+.4f}",
    "probe_change_worst": "{:+.4f}",
}
_TOP = 100
_RANKING = 50


def run(
    share: float = SHARE, step: int = NEURON_STEP, layers: tuple[int, ...] = PROBED_LAYERS, names: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Print one line per encoding, of all or of `names`; float16 comes first, as the reference."""
    from neuronlake.store import ENCODINGS, open_lake

    source = open_lake(ewt_train_lake(share))
    truth = _Truth(source, step)
    result: dict[str, Any] = {}
    reference: dict[str, Any] | None = None
    print(f"| encoding | {' | '.join(_COLUMNS)} |\n|{'---|' * (len(_COLUMNS) + 1)}", flush=True)
    for name in ("float16", *(names or (name for name in ENCODINGS if name not in ("float16", "float32")))):
        with scratch() as folder:
            lake = open_lake(reencode(source, Path(folder) / "a.lake", name))
            row = {"bytes_per_value": _bytes_per_value(lake), **_fidelity(truth, lake)}
            found = _rankings(lake)
            probes = _probes(lake, layers)
        reference = reference or {"rankings": found, "probes": probes}
        row |= _compare_rankings(reference["rankings"], found)
        row["probe_accuracy"] = float(np.mean(list(probes.values())))
        row["probe_change"] = row["probe_accuracy"] - float(np.mean(list(reference["probes"].values())))
        row["probe_change_worst"] = min(value - reference["probes"][key] for key, value in probes.items())
        result[name] = {**row, "probes": probes}
        print(f"| {name} | {' | '.join(form.format(row[key]) for key, form in _COLUMNS.items())} |", flush=True)
    keep("encodings", result)
    return result


def _bytes_per_value(lake: Any) -> float:
    stored = sum(record.bytes for commit in lake.commits for record in commit.files)
    return float(stored / (sum(commit.rows for commit in lake.commits) * len(lake.layers) * lake.neurons))


class _Truth:
    """The float32 values of some neurons of every layer, with their ranks and top tokens, made once."""

    def __init__(self, lake: Any, step: int):
        self.lake = lake
        self.rows = np.concatenate([np.arange(commit.rows) + commit.block * lake.block_rows for commit in lake.commits])
        self.neurons = {layer: np.arange(layer % step, lake.neurons, step) for layer in lake.layers}
        self.values = self.of(lake)
        self.ranks = dict(zip(lake.layers, _threaded(_ranks, self.values.values()), strict=True))
        self.top = dict(zip(lake.layers, _threaded(_top, self.values.values()), strict=True))

    def of(self, lake: Any) -> dict[int, NDArray[np.float32]]:
        """The same neurons of a lake: layer → float32 (neurons, tokens)."""
        return {
            layer: np.ascontiguousarray(lake.read(layer=layer, rows=self.rows, neurons=neurons).T)
            for layer, neurons in self.neurons.items()
        }


def _fidelity(truth: _Truth, lake: Any) -> dict[str, float]:
    def one(layer: int) -> tuple[float, float, float, NDArray[np.float64], float]:
        x, y = truth.values[layer], stored[layer]
        ranks, top = _ranks(y).astype(np.float64), _top(y)
        true_ranks = truth.ranks[layer].astype(np.float64)
        rho = (true_ranks * ranks).sum(1) / np.sqrt((true_ranks**2).sum(1) * (ranks**2).sum(1))
        recall = np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(truth.top[layer], top, strict=True)])
        return (
            float(np.linalg.norm(y - x) / np.linalg.norm(x)),
            float(((y == 0) & (x != 0)).mean()),
            float((np.sign(x) == np.sign(y)).mean()),
            rho,
            float(recall),
        )

    stored = truth.of(lake)
    errors, zeroed, signs, rhos, recalls = zip(*_threaded(one, stored), strict=True)
    rho = np.concatenate(rhos)
    return {
        "relative_l2": float(np.mean(errors)),
        "relative_l2_worst_layer": max(errors),
        "rho_1st_percentile": float(np.quantile(rho, 0.01)),
        "rho_min": float(rho.min()),
        "rho_median": float(np.median(rho)),
        "zeroed": float(np.mean(zeroed)),
        "signs_kept": float(np.mean(signs)),
        "top_100_recall": float(np.mean(recalls)),
    }


def _threaded(work: Any, items: Any) -> list[Any]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy's sorts release the GIL
        return list(pool.map(work, items))


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Midranks about their mean, neuron by neuron: (neurons, tokens)."""
    ranks = np.empty(values.shape, dtype=np.float32)
    for neuron, row in enumerate(values):
        ordered, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        del ordered
        ranks[neuron] = (np.cumsum(counts) - (counts + 1) / 2)[inverse] - (len(row) - 1) / 2
    return ranks


def _top(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows of the largest values, ties broken by the lower row: (neurons, 100)."""
    count = min(_TOP, values.shape[1] // 4)
    top = np.empty((len(values), count), dtype=np.int64)
    for neuron, row in enumerate(values):
        least = np.partition(row, -count)[-count]
        candidates = np.flatnonzero(row >= least)
        top[neuron] = candidates[np.argsort(-row[candidates], kind="stable")[:count]]
    return top


def _rankings(lake: Any) -> NDArray[np.float64]:
    from neuronlake.analysis import compute_statistics

    area = compute_statistics(lake, "upos")["auroc"]
    return np.asarray(area.transpose("tag", "layer", "neuron").to_numpy().reshape(len(area.tag), -1))


def _compare_rankings(reference: NDArray[np.float64], found: NDArray[np.float64]) -> dict[str, float]:
    from scipy.stats import kendalltau

    taus, overlaps = [], []
    for truth, other in zip(reference, found, strict=True):
        taus.append(float(kendalltau(truth, other).statistic))
        best = [set(np.argsort(-np.abs(area - 0.5), kind="stable")[:_RANKING].tolist()) for area in (truth, other)]
        overlaps.append(len(best[0] & best[1]) / _RANKING)
    return {
        "kendall_tau": float(np.mean(taus)),
        "kendall_tau_worst": min(taus),
        "overlap_50": float(np.mean(overlaps)),
        "overlap_50_worst": min(overlaps),
    }


def _probes(lake: Any, layers: tuple[int, ...]) -> dict[str, float]:
    from neuronlake.analysis import probe

    return {
        f"L{layer} {split}": float(probe(lake, "upos", layer=layer, classifier="lda", split=split).accuracy)
        for layer in layers
        for split in ("document", "sentence")
    }
