"""`neuronlake label`: label columns for the words that a lake holds already."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from neuronlake.cli.common import add_command, add_lake, messages, output, print_json, size, table
from neuronlake.store import InputError, open_lake

if TYPE_CHECKING:
    from neuronlake.store.label_adding import LabelSettings
    from neuronlake.store.label_adding import Progress as Report
    from neuronlake.store.label_sets import LabelSet

_EXAMPLES = """
neuronlake label my.lake --spacy en_core_web_sm --prefix spacy_     # spacy_upos, spacy_deprel, spacy_entity …
neuronlake label my.lake --conllu reparsed.conllu.gz --columns deprel head --prefix new_
neuronlake label my.lake --parquet frequencies.parquet --name frequency    # column word, the lake's word numbers
neuronlake label my.lake --list
neuronlake label my.lake --remove frequency
"""
_ONLY_NEW = ("name", "prefix", "columns")


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "label", "add label columns to the words of a lake; no activation is read or written", _EXAMPLES
    )
    add_lake(parser)
    group = parser.add_argument_group("labels (one of)")
    kind = group.add_mutually_exclusive_group(required=True)
    kind.add_argument("--spacy", metavar="PIPE", help="run a spaCy pipeline (package or folder) over the lake's words")
    kind.add_argument(
        "--conllu",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="CoNLL-U files or folders, also .gz, with the lake's sentences and words in order",
    )
    kind.add_argument(
        "--parquet",
        type=Path,
        metavar="FILE",
        help="table (.parquet, .csv, .tsv, .jsonl) with a column word or row (numbers of the lake), or one line per word in "
        "order with its form; every other column is a label",
    )
    kind.add_argument("--list", action="store_true", help="list the label sets that were added")
    kind.add_argument("--remove", metavar="NAME", help="remove a label set")
    names = parser.add_argument_group("names")
    names.add_argument("--name", help="of the label set (default: the pipeline's or the file's)")
    names.add_argument("--prefix", metavar="P", help="put before the name of every column, e.g. spacy_ for spacy_upos")
    names.add_argument("--columns", nargs="+", metavar="COLUMN", help="only these columns of the source (default: all)")
    group.add_argument("--limit-sentences", type=_positive, metavar="N", help="of --conllu: only its first N sentences")
    parser.set_defaults(run=_label)


def _label(options: argparse.Namespace) -> int:
    _check_options(options)
    if options.list:
        return _list(options)
    if options.remove is not None:
        return _remove(options)
    added = _add(options)
    if options.json:
        print_json({"lake": str(options.lake), **added.as_dict()})
        return 0
    console, unit = output(), "words" if added.of == "words" else "tokens"
    grid = table("column", f">{unit} with a label")
    for column, count in added.labelled.items():
        grid.add_row(escape(column), f"{count:,}")
    console.print(grid)
    console.print(
        f"label set {escape(added.name)}: {len(added.columns)} column{'s' * (len(added.columns) > 1)} for the "
        f"{added.lines:,} {unit} of {escape(str(options.lake))}, {size(added.as_dict()['bytes'])}"
    )
    return 0


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    if options.list or options.remove is not None:
        for name in _ONLY_NEW:
            if getattr(options, name) is not None:
                raise InputError(f"--{name} has no effect with --{'list' if options.list else 'remove'}")
    if options.limit_sentences is not None and options.conllu is None:
        raise InputError("--limit-sentences has no effect without --conllu")


def _add(options: argparse.Namespace) -> "LabelSet":
    from neuronlake.store.label_adding import LabelSettings
    from neuronlake.store.label_table import label_from_table

    settings = LabelSettings(
        name=options.name,
        prefix=options.prefix or "",
        columns=None if options.columns is None else tuple(options.columns),
    )
    with _bar() as progress:
        if options.parquet is not None:
            return label_from_table(options.lake, options.parquet, settings, progress=progress)
        return _add_from_corpus(options, settings, progress)


def _add_from_corpus(options: argparse.Namespace, settings: "LabelSettings", progress: "Report") -> "LabelSet":
    from neuronlake.extractor.corpora import ConlluCorpus
    from neuronlake.extractor.labelling import label_with_conllu, label_with_spacy

    if options.spacy is not None:
        return label_with_spacy(options.lake, options.spacy, settings, progress=progress)
    corpus = ConlluCorpus(paths=tuple(options.conllu), limit_sentences=options.limit_sentences)
    return label_with_conllu(options.lake, corpus, settings, progress=progress)


def _list(options: argparse.Namespace) -> int:
    found = open_lake(options.lake).label_sets
    if options.json:
        print_json([labels.as_dict() for labels in found])
        return 0
    console = output()
    if not found:
        console.print(f"no labels were added to {escape(str(options.lake))}")
        return 0
    grid = table("set", "column", ">labelled", ">share", "source")
    for labels in found:
        for place, (column, count) in enumerate(labels.labelled.items()):
            grid.add_row(
                "" if place else f"[bold]{escape(labels.name)}[/bold]",
                escape(column),
                f"{count:,} {labels.of if labels.of == 'words' else 'tokens'}",
                f"{count / labels.lines:.1%}" if labels.lines else "–",
                "" if place else escape(_source(labels)),
            )
    console.print(grid)
    return 0


def _source(labels: "LabelSet") -> str:
    source = labels.source
    if source["kind"] == "spacy":
        return f"{source['pipeline']} {source['version']}, spaCy {source['spacy']}"
    names = [file["name"] for file in source["files"]]
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}" or "a table in memory"


def _remove(options: argparse.Namespace) -> int:
    from neuronlake.analysis.kept_statistics import discard_of_labels
    from neuronlake.store.label_sets import remove_label_set

    lake = open_lake(options.lake)  # its errors first: taking the lock makes the folder
    identity = remove_label_set(lake.path, options.remove)
    dropped = discard_of_labels(lake.path, identity) if identity is not None else []
    if options.json:
        print_json({"lake": str(options.lake), "removed": options.remove, "results": dropped})
        return 0
    also = f", and {len(dropped)} kept result{'s' * (len(dropped) > 1)} of its columns" if dropped else ""
    output().print(f"label set {escape(options.remove)} removed{also}")
    return 0


@contextmanager
def _bar() -> "Iterator[Report]":
    console = messages()
    with Progress(
        TextColumn("labelling"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=1)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)
