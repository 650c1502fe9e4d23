"""From a tidy table of probing results to the series of one picture."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronlake.analysis.figure_style import plain
from neuronlake.store.errors import InputError

COLUMNS = (
    "probe",
    "classifier",
    "layers",
    "layer",
    "features",
    "shift",
    "by",
    "what",
    "draw",
    "tag",
    "metric",
    "value",
    "low",
    "high",
    "test_tokens",
    "test_documents",
)
Row = Mapping[str, Any]
_SETTINGS = ("by", "classifier", "shift", "layers")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One kind of result along an axis."""

    x: NDArray[np.float64]
    """Ascending, (points,)."""
    value: NDArray[np.float64]
    """The row without a draw, or the mean over draws where there is none."""
    low: NDArray[np.float64]
    """Ends of the intervals, NaN where there are none."""
    high: NDArray[np.float64]
    draw_x: NDArray[np.float64]
    """Where single draws lie, (single draws,)."""
    draw_value: NDArray[np.float64]

    @property
    def most_draws(self) -> int:
        """The number of single draws at a point, at most."""
        return int(np.unique(self.draw_x, return_counts=True)[1].max(initial=0))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Rows of one picture: one metric of probes that differ along one column."""

    x: str
    """The column along the axis."""
    settings: dict[str, Any]
    """What all rows have in common: by, classifier, shift and layers, without `x`."""
    rows: list[Row] = field(repr=False)
    """Of probes and all that belongs to them, with a number in `x`."""
    baselines: list[Row] = field(repr=False)
    """Of predictions that see no activation: the same for all probes of a label and a shift."""

    @property
    def probes(self) -> list[Row]:
        """Rows of the probes themselves."""
        return [row for row in self.rows if row["what"] == "probe"]

    def series(self, what: str) -> Series | None:
        """Return one kind of result, None without rows of it.

        Raises
        ------
        InputError
            When a point has several rows.
        """
        cells = unique_cells([row for row in self.rows if row["what"] == what], (self.x,))
        if not cells:
            return None
        points = [points_of(cells[key]) for key in sorted(cells)]
        single = [(key[0], row["value"]) for key in sorted(cells) for row in cells[key] if row["draw"] is not None]
        draws = np.array(single, dtype=np.float64).reshape(-1, 2)
        value, low, high = np.array(points, dtype=np.float64).T
        return Series(
            x=np.array([key[0] for key in sorted(cells)], dtype=np.float64),
            value=value,
            low=low,
            high=high,
            draw_x=draws[:, 0],
            draw_value=draws[:, 1],
        )

    def baseline(self, what: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return where a baseline lies, (points,) each; a single NaN as place says: at one height everywhere.

        Raises
        ------
        InputError
            When a baseline has several values at one place.
        """
        rows = [row for row in self.baselines if row["what"] == what]
        if not rows:
            return None
        heights = [float(row["value"]) for row in rows]
        if max(heights) - min(heights) < 1e-9:
            return np.array([np.nan]), np.array(heights[:1])
        found: defaultdict[float, set[float]] = defaultdict(set)
        for row in rows:
            if row[self.x] is not None:
                found[float(row[self.x])].add(round(float(row["value"]), 9))
        for place, several in found.items():
            if len(several) > 1:
                raise InputError(
                    f"{what} has {len(several)} values at {self.x} {place:g}: pass only rows of the same test tokens"
                )
        places = sorted(found)
        return np.array(places), np.array([next(iter(found[place])) for place in places])

    def subtitle(self) -> str:
        """Say of which label, classifier and test tokens the picture is."""
        parts = [f"label {plain(self.settings['by'], 100)}"]
        if (classifier := self.settings["classifier"]) is not None:
            parts.append(f"classifier {plain(classifier, 40)}")
        if shift := int(self.settings.get("shift") or 0):
            parts.append(f"label of the word {abs(shift)} {'later' if shift > 0 else 'earlier'}")
        tokens = _range([row["test_tokens"] for row in self.probes])
        documents = _range([row["test_documents"] for row in self.probes])
        return " · ".join([*parts, f"{tokens} test tokens of {documents} document{'s' if documents != '1' else ''}"])


def select(
    table: "Sequence[Row] | pa.Table",
    x: str,
    metric: str,
    *,
    by: str | None,
    classifier: str | None,
    shift: int | None = None,
    layers: str | None = None,
    per_tag: bool = False,
) -> Selection:
    """Choose the rows of one picture.

    Settings that are None are those of the only probes there are. Of several shifts 0 is taken, and of several `layers`
    those with more than one place along `x`.

    Raises
    ------
    InputError
        When a column is missing, there are no probes to draw, or it is open which.
    """
    rows = [row for row in _read(table) if row["metric"] == metric and (row["tag"] is not None) == per_tag]
    probes = [row for row in rows if row["what"] == "probe" and row[x] is not None]
    if not probes:
        raise InputError(
            f"nothing to draw: needs rows with what='probe', metric={metric!r}, {'a' if per_tag else 'no'} tag, a value and "
            f"a number in {x!r}"
        )
    given = {"by": by, "classifier": classifier, "shift": shift, "layers": layers}
    # a picture by layer is of one layer after another
    keys = [key for key in _SETTINGS if key != x and not (key == "layers" and x == "layer")]
    settings: dict[str, Any] = {}
    for key in keys:
        settings[key] = _choose(probes, key, given[key], x)
        probes = [row for row in probes if row[key] == settings[key]]
    shared = [key for key in keys if key in ("by", "shift")]
    return Selection(
        x=x,
        settings=settings,
        rows=[row for row in rows if row[x] is not None and all(row[key] == settings[key] for key in keys)],
        baselines=[row for row in rows if all(row[key] == settings[key] for key in shared)],
    )


def unique_cells(rows: Iterable[Row], keys: tuple[str, ...]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some columns, draws together.

    Raises
    ------
    InputError
        When two rows of one cell are not told apart by their draws.
    """
    cells: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        cells[tuple(row[key] for key in keys)].append(row)
    for cell, mine in cells.items():
        draws = [row["draw"] for row in mine]
        twice = [row for row in mine if draws.count(row["draw"]) > 1]
        if twice:
            names = [key for key in ("probe", *_SETTINGS, "features") if len({row[key] for row in twice}) > 1]
            differ = ", ".join(f"{name} {_listed({row[name] for row in twice})}" for name in names)
            place = ", ".join(f"{key} {value}" for key, value in zip(keys, cell, strict=True))
            raise InputError(
                f"{len(twice)} rows of what={mine[0]['what']!r} at {place} ({differ or 'all alike'}): pass only one of them"
            )
    return dict(cells)


def points_of(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Value and interval of one cell: its row without a draw, or the mean over draws."""
    whole = [row for row in rows if row["draw"] is None]
    if not whole:
        return float(np.mean([row["value"] for row in rows])), math.nan, math.nan
    low, high = (math.nan if whole[0][end] is None else float(whole[0][end]) for end in ("low", "high"))
    return float(whole[0]["value"]), low, high


def _read(table: "Sequence[Row] | pa.Table") -> list[Row]:
    """Rows that have a value."""
    rows: list[Row] = table.to_pylist() if isinstance(table, pa.Table) else list(table)
    for row in rows:
        if missing := [name for name in COLUMNS if name not in row]:
            raise InputError(f"the table lacks {', '.join(missing)}: expected the columns {', '.join(COLUMNS)}")
    return [row for row in rows if row["value"] is not None and math.isfinite(row["value"])]


def _choose(rows: Sequence[Row], key: str, wanted: Any, x: str) -> Any:
    places: defaultdict[Any, set[Any]] = defaultdict(set)
    for row in rows:
        places[row[key]].add(row[x])
    if wanted is not None:
        if wanted not in places:
            raise InputError(f"no probes of {key} {wanted!r}: there are {_listed(places)}")
        return wanted
    if len(places) == 1:
        return next(iter(places))
    if key == "shift" and 0 in places:
        return 0
    along = [value for value, mine in places.items() if len(mine) > 1]
    if key == "layers" and len(along) == 1:
        return along[0]
    raise InputError(f"probes of {len(places)} {key}: {_listed(places)}; choose one by {key}=")


def _listed(values: Iterable[Any], most: int = 12) -> str:
    """Values as text, the first ones if they are many."""
    shown = sorted({str(value) for value in values}, key=lambda text: (len(text), text))
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
