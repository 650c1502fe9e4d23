"""What a lake is, in a few lines: from what is known when it is open, and a few small files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronlake.store.commits import read_commits
from neuronlake.store.create import read_spec
from neuronlake.store.errors import NeuronlakeError
from neuronlake.store.kept import KEPT, kept_results
from neuronlake.store.markup import facts, notebook, size

if TYPE_CHECKING:
    from neuronlake.store.lake import Lake

_MOST_READ = 64  # commit records: some 20 ms
_MOST_LISTED = 3  # their names are long


def summary(lake: "Lake") -> dict[str, str]:
    """Say what a lake is of, from what is in memory: model, corpus, text, neurons, blocks, encoding."""
    spec, counts = lake.spec, lake.plan.counts
    model, corpus = spec.model, spec.plan.get("corpus", {})
    files = [str(file["name"]) for file in corpus.get("files", [])]
    parts = [f"{counts[name]:,} {name}" for name in ("documents", "sentences", "words") if name in counts]
    others = "".join(f", {spec.width(site):,} at {site}" for site in lake.sites if site != lake.site)
    return {
        "model": f"{model.get('name', 'unknown')} ({model.get('architecture', 'unknown')}, computed in "
        f"{spec.capture.get('dtype', 'unknown')})",
        "corpus": f"{_listed(files, 4) or corpus.get('kind', 'unknown')}, {spec.plan.get('context', 'unknown')} context",
        "text": ", ".join([*parts, f"{counts.get('tokens', 0):,} {lake.plan.unit}s"]),
        "neurons": f"{len(lake.layers)} layers × {lake.neurons:,} neurons at {lake.site}{others}",
        "blocks": f"{len(lake.blocks):,} of {lake.plan.blocks:,} committed, {lake.block_rows:,} rows each",
        "encoding": lake.encoding,
    }


def lake_text(lake: "Lake") -> str:
    """Return a lake in one line; nothing is read."""
    about = summary(lake)
    return (
        f"<Lake {lake.path}: {lake.spec.model.get('name', 'unknown model')}, {about['text'].split(', ')[-1]}, "
        f"{len(lake.layers)} layers × {lake.neurons} neurons of {lake.site}, "
        f"{len(lake.blocks)} of {lake.plan.blocks} blocks committed, {lake.encoding}>"
    )


def lake_html(lake: "Lake") -> str:
    """Return a lake as a table for notebooks.

    Of a lake in an object store nothing is asked: what was read before is shown. A lake that is gone, or whose records are
    damaged, says so.
    """
    lines = summary(lake)
    try:
        lines |= _read_now(lake)
    except (NeuronlakeError, OSError) as error:
        lines = {"⚠ not there any more": f"{error}; the lines below are from when it was opened", **lines}
    return notebook(facts(f"lake {lake.path}", {**lines, "fingerprint": lake.fingerprint[:16]}))


def _read_now(lake: "Lake") -> dict[str, str]:
    here = isinstance(lake.path, Path)
    if here and read_spec(lake.path).fingerprint != lake.fingerprint:
        return {"⚠ replaced": "another lake lies there now: open it again"}
    lines = {}
    known: Mapping[str, Any] = vars(lake)  # cached properties that were asked for
    if here or "commits" in known:
        lines["stored"] = _stored(lake, exact="commits" in known)
    labels = list(lake.plan.label_columns)
    if here or "label_sets" in known:
        labels += [f"{column} (added: {added.name})" for added in lake.label_sets for column in added.columns]
    lines["labels"] = ", ".join(labels) or "none"
    if here:
        kept = {folder: kept_results(lake.path, kept=folder) for folder in KEPT}
        lines["kept results"] = "; ".join(
            f"{name}: {len(each):,} ({_listed(each, _MOST_LISTED)})" for name, each in kept.items() if each
        )
        lines["kept results"] = lines["kept results"] or "none"
    return lines


def _stored(lake: "Lake", *, exact: bool) -> str:
    """Bytes of the committed blocks, from their records, or of many blocks from some of these."""
    blocks = lake.blocks
    if exact or len(blocks) <= _MOST_READ:
        return size(sum(record.bytes for commit in lake.commits for record in commit.files))
    step = -(-len(blocks) // _MOST_READ)
    some = [commit.without(lake.plan.dropped) for commit in read_commits(lake.path, blocks[::step])]
    mean = sum(record.bytes for commit in some for record in commit.files) / len(some)
    return f"about {size(mean * len(blocks))}, by {len(some)} of the blocks"


def _listed(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
