"""The distribution of one neuron's values, tag by tag."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.execute import Parts, run_all
from neuronlake.analysis.figure_style import HIGHER, INK, NEUTRAL, check_path, describe, picture, plain, text_inches
from neuronlake.analysis.labels import LabelVector, token_labels
from neuronlake.analysis.neuron import check_neuron, neuron_name
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DEFAULT_TAGS = 12  # the largest, unless tags are asked for
_MAX_TAGS = 40
_MAX_BINS = 81  # odd, so that a constant's bar stands in the middle
_ZEROS = 0.25  # share of exact zeros from which they would hide everything else
_HEAVY = 15  # a range of so many interquartile ranges has tails that a linear axis would hide
_ROW_INCHES = 0.46


def neuron_histogram(
    source: LakeSource,
    layer: int,
    neuron: int,
    path: str | Path,
    *,
    by: str = "upos",
    tags: Sequence[str] | None = None,
    where: str | None = None,
    subword: str = "last",
    shift: int = 0,
    scheduler: Any = None,
) -> Path:
    """Draw how one neuron's values are distributed in every tag, one row per tag, from the exact stored values.

    All rows share the axis and the bins. The axis is linear, or where the range exceeds 15 interquartile ranges (many
    neurons of gated MLPs) asinh(x/s), s the median |x| of the values drawn: about linear within ±s, logarithmic in
    magnitude beyond. There are 2·n^⅓ bins (Rice's rule), at most 81; where an encoding stores few different values, every
    bin holds whole ones, or else some would look rare for holding one value fewer. A row's area is the density of its tag's
    tokens on that axis, the line that of all labelled tokens. Where more than a quarter of all tokens are exactly 0, these
    are left out of both and counted in the row's name.

    Parameters
    ----------
    source
        The lake.
    layer, neuron
        Which neuron.
    path
        File to write; PNG, SVG or PDF by its suffix.
    by, where, subword, shift
        Which tokens carry which tag, as for `token_labels`.
    tags
        Rows, in this order; None means the 12 tags with most tokens.
    scheduler
        A Dask scheduler; None means threads.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When the neuron, the label, a tag or the suffix is unknown, the folder does not exist, or there are too many tags.
    """
    path = check_path(path)
    check_neuron(source, layer, neuron)
    labels = token_labels(source, by, where=where, subword=subword, shift=shift, min_tokens=1)
    shown = _choose_tags(labels, tags)
    values = _column(source, labels, layer, neuron, scheduler).astype(np.float64)
    codes = labels.codes[labels.codes >= 0]
    zeros = values == 0
    apart = bool(zeros.mean() > _ZEROS and not zeros.all())
    drawn = ~zeros if apart else np.ones_like(zeros)
    axis = _Axis(values[drawn])
    mine = [codes == labels.tags.index(tag) for tag in shown]
    names = [f"{plain(tag)} ({np.count_nonzero(rows):,})" for tag, rows in zip(shown, mine, strict=True)]
    if apart:
        names = [f"{name}\n{zeros[rows].mean():.0%} are 0" for name, rows in zip(names, mine, strict=True)]
    notes = ["Area: density of the tag's tokens on this axis. Line: of all labelled tokens. ▼: the tag's median."]
    if apart:
        notes.append(f"Drawn are values other than 0: {zeros.mean():.1%} of all labelled tokens are exactly 0.")
    if len(shown) < len(labels.tags):
        notes.append(f"{len(shown)} of {len(labels.tags)} tags are shown{'' if tags else ', those with most tokens'}.")
    with picture(
        path,
        width=max(6.4, 5.0 + text_inches(names, 8)),
        height=1.0 + _ROW_INCHES * len(shown),
        title=f"Values of neuron {neuron_name(layer, neuron)} by {plain(by, 60)}",
        subtitle=describe({"by": by, "site": source.site, "where": where, "subword": subword, "shift": shift}, len(values)),
        notes=notes,
    ) as figure:
        rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0})[:, 0]
        pooled = axis.density(values[drawn])
        for axes, chosen, name in zip(rows, mine, names, strict=True):
            _draw_row(axes, axis, values[chosen & drawn], pooled, name)
        last = rows[-1]
        last.spines["bottom"].set_visible(True)
        last.tick_params(axis="x", length=3)
        last.set_xlim(axis.edges[0], axis.edges[-1])
        ticks = axis.ticks()
        last.set_xticks(axis.place(np.array(ticks)), [f"{tick:g}".replace("-", "−") for tick in ticks])
        last.set_xlabel(f"activation ({axis.name})")
    return path


class _Axis:
    """Where values lie on the axis: linear, or signed logarithmic for heavy tails."""

    def __init__(self, values: NDArray[np.float64]):
        low, high = float(values.min()), float(values.max())
        quarter, three_quarters = np.quantile(values, [0.25, 0.75])
        self.linear = high - low <= _HEAVY * (three_quarters - quarter)
        magnitudes = np.abs(values[values != 0])
        # below the smallest normal double a quotient would overflow
        self._scale = max(float(np.median(magnitudes)), 1e-300) if magnitudes.size else 1.0
        self._low, self._high = low, high
        if low == high:  # one value alone still needs a bin to stand in
            self._low, self._high = low - (abs(low) or 1.0), high + (abs(high) or 1.0)
        self.edges = self._bins(values)

    def _bins(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Edges of the bins on the axis, ascending."""
        first, last = self.place(np.array([self._low, self._high]))
        # Rice's rule: 2·n^⅓
        bins = min(_MAX_BINS, 2 * int(np.cbrt(len(values))) + 1)
        levels = np.unique(values)
        if len(levels) == 1 or len(levels) > len(values) / 4:
            return np.linspace(first, last, bins + 1)
        placed = self.place(levels)
        between = (placed[1:] + placed[:-1]) / 2
        least = (last - first) / bins
        edges = [first - least / 2]
        for edge in between:
            if edge - edges[-1] >= least:
                edges.append(edge)
        return np.array([*edges, last + least / 2])

    def density(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of the values in each bin, by the bin's width on the axis; (bins,)."""
        counts = np.histogram(self.place(values), self.edges)[0]
        return counts / max(1, len(values)) / np.diff(self.edges)

    @property
    def name(self) -> str:
        """What the axis is labelled with."""
        return "linear scale" if self.linear else f"signed log scale, about linear within ±{self._scale:.2g}"

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return positions on the axis, of the values' shape."""
        placed: NDArray[np.float64] = values if self.linear else np.arcsinh(values / self._scale)
        return placed

    def ticks(self) -> list[float]:
        """Return round values with room for their text between them."""
        if self.linear:
            from matplotlib.ticker import MaxNLocator

            found = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(self._low, self._high)
            return [float(tick) for tick in found if self._low <= tick <= self._high]
        largest = max(abs(self._low), abs(self._high))
        decades = range(int(np.floor(np.log10(self._scale))), int(np.ceil(np.log10(largest))) + 1)
        sizes = sorted((step * 10.0**decade for decade in decades for step in (1, 2, 5)), key=_roundness)
        chosen = [0.0] if self._low <= 0 <= self._high else []
        room = (self.edges[-1] - self.edges[0]) / 12
        for tick in (sign * size for size in sizes for sign in (1, -1)):
            near = np.abs(self.place(np.array(chosen)) - self.place(np.array(tick)))
            if self._low <= tick <= self._high and (not chosen or near.min() >= room):
                chosen.append(tick)
        return sorted(chosen)


def _roundness(size: float) -> tuple[bool, float]:
    """Powers of ten first, large before small."""
    exponent = np.log10(size)
    return (abs(exponent - round(exponent)) > 1e-9, -size)


def _choose_tags(labels: LabelVector, tags: Sequence[str] | None) -> list[str]:
    if tags is None:
        order = np.argsort(-labels.counts, kind="stable")[:_DEFAULT_TAGS]
        return [labels.tags[at] for at in order]
    for tag in tags:
        if tag not in labels.tags:
            raise InputError(f"unknown tag {tag!r}: known are {', '.join(labels.tags)}")
    if not 0 < len(tags) <= _MAX_TAGS:
        raise InputError(f"a histogram shows 1 to {_MAX_TAGS} tags, got {len(tags)}: choose some of them")
    return list(tags)


def _column(source: LakeSource, labels: LabelVector, layer: int, neuron: int, scheduler: Any) -> NDArray[np.float32]:
    """Values of one neuron at the labelled rows, in order; float32 (labelled rows,)."""
    parts = run_all(
        partial(_of_block, source, labels, layer=layer, neuron=neuron),
        [{"position": position} for position in range(len(labels.blocks))],
        parts=Parts.of_blocks(source, labels.blocks),
        scheduler=scheduler,
    )
    return np.concatenate(parts)


def _of_block(source: LakeSource, labels: LabelVector, *, position: int, layer: int, neuron: int) -> NDArray[np.float32]:
    rows = np.flatnonzero(labels.block(position) >= 0)
    if not rows.size:
        return np.empty(0, dtype=np.float32)
    values = source.read_block(layer=layer, block=labels.blocks[position], neurons=[neuron])
    return np.asarray(values[rows, 0])


def _draw_row(axes: "Axes", axis: _Axis, values: NDArray[np.float64], pooled: NDArray[np.float64], name: str) -> None:
    density = axis.density(values)
    peak = max(float(density.max()), float(pooled.max()))
    axes.stairs(density, axis.edges, fill=True, color=HIGHER, alpha=0.55, linewidth=0)
    axes.stairs(pooled, axis.edges, color=INK, linewidth=0.8)
    if values.size:
        axes.plot(axis.place(np.median(values, keepdims=True)), [1.1 * peak], "v", color=INK, markersize=4, clip_on=False)
    axes.set_ylim(0, 1.2 * peak)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(NEUTRAL)
    axes.set_ylabel(name, rotation=0, ha="right", va="center", size=8)
