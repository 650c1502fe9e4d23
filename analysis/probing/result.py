"""What a probe found, beside what it must be compared with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError

Interval = list[float] | None
"""Ends of a 95 % interval by document bootstrap; None where there is one test document."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ProbeResult:
    """Scores on held-out documents, with everything needed to repeat them."""

    accuracy: float
    macro_f1: float
    """Mean F1 of the tags that occur in the test documents or among the predictions."""
    balanced_accuracy: float
    """Mean recall of the tags that occur in the test documents."""
    intervals: dict[str, Interval]
    """Of accuracy, macro_f1, selectivity and above_most_frequent_tag; differences are paired by document."""
    tags: tuple[str, ...]
    per_tag: dict[str, dict[str, Any]]
    """precision, recall, f1, its interval and support (test tokens) of every tag; undefined ratios are 0."""
    confusion: NDArray[np.int64]
    """(true tag, predicted tag)."""
    baselines: dict[str, dict[str, float]]
    """accuracy and macro_f1 of predictions that see no activation."""
    controls: dict[str, dict[str, Any]]
    """accuracy and macro_f1, means over `draws`, of the same probe of labels that mean nothing (``control_task``,
    ``shuffled_labels``) or on neurons that nobody chose (``random_neurons``, so many `neurons`)."""
    selectivity: float | None
    """Accuracy less that on the control task (Hewitt & Liang 2019)."""
    counts: dict[str, int]
    """Tokens, documents and sentences on either side, and features."""
    dropped: dict[str, int]
    """Tags with fewer than two training tokens, and their tokens on both sides; they are neither learned nor tested."""
    neurons: list[str] | None
    """Names of the neurons used, in the order of choice where they were chosen; None for whole layers."""
    settings: dict[str, Any]
    lake: str
    versions: dict[str, str]

    def __repr__(self) -> str:
        from neuronlake.analysis.probing.shown import result_text

        return result_text(self)

    def _repr_html_(self) -> str:
        from neuronlake.analysis.probing.shown import result_html

        return result_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "balanced_accuracy": self.balanced_accuracy,
            "intervals": self.intervals,
            "selectivity": self.selectivity,
            "baselines": self.baselines,
            "controls": self.controls,
            "tags": list(self.tags),
            "per_tag": self.per_tag,
            "confusion": self.confusion.tolist(),
            **self.counts,
            "dropped": self.dropped,
            "neurons": self.neurons,
            "settings": self.settings,
            "lake": self.lake,
            "versions": self.versions,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one line per score: see `ProbeResults.table`."""
        layers = self.settings["layers"]
        about = {
            "probe": self.settings["name"],
            "classifier": self.settings["classifier"],
            "layers": layers_text(layers),
            "layer": layers[0] if len(layers) == 1 else None,
            "features": self.counts["n_features"],
            "shift": self.settings["shift"],
            "by": self.settings["by"],
            "test_tokens": self.counts["n_test"],
            "test_documents": self.counts["n_test_documents"],
        }
        lines = []

        def add(
            what: str, metric: str, value: float, interval: Interval = None, draw: int | None = None, tag: str | None = None
        ) -> None:
            low, high = interval or (None, None)
            lines.append(
                {**about, "what": what, "draw": draw, "tag": tag, "metric": metric, "value": value, "low": low, "high": high}
            )

        for metric, value in (("accuracy", self.accuracy), ("macro_f1", self.macro_f1)):
            add("probe", metric, value, self.intervals[metric])
            for name, baseline in self.baselines.items():
                add(name, metric, baseline[metric])
            for name, scores in self.controls.items():
                add(name, metric, scores[metric])
                for draw, drawn in enumerate(scores["draws"]):
                    add(name, metric, drawn[metric], draw=draw)
        if self.selectivity is not None:
            add("selectivity", "accuracy", self.selectivity, self.intervals["selectivity"])
        for tag, scores in self.per_tag.items():
            add("probe", "f1", scores["f1"], scores["f1_interval"], tag=tag)
            for metric in ("precision", "recall"):
                add("probe", metric, scores[metric], tag=tag)
        return lines


@dataclass(frozen=True, repr=False)
class ProbeResults:
    """Several probes: one per layer, number of neurons or shift."""

    results: tuple[ProbeResult, ...]

    def __repr__(self) -> str:
        from neuronlake.analysis.probing.shown import results_text

        return results_text(self.results)

    def _repr_html_(self) -> str:
        from neuronlake.analysis.probing.shown import results_html

        return results_html(self.results)

    def __iter__(self) -> Any:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, place: int) -> ProbeResult:
        return self.results[place]

    def table(self) -> Any:
        """Return a tidy pyarrow.Table, one line per score.

        Columns: probe, classifier, layers, layer (null for several), features (neurons used), shift, by, what (probe, a
        baseline, a control or selectivity), draw (null for the mean over draws), tag (null for all), metric, value, low and
        high (95 % interval by document bootstrap), test_tokens, test_documents.
        """
        import pyarrow as pa

        return pa.Table.from_pylist(table_rows(self.results), schema=table_schema())


def table_rows(results: Iterable[ProbeResult]) -> list[dict[str, Any]]:
    """One line per score of several results."""
    return [line for result in results for line in result.rows()]


def table_schema() -> Any:
    """Arrow schema of the tidy table."""
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    return pa.schema(
        {
            "probe": text,
            "classifier": text,
            "by": text,
            "layers": text,
            "layer": whole,
            "features": whole,
            "shift": whole,
            "what": text,
            "draw": whole,
            "tag": text,
            "metric": text,
            "value": real,
            "low": real,
            "high": real,
            "test_tokens": whole,
            "test_documents": whole,
        }
    )


def write_results(results: Sequence[ProbeResult], path: Any) -> None:
    """Write the tidy table to a new Parquet, CSV or JSON file; JSON holds each result whole.

    Raises
    ------
    InputError
        When the file exists, its folder does not, or its name ends otherwise.
    StorageError
        When it cannot be written.
    """
    import json
    from pathlib import Path

    from neuronlake.analysis.outputs import check_new, new_file, table_writer

    path = Path(path)
    check_new(path, OUT_SUFFIXES)
    if not results:
        raise InputError("no result to write")
    if path.suffix == ".json":
        with new_file(path) as beside:
            beside.write_text(json.dumps([each.to_dict() for each in results], ensure_ascii=False, indent=1), "utf-8")
        return
    table = ProbeResults(tuple(results)).table()
    about = {"settings": [each.settings for each in results], "lake": results[0].lake, "versions": results[0].versions}
    with table_writer(path, table.schema, about) as writer:
        writer.write_table(table)


OUT_SUFFIXES = (".parquet", ".csv", ".json")


def layers_text(layers: Sequence[int]) -> str:
    """Name some layers in a few characters."""
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))
