"""What benchmark `analysis` times, in processes of their own: ``python -m benchmarks.analysis_work JOB``.

A function per row of its tables: it returns seconds, how many layers they were for, and its answer for layers that all
have. Others start from what they read fastest: layers of the same values as float16 .npy files in the page cache, only the
tokens that carry a tag, tags as numbers. Ours starts from the lake. Imports and compilation do not count.
"""

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CORES = len(os.sched_getaffinity(0))
PIECE_ROWS = 4096
Found = dict[str, Any]
"""``seconds``, ``layers`` and arrays."""


class Job:
    """What all are given."""

    def __init__(self, given: dict[str, Any]):
        self.given = given
        self.folder = Path(given["folder"])
        self.layers: list[int] = given["layers"]
        with np.load(self.folder / "labels.npz") as file:
            self.codes: NDArray[np.int64] = file["codes"]
            self.train: NDArray[np.bool_] = file["train"]
            self.nouns: NDArray[np.bool_] = file["nouns"]
        self.tags = len(given["tags"])

    def labelled(self, layer: int) -> NDArray[np.float16]:
        """(tokens with a tag, neurons), a memory map."""
        return np.load(self.folder / f"labelled-{layer}.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def tokens(self, layer: int) -> NDArray[np.float16]:
        """(all tokens, neurons), a memory map."""
        return np.load(self.folder / f"tokens-{layer}.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def lake(self) -> Any:
        """Return the lake, whose statistics are not kept."""
        from neuronlake.store import open_lake

        return open_lake(self.given["lake"])


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return median seconds, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


# ---- ours -------------------------------------------------------------------------------------------------------------


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
    return _scan_top(job, lambda layer, neuron: lake.read(layer=layer, rows=rows, neurons=[neuron])[:, 0], None)


def lake_top_nouns(job: Job) -> Found:
    """From the lists per tag, which the index has for upos."""
    return _lake_top(job, ("upos", "NOUN"))


# ---- moments ----------------------------------------------------------------------------------------------------------


def flox_moments(job: Job) -> Found:
    """xarray's groupby with flox: sums of x, x² and x > 0 in float64, over pieces of neurons that hold all tokens.

    Within such a piece every group is whole: nothing is left to combine, and no row is moved. Of its engines NumPy's was the
    fastest here, by a third.
    """
    import dask.array as da
    import xarray as xr

    tag = xr.DataArray(job.codes, dims="row", name="tag")

    def layer_sums(layer: int, neurons: int | None = None) -> Any:
        array = da.from_array(job.labelled(layer)[:, :neurons], chunks=(-1, 128), name=False)
        wide = xr.DataArray(array, dims=("row", "neuron")).astype(np.float64)
        sums = xr.Dataset({"x": wide, "square": wide * wide, "active": (wide > 0).astype(np.float64)})
        return sums.groupby(tag).sum(engine="numpy", method="blockwise").compute()

    layer_sums(job.layers[0], 8)  # imports
    return _from_sums(job, *timed(lambda: [layer_sums(layer) for layer in job.layers]))


def _from_sums(job: Job, seconds: float, found: list[Any]) -> Found:
    x, square, active = (
        np.stack([np.asarray(each[name]).reshape(job.tags, -1) for each in found], axis=1)
        for name in ("x", "square", "active")
    )
    count = np.bincount(job.codes, minlength=job.tags)[:, None, None]
    mean = x / count
    variance = (square - count * mean**2) / (count - 1)
    return {
        "seconds": seconds,
        "layers": len(job.layers),
        "mean": mean,
        "variance": variance,
        "active": active / count,
    }


def dask_moments(job: Job) -> Found:
    """dask.array, a tag at a time, as one would write it: select the tag's rows, mean, variance, share above zero."""
    import dask
    import dask.array as da

    rows = [np.flatnonzero(job.codes == code) for code in range(job.tags)]

    def work(neurons: int | None = None) -> list[Any]:
        found = []
        for layer in job.layers:
            array = da.from_array(job.labelled(layer)[:, :neurons], chunks=(8192, -1), name=False)
            for chosen in rows:
                part = array[chosen].astype(np.float64)
                found.append(dask.compute(part.mean(axis=0), part.var(axis=0, ddof=1), (part > 0).mean(axis=0)))
        return found

    work(8)  # imports
    seconds, found = timed(work)
    shape = (len(job.layers), job.tags, -1)
    names = ("mean", "variance", "active")
    arrays = [np.stack([each[place] for each in found]).reshape(shape).transpose(1, 0, 2) for place in range(3)]
    return {"seconds": seconds, "layers": len(job.layers), **dict(zip(names, arrays, strict=True))}


def numpy_moments(job: Job) -> Found:
    """Products of a one-hot matrix with x, x² and x > 0, float64, in pieces of rows on all cores."""

    def piece(layer: int, first: int) -> list[NDArray[np.float64]]:
        codes = job.codes[first : first + PIECE_ROWS]
        chosen = np.zeros((job.tags, len(codes)))
        chosen[codes, np.arange(len(codes))] = 1
        wide = job.labelled(layer)[first : first + PIECE_ROWS].astype(np.float64)
        return [chosen @ wide, chosen @ (wide * wide), chosen @ (wide > 0).astype(np.float64)]

    def work() -> list[dict[str, Any]]:
        from threadpoolctl import threadpool_limits

        starts = range(0, len(job.codes), PIECE_ROWS)
        with threadpool_limits(1), ThreadPoolExecutor(CORES) as pool:
            found = []
            for layer in job.layers:
                sums = list(pool.map(lambda first, layer=layer: piece(layer, first), starts))  # type: ignore[misc]
                totals = [sum(each[place] for each in sums) for place in range(3)]
                found.append(dict(zip(("x", "square", "active"), totals, strict=True)))
            return found

    return _from_sums(job, *timed(work))


# ---- AUROC ------------------------------------------------------------------------------------------------------------


def sklearn_auroc(job: Job) -> Found:
    """`roc_auc_score` for each neuron and tag; of a sample of the neurons of the layers."""
    from sklearn.metrics import roc_auc_score

    sample = job.given["sample"]
    members = [job.codes == code for code in range(job.tags)]

    def work() -> list[list[list[float]]]:
        found = []
        for layer in job.layers:
            values = np.array(job.labelled(layer)[:, sample], dtype=np.float32)
            found.append([[roc_auc_score(member, column) for column in values.T] for member in members])
        return found

    seconds, found = timed(work)
    return {
        "seconds": seconds,
        "layers": len(job.layers) * len(sample) / job.given["width"],
        "auroc": np.array(found).transpose(1, 0, 2),
    }


def scipy_auroc(job: Job) -> Found:
    """`scipy.stats.rankdata` once per neuron, summed for all tags (the Mann–Whitney U of each): the sort is shared."""
    from scipy.stats import rankdata

    count = np.bincount(job.codes, minlength=job.tags)[:, None].astype(np.float64)
    chosen = np.zeros((job.tags, len(job.codes)))
    chosen[job.codes, np.arange(len(job.codes))] = 1

    def piece(layer: int, first: int) -> NDArray[np.float64]:
        ranks = rankdata(np.array(job.labelled(layer)[:, first : first + 64]).astype(np.float32), axis=0)
        u = chosen @ ranks - count * (count + 1) / 2
        return u / (count * (len(job.codes) - count))  # type: ignore[no-any-return]

    def work() -> NDArray[np.float64]:
        starts = range(0, job.given["width"], 64)
        with ThreadPoolExecutor(CORES) as pool:
            layer = job.layers[0]
            return np.concatenate(list(pool.map(lambda first: piece(layer, first), starts)), axis=1)

    seconds, found = timed(work)
    return {"seconds": seconds, "layers": 1, "auroc": found[:, None]}


# ---- probes -----------------------------------------------------------------------------------------------------------


def _sklearn_probe(job: Job, make: Callable[[int], Any]) -> Found:
    from sklearn.preprocessing import StandardScaler

    def work() -> Any:
        X = np.array(job.labelled(job.given["probe_layer"])).astype(np.float32)
        scaler = StandardScaler().fit(X[job.train])
        probe = make(int(job.train.sum())).fit(scaler.transform(X[job.train]), job.codes[job.train])
        return probe.predict(scaler.transform(X[~job.train])), np.max(probe.n_iter_) if hasattr(probe, "n_iter_") else 0

    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the table says how many iterations it took
        seconds, (found, iterations) = timed(work)
    return {"seconds": seconds, "layers": 1, "predicted": found, "iterations": iterations}


def sklearn_logistic(job: Job) -> Found:
    """`LogisticRegression(C=1/(0.001 n))` on standardised features, until it converges: our penalty."""
    from sklearn.linear_model import LogisticRegression

    return _sklearn_probe(job, lambda n: LogisticRegression(C=1 / (1e-3 * n), max_iter=1000))


def sklearn_defaults(job: Job) -> Found:
    """`LogisticRegression()` on standardised features: C = 1, at most 100 iterations."""
    from sklearn.linear_model import LogisticRegression

    return _sklearn_probe(job, lambda _: LogisticRegression())


def sklearn_lda(job: Job) -> Found:
    """`LinearDiscriminantAnalysis(solver="lsqr", shrinkage=None)`: the solver without a decomposition of all tokens."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return _sklearn_probe(job, lambda _: LinearDiscriminantAnalysis(solver="lsqr"))


# ---- the highest tokens of a neuron -----------------------------------------------------------------------------------


def _best(column: NDArray[Any], k: int) -> NDArray[np.float32]:
    part = np.partition(column, len(column) - k)[len(column) - k :]
    return np.sort(part)[::-1].astype(np.float32)


def _scan_top(job: Job, column: Callable[[int, int], NDArray[Any]], eligible: NDArray[np.bool_] | None) -> Found:
    def ask(layer: int, neuron: int) -> NDArray[np.float32]:
        values = column(layer, neuron)
        return _best(values if eligible is None else values[eligible], job.given["k"])

    asked = job.given["neurons"]
    for layer, neuron in asked:
        ask(layer, neuron)
    seconds, values = [], []
    for layer, neuron in asked:
        start = time.perf_counter()
        values.append(ask(layer, neuron))
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "layers": 1, "values": np.stack(values)}


def npy_top(job: Job) -> Found:
    """The neuron's column of a memory map, np.partition."""
    arrays = {layer: job.tokens(layer) for layer in job.layers}
    return _scan_top(job, lambda layer, neuron: np.array(arrays[layer][:, neuron]), None)


def npy_top_nouns(job: Job) -> Found:
    """The same, of the rows that are nouns."""
    arrays = {layer: job.tokens(layer) for layer in job.layers}
    return _scan_top(job, lambda layer, neuron: np.array(arrays[layer][:, neuron]), job.nouns)


def h5py_top(job: Job) -> Found:
    """The neuron's column of a contiguous data set, np.partition."""
    import h5py

    path = job.folder / "tokens.hdf5"
    with h5py.File(path, "w") as file:
        for layer in job.layers:
            file.create_dataset(str(layer), data=job.tokens(layer))
    with h5py.File(path) as file:
        return _scan_top(job, lambda layer, neuron: file[str(layer)][:, neuron], None)


def peak_bytes() -> int:
    """Peak of resident memory since `forget_peak`, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def forget_peak() -> None:
    """Begin a new peak, where the system lets a process do so."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main(given: dict[str, Any]) -> None:
    """Run the named functions; save what each found."""
    job = Job(given)
    for name in given["names"]:
        forget_peak()
        found = globals()[name](job)
        np.savez(job.folder / f"found-{name}.npz", peak=peak_bytes(), **found)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
