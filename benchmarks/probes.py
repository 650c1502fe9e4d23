"""Probes: sweeps over all layers against scikit-learn, four classes from 1.1 % of the neurons, memory."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, ewt_lake, keep, peak_memory_bytes, scratch, small_lake, whole_train_lake
from benchmarks.statistics import linked
from benchmarks.tall import tall_lake

FOUR = ("ADJ", "ADV", "NOUN", "VERB")
_MEMORY = """
import sys
from neuronlake.analysis import probe
from neuronlake.store import open_lake
probe(open_lake(sys.argv[1]), layer=0, classifier=sys.argv[2], keep=False, random_draws=3)
"""
_CONTROLS = ("control_task", "random_neurons", "shuffled_labels")


PARTS = ("sweeps", "peers", "readings", "four_classes", "memory")


def run(
    *,
    sentences: int | None = None,
    peer_layers: tuple[int, ...] = (0, 15, 29),
    peer_iterations: int = 1000,
    blocks: tuple[int, int] = (4, 40),
    parts: tuple[str, ...] = PARTS,
) -> dict[str, Any]:
    """Print the sweeps, the comparison with scikit-learn, the four classes and the memory.

    Parameters
    ----------
    sentences
        Only so many sentences of EWT dev, in a lake that is removed afterwards, instead of EWT train and dev.
    peer_layers
        Layers on which scikit-learn is fitted; with `sentences`, the only ones that are swept.
    peer_iterations
        Most iterations of its solvers.
    blocks
        Sizes of the lakes whose memory is compared, in blocks of 8,192 rows.
    parts
        Which to run; the record keeps the others as they were.
    """
    from neuronlake.store import open_lake

    record = RESULTS / "probes.json"
    result: dict[str, Any] = json.loads(record.read_text())["result"] if parts != PARTS and record.exists() else {}
    with scratch() as folder:
        train = whole_train_lake() if sentences is None else small_lake(Path(folder), sentences)
        dev = ewt_lake("int8a") if sentences is None else train
        # nothing kept yet, and nothing left behind
        lake, other = (
            open_lake(linked(root, Path(folder) / name, without=("covariances",)))
            for root, name in ((train, "train"), (dev, "dev"))
        )
        layers = None if sentences is None else list(peer_layers)
        result["tokens"] = lake.plan.counts["tokens"]
        work = {
            "sweeps": lambda: _sweeps(lake, layers),
            "peers": lambda: _peers(lake, peer_layers, peer_iterations),
            "readings": lambda: _readings(other, (0, 8, 15, 29) if layers is None else layers),
            "four_classes": lambda: _four_classes(lake, other if sentences is None else None, layers),
            "memory": lambda: _memory(other, Path(folder), blocks),
        }
        for part in parts:
            result[part] = work[part]()
            keep("probes", result)
    return result


def _head(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def _sweeps(lake: Any, layers: list[int] | None) -> dict[str, Any]:
    """Every classifier on every layer: seconds with and without controls, accuracies."""
    from neuronlake.analysis import probe_sweep

    found: dict[str, Any] = {}
    bare = {"control_draws": 0, "random_draws": 0}
    runs = {
        "lda, nothing kept": {"classifier": "lda", **bare},
        "lda, covariances kept": {"classifier": "lda", "seed": 1, **bare},
        "ridge, covariances kept": {"classifier": "ridge", **bare},
        "lda with controls": {"classifier": "lda"},
        "logistic": {"classifier": "logistic", "max_passes": 0, **bare},
        "logistic with controls": {"classifier": "logistic", "max_passes": 0},
        "svm": {"classifier": "svm", "max_passes": 0, **bare},
    }
    _head("sweep of all layers", "s", "first / middle / last layer", "best", "most frequent tag", "majority")
    for name, settings in runs.items():
        start = time.perf_counter()
        sweep = probe_sweep(lake, layers=layers, **settings)
        seconds = time.perf_counter() - start
        accuracy = [each.accuracy for each in sweep]
        found[name] = {
            "seconds": seconds,
            "accuracy": accuracy,
            "macro_f1": [each.macro_f1 for each in sweep],
            "selectivity": [each.selectivity for each in sweep],
            "controls": [
                {what: each.controls[what]["accuracy"] for what in _CONTROLS if what in each.controls} for each in sweep
            ],
            "baselines": sweep[0].baselines,
            "counts": sweep[0].counts,
        }
        three = " / ".join(f"{accuracy[at]:.3f}" for at in (0, len(accuracy) // 2, -1))
        base = sweep[0].baselines
        print(
            f"| {name} | {seconds:.1f} | {three} | {max(accuracy):.3f} | "
            f"{base['most_frequent_tag_per_word']['accuracy']:.3f} | {base['majority']['accuracy']:.3f} |",
            flush=True,
        )
    return found


def _peers(lake: Any, layers: tuple[int, ...], iterations: int) -> dict[str, Any]:
    """scikit-learn to convergence on the same standardised features, same documents; and ours on that layer alone."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    from neuronlake.analysis import probe
    from neuronlake.analysis.probing.features import whole_layers
    from neuronlake.analysis.probing.matrix import LakeMatrix, stream
    from neuronlake.analysis.probing.settings import ProbeSettings
    from neuronlake.analysis.probing.survey import survey
    from neuronlake.analysis.probing.task import prepare

    task = prepare(lake, ProbeSettings(control_draws=0).task, None)
    y, truth = task.labellings[0], task.truths[0]
    found: dict[str, Any] = {}
    print("\n| layer | who | accuracy | s | iterations or passes |\n|---|---|---|---|---|")
    for layer in layers:
        features = whole_layers(lake, [layer])
        train, test = (LakeMatrix(lake, features, rows) for rows in (task.train_rows, task.test_rows))
        standard = survey(train, seed=0).standard
        x, x_test = np.empty(train.shape, dtype=np.float32), np.empty(test.shape, dtype=np.float32)
        for matrix, into in ((train, x), (test, x_test)):
            for rows, values in stream(matrix.scaled(standard.centre, standard.factor)):
                into[rows] = values
        peers = {
            "LogisticRegression, our penalty": LogisticRegression(C=1 / (1e-3 * len(x)), max_iter=iterations),
        }
        if layer == layers[len(layers) // 2]:  # minutes each
            # hardly penalised at this size: not converged after 200 iterations
            peers["LogisticRegression, C=1"] = LogisticRegression(C=1.0, max_iter=min(iterations, 200))
            peers["LinearSVC, our penalty"] = LinearSVC(C=64 / len(x), tol=0.1, max_iter=iterations)
        rows: dict[str, Any] = {}
        for name, peer in peers.items():
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # said in the table
                peer.fit(x, y)
            seconds, used = time.perf_counter() - start, int(np.max(peer.n_iter_))
            rows[name] = {
                "accuracy": float(np.mean(peer.predict(x_test) == truth)),
                "seconds": seconds,
                "iterations": used,
                "converged": used < peer.max_iter,
            }
            _print_peer(layer, name, rows[name])
        del x, x_test
        for name, settings in {
            "lda": {"classifier": "lda"},
            "ridge": {"classifier": "ridge"},
            "logistic, 4 epochs": {"classifier": "logistic", "max_passes": 0},
            "logistic, 4 epochs, 10 passes": {"classifier": "logistic"},
            "svm, 4 epochs": {"classifier": "svm", "max_passes": 0},
        }.items():
            start = time.perf_counter()
            mine = probe(lake, layer=layer, control_draws=0, random_draws=0, **settings)
            rows[name] = {
                "accuracy": mine.accuracy,
                "seconds": time.perf_counter() - start,
                "iterations": mine.settings.get("passes", 0),
                "converged": mine.settings.get("converged", True),
            }
            _print_peer(layer, name, rows[name])
        found[str(layer)] = rows
    return found


def _print_peer(layer: int, name: str, row: dict[str, Any]) -> None:
    ended = "" if row["converged"] else " (not converged)"
    print(f"| {layer} | {name} | {row['accuracy']:.4f} | {row['seconds']:.1f} | {row['iterations']}{ended} |", flush=True)


def _readings(lake: Any, layers: Any) -> dict[str, Any]:
    """EWT dev, held-out sentences, all sub-words: what is known from elsewhere."""
    from neuronlake.analysis import probe_sweep

    settings: dict[str, Any] = {"split": "sentence", "subword": "all", "control_draws": 0, "random_draws": 0}
    found: dict[str, Any] = {}
    print()
    _head("EWT dev, held-out sentences, all sub-words", *(f"layer {layer}" for layer in layers))
    for classifier in ("logistic", "svm", "lda", "ridge"):
        sweep = probe_sweep(lake, layers=layers, classifier=classifier, **settings)
        found[classifier] = [each.accuracy for each in sweep]
        print(f"| {classifier} |", " | ".join(f"{value:.3f}" for value in found[classifier]), "|", flush=True)
        found["baselines"] = sweep[0].baselines
    print("baselines:", {name: round(scores["accuracy"], 3) for name, scores in found["baselines"].items()})
    return found


def _four_classes(lake: Any, test: Any | None, layers: list[int] | None) -> dict[str, Any]:
    """Verb, noun, adjective and adverb from at most 1.1 % of the neurons, learned on EWT train and tested on EWT dev."""
    from neuronlake.analysis import probe_sweep

    few = int(0.011 * lake.neurons)
    many = int(0.011 * lake.neurons * len(lake.layers if layers is None else layers))
    found: dict[str, Any] = {}
    shown = ("accuracy", "macro_f1", "random_neurons", "control_task", "most_frequent_tag_per_word", "majority")
    print()
    _head("four classes", "neurons", *shown)
    for classifier in ("lda", "logistic", "svm"):
        settings: dict[str, Any] = {"tags": FOUR, "classifier": classifier, "test": test, "random_draws": 10}
        each = list(probe_sweep(lake, layers=layers, ks=[few], **settings))
        whole = probe_sweep(lake, over="all", layers=layers, ks=[few, many], **settings)
        best = max(each, key=lambda result: result.accuracy)
        found[classifier] = {
            "by_layer": [_summary(result) for result in each],
            "all_layers": [_summary(result) for result in whole],
        }
        named = [(f"layer {best.settings['layers'][0]}, the best", best), *(("all layers", result) for result in whole)]
        for name, result in named:
            row = _summary(result)
            figures = " | ".join(f"{row[what]:.3f}" for what in shown)
            print(f"| {classifier}, {name} | {row['neurons']} | {figures} |", flush=True)
    return found


def _summary(result: Any) -> dict[str, Any]:
    return {
        "layers": result.settings["layers"],
        "neurons": result.counts["n_features"],
        "accuracy": result.accuracy,
        "interval": result.intervals["accuracy"],
        "macro_f1": result.macro_f1,
        "selectivity": result.selectivity,
        **{what: result.controls[what]["accuracy"] for what in _CONTROLS},
        **{what: scores["accuracy"] for what, scores in result.baselines.items()},
    }


def _memory(source: Any, folder: Path, blocks: tuple[int, int]) -> dict[str, Any]:
    """Peak memory of a probe of one whole layer, at both sizes."""
    from neuronlake.store import open_lake

    found: dict[str, Any] = {}
    print("\n| tokens | lda MB | logistic MB |\n|---|---|---|")
    for count in blocks:
        root = tall_lake(folder / f"tall-{count}.lake", source, count, first=0, neurons=source.neurons)
        tokens = open_lake(root).plan.counts["tokens"]
        peaks = {classifier: peak_memory_bytes(_MEMORY, str(root), classifier) / 1e6 for classifier in ("lda", "logistic")}
        found[str(tokens)] = peaks
        print(f"| {tokens:,} | {peaks['lda']:.0f} | {peaks['logistic']:.0f} |", flush=True)
    return found
