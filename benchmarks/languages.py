"""Neurons of languages in two models: LAPE, specific / related / agnostic, and sharing between parallel sentences.

The languages are those of the PUD treebanks in the folder of corpora, the same 1,000 sentences in each. A neuron counts as
active where the input of the down projection is above 0; the papers count the gate, whose sign may be another.
"""

import gzip
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.common import ROOT, corpora, keep, scratch, smollm2
from benchmarks.gemma import gemma3_270m

PATTERN = "*_pud-ud-test.conllu.gz"
LANGUAGE = "split_part(source, '_', 1)"
MODELS: dict[str, Callable[[], str]] = {"smollm2": smollm2, "gemma": gemma3_270m}
VIEWS = {"last": "last token", "most": "most tokens"}
"""When a neuron counts as active in a sentence: at its last token; at more than half of its tokens."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Which rows belong to which sentence in which language."""

    groups: Any
    """sentence × languages + language of every row, −1 where it has none; int64 (rows,)."""
    tokens: Any
    """Rows per group, int64 (sentences × languages,)."""
    languages: int


def run(models: tuple[str, ...] = tuple(MODELS), sentences: int | None = None) -> dict[str, Any]:
    """Print counts per layer and class for each model; draw them in build/benchmark-languages/.

    Parameters
    ----------
    models
        Names of `MODELS`.
    sentences
        Only so many sentences of each language, in a lake that is removed afterwards.
    """
    result = {}
    with scratch() as folder:
        files = sorted(corpora().glob(PATTERN))
        if sentences is not None:
            files = [_beginning(path, sentences, Path(folder)) for path in files]
        for name in models:
            lake, extraction = _lake(name, files, ROOT / "build" if sentences is None else Path(folder))
            pictures = lake.path.parent / "benchmark-languages"
            pictures.mkdir(exist_ok=True)
            result[name] = {**extraction, **_report(name, lake, pictures)}
    keep("languages", result)
    return result


def _beginning(path: Path, sentences: int, folder: Path) -> Path:
    """Copy the first sentences of a treebank."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        chosen = itertools.islice(file.read().split("\n\n"), sentences)
        with gzip.open(folder / path.name, "wt", encoding="utf-8") as target:
            target.write("".join(f"{sentence}\n\n" for sentence in chosen))
    return folder / path.name


def _lake(name: str, files: list[Path], folder: Path) -> tuple[Any, dict[str, Any]]:
    """One lake of all languages, extracted once and kept under build/ (5 GB and some minutes each for four languages)."""
    from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract, resolve_model
    from neuronlake.store import open_lake, read_spec
    from neuronlake.store.kept import KEPT

    corpus = ConlluCorpus(paths=tuple(files))
    root = folder / f"benchmark-pud-{name}.lake"
    if root.exists() and read_spec(root).plan["corpus"] != corpus.identity():  # a language has come or gone
        root = root.with_stem(f"{root.stem}-{'-'.join(path.name.split('_')[0] for path in files)}")
    source = resolve_model(MODELS[name]())
    start = time.perf_counter()
    report = extract(root, corpus, source, ExtractSettings())
    seconds = time.perf_counter() - start
    lake = open_lake(root)
    tokens = report.counts["tokens"] + report.counts["special"]
    return lake, {
        "layers": len(lake.layers),
        "neurons": lake.neurons,
        "tokens": tokens,
        # without statistics that somebody kept in it
        "bytes": sum(
            path.stat().st_size for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] not in KEPT
        ),
        # planning and loading included; only where nothing was extracted before
        "tokens_per_s": tokens / seconds if len(report.extracted) == report.blocks else None,
    }


def _report(name: str, lake: Any, pictures: Path) -> dict[str, Any]:
    """Compute, print and draw everything of one lake."""
    from neuronlake.analysis import compute_statistics, token_labels
    from neuronlake.analysis.selective import language_classes, lape

    start = time.perf_counter()
    statistics = compute_statistics(lake, LANGUAGE, subword="all", basic=True, keep=False)
    statistics_s = time.perf_counter() - start
    specific, classes = lape(statistics), language_classes(statistics)
    start = time.perf_counter()
    labels = token_labels(lake, LANGUAGE, subword="all")
    parallel = parallel_rows(lake, labels)
    sharing = shared_by_layer(lake, labels.blocks, parallel)
    sharing_s = time.perf_counter() - start
    sentences = len(parallel.tokens) // parallel.languages
    attributes = {**statistics.attrs, "by": "language"}
    counts = {
        "lape": specific["assigned"].sum("neuron").rename(tag="class").assign_attrs(attributes),
        "classes": classes["neurons"].assign_attrs(attributes),
        **{f"sharing_{view}": found for view, found in sharing.items()},
    }
    titles = {
        "lape": "LAPE neurons of each language",
        "classes": "Neurons by the languages that they serve",
        **{f"sharing_{view}": f"Sharing between {sentences:,} parallel sentences, {text}" for view, text in VIEWS.items()},
    }
    print(f"\n{name}: {len(lake.layers)} layers × {lake.neurons:,} neurons; tokens per language:", end=" ")
    print(", ".join(f"{tag} {count:,}" for tag, count in zip(labels.tags, labels.counts, strict=True)), end="")
    print(f"; {sentences:,} parallel sentences")
    print(f"λ {classes.attrs['lambda']:.3f}, bar {specific.attrs['activity_bar']:.3f} of the tokens, selected: ", end="")
    print(f"{int(specific['selected'].sum()):,} by LAPE, {int(classes['selected'].sum()):,} by 2505.21505\n")
    _print_layers(lake.layers, counts, titles)
    _print_most_selective(statistics, specific)
    print(f"\nstatistics {statistics_s:.1f} s, sharing {sharing_s:.1f} s", flush=True)
    _draw(counts, titles, name, pictures)
    return {
        "tokens_per_language": dict(zip(labels.tags, labels.counts.tolist(), strict=True)),
        "parallel_sentences": sentences,
        "lambda": classes.attrs["lambda"],
        "lambda_found": classes.attrs["lambda_found"],
        "activity_bar": specific.attrs["activity_bar"],
        "per_layer": {
            key: {
                str(value): found.sel({"class": value}).round(2).to_numpy().tolist() for value in found["class"].to_numpy()
            }
            for key, found in counts.items()
        },
        "statistics_s": statistics_s,
        "sharing_s": sharing_s,
    }


def parallel_rows(lake: Any, labels: Any) -> Parallel:
    """Find the sentences that every language has, by their names, and their labelled rows."""
    table = lake.sentences()
    names, known = np.array(table.column("name").to_pylist()), table.column("sentence").to_numpy()
    place = np.searchsorted(known, np.where(labels.codes >= 0, labels.sentences, known[0]))  # sentences come in order
    inputs, of_name = np.unique(names, return_inverse=True)
    languages = len(labels.tags)
    groups = np.where(labels.codes >= 0, of_name[place] * languages + labels.codes, -1)
    tokens = np.bincount(groups[groups >= 0], minlength=len(inputs) * languages).reshape(-1, languages)
    everywhere = (tokens > 0).all(axis=1)
    renumbered = np.where(everywhere, np.cumsum(everywhere) - 1, -1)[of_name[place]]
    groups = np.where((labels.codes >= 0) & (renumbered >= 0), renumbered * languages + labels.codes, -1)
    return Parallel(groups=groups, tokens=tokens[everywhere].ravel(), languages=languages)


def shared_by_layer(lake: Any, blocks: tuple[int, ...], parallel: Parallel) -> dict[str, xr.DataArray]:
    """Neurons per category of 2406.09265, averaged over the sentences: `VIEWS` → float64 (layer, class)."""
    from neuronlake.analysis.selective import CATEGORIES, SharedCategories

    found: dict[str, list[Any]] = {view: [] for view in VIEWS}
    values = np.empty((lake.block_rows, lake.neurons), dtype=np.float32)
    for layer in lake.layers:
        shape = (len(parallel.tokens), lake.neurons)
        active = {"last": np.zeros(shape, dtype=np.bool_), "most": np.zeros(shape, dtype=np.int32)}
        for position, block in enumerate(blocks):
            lake.read_block(layer=layer, block=block, out=values)
            groups = parallel.groups[position * lake.block_rows : (position + 1) * lake.block_rows]
            rows = np.flatnonzero(groups >= 0)
            rows = rows[np.argsort(groups[rows], kind="stable")]  # by group, in text order within it
            of_group, starts = np.unique(groups[rows], return_index=True)
            above = values[rows] > 0
            active["most"][of_group] += np.add.reduceat(above, starts, axis=0, dtype=np.int32)
            active["last"][of_group] = above[np.append(starts[1:], len(rows)) - 1]
        active["most"] = 2 * active["most"] > parallel.tokens[:, None]
        for view in VIEWS:
            categories = SharedCategories(languages=parallel.languages, neurons=lake.neurons)
            categories.add(active[view].reshape(-1, parallel.languages, lake.neurons))
            found[view].append(categories.shares().sum(axis=1))
    coords = {"layer": list(lake.layers), "class": list(CATEGORIES)}
    return {view: xr.DataArray(np.stack(shares), dims=("layer", "class"), coords=coords) for view, shares in found.items()}


def _draw(counts: dict[str, xr.DataArray], titles: dict[str, str], name: str, pictures: Path) -> None:
    from neuronlake.analysis.figures import layer_class_counts

    for key, found in counts.items():
        # agnostic neurons are nearly all: beside them nothing else would be seen
        shown = found.drop_sel({"class": "agnostic"}) if key == "classes" else found
        if shown.sizes["class"] <= 8:  # more cannot be told apart in one picture
            whole = shown.round().astype(np.int64)  # averages over sentences are not
            layer_class_counts(whole, pictures / f"{name}-{key}.png", title=f"{titles[key]}, {name}")


def _print_layers(layers: tuple[int, ...], counts: dict[str, xr.DataArray], titles: dict[str, str]) -> None:
    """Print one table per group of classes, a line per layer and one for all."""
    for key, found in counts.items():
        print(f"{titles[key]}\n\n| layer | {' | '.join(str(name) for name in found['class'].to_numpy())} |")
        print("|" + "---|" * (1 + found.sizes["class"]))
        for layer, line in zip(layers, found.transpose("layer", "class").to_numpy(), strict=True):
            print(f"| {layer} | {' | '.join(f'{value:,.0f}' for value in line)} |")
        print(f"| all | {' | '.join(f'{value:,.0f}' for value in found.sum('layer').to_numpy())} |\n")


def _print_most_selective(statistics: xr.Dataset, specific: xr.Dataset) -> None:
    """Print each language's assigned neuron whose activity is most its own, and its share of active tokens everywhere."""
    from neuronlake.analysis import neuron_name

    active = statistics["fraction_active"]
    own = (active / active.sum("tag").where(lambda total: total > 0, 1)).where(specific["assigned"], -1)
    tags = [str(tag) for tag in statistics["tag"].to_numpy()]
    print(f"| most selective neuron | of | {' | '.join(tags)} |\n|{'---|' * (2 + len(tags))}")
    for tag in tags:
        best = own.sel(tag=tag).argmax(("layer", "neuron"))
        if own.sel(tag=tag)[best] >= 0:
            where = {dim: int(own[dim][best[dim]]) for dim in ("layer", "neuron")}
            shares = active.sel(where).to_numpy()
            print(f"| {neuron_name(**where)} | {tag} | {' | '.join(f'{share:.2f}' for share in shares)} |")
