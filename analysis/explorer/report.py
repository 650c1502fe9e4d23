"""The explorer's views as one HTML file that needs nothing else: for a supplement, or a colleague without the lake."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neuronlake.analysis.explorer.links import Links
from neuronlake.analysis.explorer.neuron import neuron_page
from neuronlake.analysis.explorer.overview import overview
from neuronlake.analysis.explorer.render import STATIC, render
from neuronlake.analysis.explorer.shelf import DEFAULT_METHOD, Opened
from neuronlake.analysis.explorer.tag import tag_page
from neuronlake.analysis.kept_statistics import kept_labels
from neuronlake.analysis.neuron import parse_neuron
from neuronlake.analysis.source import versions
from neuronlake.store.errors import InputError, StorageError
from neuronlake.store.files import write_file
from neuronlake.store.lake import Lake


def write_report(
    lake: Lake,
    path: str | Path,
    *,
    by: str | None = None,
    method: str = DEFAULT_METHOD,
    tags: Sequence[str] | None = None,
    ranked: int = 20,
    shown: int = 3,
    neurons: Sequence[str] = (),
    contexts: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a report: the heat map, every tag's ranking, and the pages of the best neurons.

    It is made from kept statistics and the index, as the explorer's pages are: no activation is read where the index covers
    the lake.

    Parameters
    ----------
    lake
        The lake, at the site that is reported.
    path
        File to write; it must not exist.
    by
        Label; by default upos, or else the first whose statistics are kept.
    method
        Ranking, one of `shelf.METHODS`.
    tags
        Only these tags have a ranking (the heat map shows all).
    ranked
        Neurons in every tag's ranking.
    shown
        The first so many of them have a section of their own.
    neurons
        Names of more neurons with a section, such as ``L12.N345``.
    contexts
        Highest and lowest tokens of each.
    progress
        Called with (neurons done, neurons in all).

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        When the file exists or its folder does not; when the label, the ranking, a tag or a neuron is unknown, or statistics
        are not kept.
    StorageError
        When the file cannot be written; none is left.
    """
    path = Path(path).absolute()
    if path.exists():
        raise InputError(f"{path} exists already: remove it, or write to another file")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} in: create it first")
    if shown < 0 or ranked < 1:
        raise InputError(f"a report ranks at least 1 neuron and shows at least 0, got {ranked} and {shown}")
    opened = Opened(name=lake.path.name.removesuffix(".lake"), lake=lake, labels=tuple(kept_labels(lake)))
    view = overview(opened, by, method)
    by = str(view["by"])
    known = [str(tag) for tag in opened.scores(by, method)["tag"].to_numpy()]
    tables = [tag_page(opened, by, tag, method, top=ranked) for tag in (known if tags is None else tags)]
    chosen = [entry["name"] for table in tables for entry in table["neurons"][:shown]]
    chosen += [f"L{layer}.N{neuron}" for layer, neuron in (parse_neuron(name, lake) for name in neurons)]
    names = sorted(set(chosen), key=parse_neuron)
    pages = []
    for done, name in enumerate(names):
        progress(done, len(names))
        pages.append(neuron_page(opened, *parse_neuron(name), by, k=contexts))
    progress(len(names), len(names))
    links = _Anchors(opened.name, {table["tag"] for table in tables}, set(names))
    style, script = ((STATIC / name).read_text(encoding="utf-8") for name in ("explorer.css", "explorer.js"))
    html = render(
        "report.html",
        opened=opened,
        view=view,
        tables=tables,
        pages=pages,
        link=links,
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        versions=versions(),
    )
    try:
        write_file(path.parent, path.name, [html.encode()])
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    return path


class _Anchors(Links):
    """Places within the report; what it does not hold has no address."""

    def __init__(self, lake: str, tags: set[str], neurons: set[str]):
        super().__init__(lake)
        self._tags, self._neurons = tags, neurons

    def to(self, page: str = "", **query: Any) -> str | None:
        """Return where something is."""
        if page == "tag" and query["tag"] in self._tags:
            return f"#tag-{sorted(self._tags).index(query['tag'])}"
        return f"#{query['neuron']}" if page == "neuron" and query["neuron"] in self._neurons else None
