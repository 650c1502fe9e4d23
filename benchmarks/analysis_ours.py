"""What benchmark `analysis` times of neuronlake: a function per row of its table, see `analysis_work`."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis_job import Found, Job, scan_top, timed


def _of_dataset(job: Job, dataset: Any, names: dict[str, str]) -> Found:
    chosen = dataset.sel(layer=job.layers)
    return {key: chosen[name].transpose("tag", "layer", "neuron").to_numpy() for key, name in names.items()}


_MOMENTS = {"mean": "mean", "variance": "variance", "active": "fraction_active"}


def lake_moments(job: Job) -> Found:
    """`compute_statistics(basic=True)`, of all layers, with its five folds of documents."""
    from neuronlake.analysis import compute_statistics

    compute_statistics(job.lake(), "upos", keep=False, basic=True, layers=job.layers[:1])
    seconds, found = timed(lambda: compute_statistics(job.lake(), "upos", keep=False, basic=True))
    return {"seconds": seconds, "layers": found.sizes["layer"], **_of_dataset(job, found, _MOMENTS)}


def lake_auroc(job: Job) -> Found:
    """Everything with histograms, AUROC exact where a neuron could be among a tag's ten best, else with its bound."""
    from neuronlake.analysis import compute_statistics, refine

    def work() -> Any:
        lake = job.lake()
        return refine(lake, compute_statistics(lake, "upos", keep=False), "auroc", top=10)

    lake = job.lake()
    refine(lake, compute_statistics(lake, "upos", keep=False, layers=job.layers[:1]), "auroc", top=1)
    seconds, found = timed(work)
    names = {"auroc": "auroc", "bound": "auroc_error"}
    return {"seconds": seconds, "layers": found.sizes["layer"], **_of_dataset(job, found, names)}


def lake_probeless(job: Job) -> Found:
    """`score(compute_statistics(basic=True), "probeless")`."""
    from neuronlake.analysis import compute_statistics, score

    def work() -> Any:
        return score(compute_statistics(job.lake(), "upos", keep=False, basic=True), "probeless")

    seconds, found = timed(work)
    return {"seconds": seconds, "layers": found.sizes["layer"], **_of_dataset(job, found, {"score": "score"})}


def lake_asked_again(job: Job) -> Found:
    """The same ranking from what the first question kept in the lake: no activation is read."""
    from neuronlake.analysis import compute_statistics, score

    compute_statistics(job.lake(), "upos")
    seconds, found = timed(lambda: score(compute_statistics(job.lake(), "upos"), "probeless"), 3)
    return {"seconds": seconds, "layers": found.sizes["layer"], **_of_dataset(job, found, {"score": "score"})}


def _lake_probe(job: Job, make: Callable[[], Any]) -> Found:
    from neuronlake.analysis import labelled_matrix

    def work(train: NDArray[Any] = job.train) -> Any:
        X, y, _ = labelled_matrix(job.lake(), "upos", layer=job.given["probe_layer"])
        probe = make().fit(X[train], y[train])
        return probe.predict(X[~job.train])

    work(np.flatnonzero(job.train)[:6000])  # compiles
    seconds, found = timed(work)
    numbers = {tag: number for number, tag in enumerate(job.given["tags"])}
    return {"seconds": seconds, "layers": 1, "predicted": np.array([numbers[tag] for tag in found])}


def lake_logistic(job: Job) -> Found:
    """`LogisticProbe`: four epochs of mini-batches, then passes until the objective stands still."""
    from neuronlake.analysis import LogisticProbe

    return _lake_probe(job, LogisticProbe)


def lake_logistic_epochs(job: Job) -> Found:
    """The four epochs alone, as sweeps use them."""
    from neuronlake.analysis import LogisticProbe

    return _lake_probe(job, lambda: LogisticProbe(max_passes=0))


def lake_lda(job: Job) -> Found:
    """`LDAProbe`, in closed form."""
    from neuronlake.analysis import LDAProbe

    return _lake_probe(job, LDAProbe)


def _lake_top(job: Job, where: Any) -> Found:
    from neuronlake.analysis.queries import find_top

    lake = job.lake()
    asked = job.given["neurons"]
    for layer, neuron in asked:  # opens and remembers
        find_top(lake, layer, neuron, job.given["k"], where=where)
    seconds, values = [], []
    for layer, neuron in asked:
        start = time.perf_counter()
        found = find_top(lake, layer, neuron, job.given["k"], where=where)
        each = time.perf_counter() - start
        seconds.append(each)
        values.append(found.values)
    return {"seconds": statistics.median(seconds), "layers": 1, "values": np.stack(values)}


def lake_top(job: Job) -> Found:
    """From the index."""
    return _lake_top(job, None)


def lake_column(job: Job) -> Found:
    """The neuron's column read and decoded, np.partition: what the index spares."""
    from neuronlake.store.tables import PADDING, SPECIAL

    lake = job.lake()
    rows = np.flatnonzero(lake.tokens().column("flags").to_numpy() & (PADDING | SPECIAL) == 0)
    return scan_top(job, lambda layer, neuron: lake.read(layer=layer, rows=rows, neurons=[neuron])[:, 0], None)


def lake_top_nouns(job: Job) -> Found:
    """From the lists per tag, which the index has for upos."""
    return _lake_top(job, ("upos", "NOUN"))
