"""Neighbours of neurons and of tokens: recall against exact search, speed-up, size, time to make what they need."""

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import keep, scratch, small_lake, whole_train_lake
from benchmarks.statistics import linked

K = 10
_SAME = 1e-5  # of a cosine: tokens in the same place of the order, but for rounding


def run(
    *, sentences: int | None = None, neurons: int = 40, tokens: int = 50, layers: tuple[int, ...] = (0, 12, 24)
) -> dict[str, Any]:
    """Print the figures of the EWT train lake (SmolLM2, the default encoding).

    Parameters
    ----------
    sentences
        Only so many sentences of EWT dev.
    neurons, tokens
        How many are asked about, drawn at random; tokens in each of the layers.
    """
    from neuronlake.store import open_lake

    with scratch() as name:
        folder = Path(name)
        root = whole_train_lake() if sentences is None else small_lake(folder, sentences)
        lake = open_lake(linked(root, folder / "copy", without=("statistics", "index")))
        result = {"tokens": lake.plan.counts["tokens"], "neurons": _neurons(lake, neurons), "layers": {}}
        for layer in layers:
            result["layers"][layer] = _tokens(lake, layer, tokens)
    found = result["neurons"]
    print("| neurons by activation | |\n|---|---|")
    print(f"| sketches of all, made in | {found['make_s']:.1f} s, {found['bytes'] / 1e6:.0f} MB |")
    for candidates, recall in found["recall"].items():
        print(f"| recall@{K} with {candidates} candidates | {recall:.3f} |")
    print(f"| a question; by scanning everything | {found['ask_s']:.2f} s; {found['exact_s']:.1f} s |")
    print(f"\n| layer | index made in | MB | faiss: recall@{K} | ms | exact over the same vectors, ms | faster by |")
    print("|---|---|---|---|---|---|---|")
    for layer, row in result["layers"].items():
        print(
            f"| {layer} | {row['make_s']:.1f} s | {row['bytes'] / 1e6:.0f} | {row['index_recall']:.3f} | "
            f"{row['index_s'] * 1e3:.2f} | {row['flat_s'] * 1e3:.1f} | {row['index_faster']:.0f}× |"
        )
    print(f"\n| layer | answers: recall@{K} | ms | scan of all activations, ms | faster by |\n|---|---|---|---|---|")
    for layer, row in result["layers"].items():
        print(
            f"| {layer} | {row['recall']:.3f} | {row['ask_s'] * 1e3:.0f} | {row['exact_s'] * 1e3:.0f} | "
            f"{row['faster']:.1f}× |"
        )
    keep("neighbours", result)
    return result


def _neurons(lake: Any, count: int) -> dict[str, Any]:
    from neuronlake.analysis import coactivation, neighbours
    from neuronlake.analysis.sketch import sketch_neurons

    rng = np.random.default_rng(0)
    start = time.perf_counter()
    sketch = sketch_neurons(lake)
    make = time.perf_counter() - start
    asked = [(int(rng.choice(lake.layers)), int(rng.integers(lake.neurons))) for _ in range(count)]
    own = np.array([lake.layers.index(layer) * lake.neurons + neuron for layer, neuron in asked])
    exact = np.abs(coactivation(lake, asked).to_numpy().reshape(count, -1))
    start = time.perf_counter()
    coactivation(lake, asked[0])
    scan = time.perf_counter() - start
    vectors = [sketch.unit_vectors(place) for place in range(len(lake.layers))]
    queries = np.stack([vectors[place][neuron] for place, neuron in np.stack(np.divmod(own, lake.neurons), axis=1)])
    estimate = np.abs(np.concatenate([queries @ some.T for some in vectors], axis=1))
    for strength in (exact, estimate):
        strength[np.arange(count), own] = -1
        strength[np.isnan(strength)] = -1
    best = np.argsort(-exact, axis=1)[:, :K]
    order = np.argsort(-estimate, axis=1)
    recall = {
        some: float(np.mean([len(set(best[i]) & set(order[i, :some])) / K for i in range(count)]))
        for some in (K, 5 * K, 15 * K, 40 * K)
    }
    times = []
    for layer, neuron in asked[:5]:
        start = time.perf_counter()
        neighbours(lake, layer, neuron, K)
        times.append(time.perf_counter() - start)
    return {
        "make_s": make,
        "bytes": _size(lake, "sketch-"),
        "recall": recall,
        "ask_s": statistics.median(times),
        "exact_s": scan,
    }


def _tokens(lake: Any, layer: int, count: int) -> dict[str, Any]:
    from neuronlake.analysis.token_neighbours import CANDIDATES_EACH, nearest, nearest_of_all
    from neuronlake.analysis.token_vectors import standard_of, vector_index

    start = time.perf_counter()
    index = vector_index(lake, layer)
    make = time.perf_counter() - start
    import faiss

    # the same vectors without cells: what the inverted file leaves out
    flat = faiss.IndexScalarQuantizer(index.faiss.d, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    flat.train(np.zeros((1, index.faiss.d), dtype=np.float32))
    flags, rows = (lake.tokens().column(name).to_numpy() for name in ("flags", "row"))
    asked = np.random.default_rng(0).choice(rows[flags == 0], count, replace=False)
    standard = standard_of(lake, layer)
    ordinary = rows[flags == 0]
    for first in range(0, len(ordinary), 16384):
        some = ordinary[first : first + 16384]
        flat.add(index.project(index.standard.unit(lake.read(layer=layer, rows=some))))
    recall, ours, theirs, alone, whole, same = [], [], [], [], [], []
    for row in asked.tolist():
        query = standard.unit(lake.read(layer=layer, rows=[row]))
        start = time.perf_counter()
        _, cosines = nearest(lake, layer, index, query, CANDIDATES_EACH * K)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        proposed = index.search(query, K)[0]
        alone.append(time.perf_counter() - start)
        projected = index.project(query)
        start = time.perf_counter()
        found = ordinary[flat.search(projected, K)[1][0]]
        whole.append(time.perf_counter() - start)
        same.append(len(set(proposed.tolist()) & set(found.tolist())) / K)
        start = time.perf_counter()
        _, every = nearest_of_all(lake, layer, standard, query[0], K + 1)
        theirs.append(time.perf_counter() - start)
        tenth = np.sort(every)[-K - 1]  # the token itself comes first
        recall.append(min(K, np.count_nonzero(cosines >= tenth - _SAME) - 1) / K)
    return {
        "make_s": make,
        "bytes": _size(lake, f"vectors-{lake.site}-{layer}-"),
        "recall": statistics.mean(recall),
        "ask_s": statistics.median(ours),
        "exact_s": statistics.median(theirs),
        "faster": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "index_s": statistics.median(alone),
        "flat_s": statistics.median(whole),
        "index_recall": statistics.mean(same),
        "index_faster": statistics.median(b / a for a, b in zip(alone, whole, strict=True)),
    }


def _size(lake: Any, prefix: str) -> int:
    return sum(path.stat().st_size for path in (lake.path / "index").glob(f"{prefix}*/**/*") if path.is_file())
