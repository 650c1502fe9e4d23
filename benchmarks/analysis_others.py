"""What benchmark `analysis` times of other tools: a function per row of its table, see `analysis_work`.

They start from what they read fastest: layers of the same values as float16 .npy files in the page cache, only the tokens
that carry a tag, tags as numbers.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.analysis_job import CORES, Found, Job, scan_top, timed

PIECE_ROWS = 4096

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


def npy_top(job: Job) -> Found:
    """The neuron's column of a memory map, np.partition."""
    arrays = {layer: job.tokens(layer) for layer in job.layers}
    return scan_top(job, lambda layer, neuron: np.array(arrays[layer][:, neuron]), None)


def npy_top_nouns(job: Job) -> Found:
    """The same, of the rows that are nouns."""
    arrays = {layer: job.tokens(layer) for layer in job.layers}
    return scan_top(job, lambda layer, neuron: np.array(arrays[layer][:, neuron]), job.nouns)


def h5py_top(job: Job) -> Found:
    """The neuron's column of a contiguous data set, np.partition."""
    import h5py

    path = job.folder / "tokens.hdf5"
    with h5py.File(path, "w") as file:
        for layer in job.layers:
            file.create_dataset(str(layer), data=job.tokens(layer))
    with h5py.File(path) as file:
        return scan_top(job, lambda layer, neuron: file[str(layer)][:, neuron], None)
