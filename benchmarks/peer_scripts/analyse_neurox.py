"""NeuroX: `probeless` and its linear probe, for `benchmarks/analysis.py`.

Settings. Its loader gives float32 matrices (tokens, neurons): the values of the same float16 files are handed over as such,
and reading them counts. Probeless has nothing to choose; it is asked for all tags at once. The probe is trained on
standardised features with the function's own ten epochs, batches of 32 and learning rate 0.001, without a penalty: all its
defaults.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np


def probeless(given: dict, folder: Path, codes: np.ndarray, _: np.ndarray) -> dict:
    """Rank the neurons of each layer for every tag."""
    from neurox.interpretation import probeless as method

    names = {number: number for number in range(len(given["tags"]))}
    places = np.zeros((len(names), len(given["layers"]), given["width"]), dtype=np.int64)
    start = time.perf_counter()
    orders = []
    for layer in given["layers"]:
        values = np.load(folder / f"labelled-{layer}.npy").astype(np.float32)
        orders.append(method.get_neuron_ordering_for_all_tags(values, codes, names)[1])
    seconds = time.perf_counter() - start
    for at, of_layer in enumerate(orders):
        for tag, order in of_layer.items():
            places[tag, at, order] = np.arange(len(order))
    return {"seconds": seconds, "layers": len(given["layers"]), "score": -places}


def probe(given: dict, folder: Path, codes: np.ndarray, train: np.ndarray) -> dict:
    """Train and predict."""
    from neurox.interpretation import linear_probe

    start = time.perf_counter()
    values = np.load(folder / f"labelled-{given['probe_layer']}.npy").astype(np.float32)
    centre, spread = values[train].mean(axis=0), values[train].std(axis=0)
    values = (values - centre) / np.where(spread > 0, spread, 1)
    trained = linear_probe.train_logistic_regression_probe(values[train], codes[train])
    numbers = {number: str(number) for number in range(len(given["tags"]))}
    _, predicted = linear_probe.evaluate_probe(
        trained, values[~train], codes[~train], idx_to_class=numbers, return_predictions=True
    )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "layers": 1, "predicted": np.array([int(each) for _, each, _ in predicted])}


def main() -> None:
    """Run what is named."""
    given = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(given["folder"])
    with np.load(folder / "labels.npz") as file:
        codes, train = file["codes"], file["train"]
    for name in given["names"]:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # a new peak
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            found = globals()[name.removeprefix("neurox_")](given, folder, codes, train)
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024
        np.savez(folder / f"found-{name}.npz", peak=peak, **found)


if __name__ == "__main__":
    main()
