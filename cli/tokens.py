"""`neuronlake tokens` and `neurons`: the tokens that a neuron fires on, and the neurons that fire on tokens."""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from neuronlake.cli.analyse import context, context_width, print_tokens
from neuronlake.cli.common import add_command, messages, number, output, table
from neuronlake.cli.questions import (
    add_asked_lake,
    add_pass_options,
    on_scheduler,
    open_for_question,
    parse_where,
    print_answer,
    progress_bar,
)
from neuronlake.store import InputError, Lake

if TYPE_CHECKING:
    from neuronlake.analysis import TokensBeyond
    from neuronlake.analysis.chosen_rows import ChosenRows

_SHOWN = 100  # lines on a terminal unless --limit says otherwise
_EXAMPLES = 3  # tokens shown above a list of neurons
_LINES = 1 << 15  # of a file, described at a time


def add_commands(commands: Any) -> None:
    """Add the commands."""
    _add_tokens(commands)
    _add_neurons(commands)


def add_token_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that name tokens: one of row, sentence, form and filter."""
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--row", type=int, nargs="+", metavar="R", help="tokens by row, as `neuronlake tokens` lists them")
    choice.add_argument("--sentence", type=int, metavar="S", help="all tokens of a sentence")
    choice.add_argument("--form", metavar="WORD", help="all occurrences of a word, spelt exactly so")
    choice.add_argument(
        "--where",
        metavar="LABEL=TAG|SQL",
        help="tokens of words with that label, or for which SQL is true, e.g. \"lower(form)='dog'\"",
    )
    parser.add_argument(
        "--subword", choices=("last", "first", "all"), default="last", help="tokens of a --form that count (default: last)"
    )
    parser.add_argument("--special", action="store_true", help="special tokens too, of --sentence and --where")


def chosen_tokens(lake: Lake, options: argparse.Namespace) -> "ChosenRows":
    """Return the tokens that the options name."""
    from neuronlake.analysis import choose_tokens

    return choose_tokens(
        lake,
        rows=options.row,
        sentence=options.sentence,
        form=options.form,
        where=parse_where(options.where),
        subword=options.subword,
        special=options.special,
    )


def _add_tokens(commands: Any) -> None:
    parser = add_command(
        commands,
        "tokens",
        "list all tokens on which a neuron is above or below a threshold, in context",
        "neuronlake tokens my.lake L12.N345 --above 2.0\n"
        "neuronlake tokens my.lake L12.N345 --above 2.0 --count\n"
        "neuronlake tokens my.lake L12.N345 --below -1 --where upos=NOUN --per-document 1 --labels upos deprel\n"
        "neuronlake tokens my.lake L12.N345 --above 0.5 --by-row --out tokens.parquet",
    )
    add_asked_lake(parser)
    parser.add_argument("neuron", metavar="NEURON", help="layer and neuron, as in L12.N345")
    parser.add_argument("--above", type=float, metavar="X", help="values greater than this")
    parser.add_argument("--below", type=float, metavar="X", help="values less than this; with --above: between the two")
    parser.add_argument(
        "--where", metavar="LABEL=TAG|SQL", help="only tokens of words with that label, or that fulfil an SQL predicate"
    )
    parser.add_argument("--per-document", type=int, metavar="M", help="at most so many tokens of one document")
    parser.add_argument(
        "--limit", type=int, metavar="N", help=f"show only the first N (default: all; {_SHOWN} on a terminal)"
    )
    parser.add_argument("--by-row", action="store_true", help="in the order of the text instead of by value")
    parser.add_argument("--count", action="store_true", help="only how many there are")
    parser.add_argument("--special", action="store_true", help="special tokens too (begin of sequence and the like)")
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help="label columns to show")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write them: .parquet or .csv")
    parser.set_defaults(run=_tokens)


def _tokens(options: argparse.Namespace) -> int:
    from neuronlake.analysis import describe_lines, parse_neuron, tokens_above, top_tokens
    from neuronlake.analysis.outputs import check_new

    if options.out is not None:
        if options.count:
            raise InputError("--count writes no file: leave --out out")
        check_new(options.out, (".parquet", ".csv"))
    lake = open_for_question(options.lake, options.site)
    layer, neuron = parse_neuron(options.neuron, lake)
    for label in options.labels:
        if label not in lake.label_columns:
            raise InputError(f"no label column {label!r}: known are {', '.join(lake.label_columns)}")
    console = output()
    limit = options.limit
    if limit is None and console.is_terminal and not options.json and options.out is None:
        limit = _SHOWN
    found = tokens_above(
        lake,
        layer,
        neuron,
        options.above,
        below=options.below,
        where=parse_where(options.where),
        per_document=options.per_document,
        limit=limit,
        by_row=options.by_row,
        special=options.special,
    )
    if options.count or options.out is not None:
        if options.out is not None:
            _write_tokens(lake, found, options.out, options.labels, options.neuron)
        if options.json:
            print_answer(
                lake, {"tokens": found.total, "out": options.out and str(options.out), "chunks_read": len(found.blocks_read)}
            )
        elif options.out is not None:
            console.print(f"{len(found.lines):,} tokens written to {options.out}", markup=False)
        else:
            console.print(f"{found.total:,} tokens")
        return 0
    described = describe_lines(lake, found.lines, found.values, options.labels)
    if options.json:
        print_answer(lake, described)
        return 0
    if not described:
        bottom = options.above is None
        nearest = top_tokens(
            lake, layer, neuron, 1, bottom=bottom, where=parse_where(options.where), special=options.special
        )
        for entry in nearest:
            console.print(f"no token: the {'lowest' if bottom else 'highest'} value is {number(entry['value'])}")
        return 0
    print_tokens(described, options.labels, rows=True)
    if found.total > len(described):
        messages().print(f"{len(described):,} of {found.total:,} tokens: --limit N shows more, --out FILE writes all")
    return 0


def _write_tokens(lake: Lake, found: "TokensBeyond", path: Path, labels: list[str], neuron: str) -> None:
    """Write tokens with their text, some at a time."""
    import pyarrow as pa

    from neuronlake.analysis import describe_lines
    from neuronlake.analysis.outputs import table_writer

    kinds = {
        "row": pa.int64(),
        "value": pa.float32(),
        "token": pa.string(),
        "context": pa.string(),
        "document": pa.int64(),
        "sentence": pa.int64(),
        "special": pa.bool_(),
    }
    for label in labels:
        if label in kinds:
            raise InputError(f"the table would have two columns {label!r}: leave the label out")
    schema = pa.schema([*kinds.items(), *((label, pa.string()) for label in labels)])
    with table_writer(path, schema, {"lake": lake.fingerprint, "site": lake.site, "neuron": neuron}) as writer:
        for first in range(0, len(found.lines), _LINES):
            here = slice(first, first + _LINES)
            lines = [
                {**entry, **entry.get("labels", {})}
                for entry in describe_lines(lake, found.lines[here], found.values[here], labels)
            ]
            writer.write_table(pa.Table.from_pylist(lines, schema=schema))


def _add_neurons(commands: Any) -> None:
    parser = add_command(
        commands,
        "neurons",
        "list the neurons that fire on a token, or on some tokens more than on all others",
        "neuronlake neurons my.lake --row 4711                     # the strongest of one token\n"
        "neuronlake neurons my.lake --form dog                     # mean on 'dog' against all words, in deviations\n"
        "neuronlake neurons my.lake --form dog --score hits        # how often among the 32 strongest of a token\n"
        "neuronlake neurons my.lake --where \"upos='VERB' AND Tense='Past'\" --layer 12 --json",
    )
    add_asked_lake(parser)
    add_token_choice(parser)
    parser.add_argument("--layer", type=int, metavar="L", help="neurons of this layer only")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many neurons (default: 20)")
    parser.add_argument(
        "--score",
        choices=("strongest", "difference", "hits"),
        help="strongest: by magnitude, of one token (default for one --row); difference: (mean on the tokens − mean on all "
        "words) / standard deviation on all words (default otherwise; takes a pass over the lake, once); hits: "
        "in how many of the tokens a neuron is among the 32 strongest, against the share of all tokens (index only)",
    )
    add_pass_options(parser)
    parser.set_defaults(run=on_scheduler(_neurons))


def _neurons(options: argparse.Namespace) -> int:
    from neuronlake.analysis import firing_neurons, strongest_neurons
    from neuronlake.analysis.firing import check_k

    check_k(options.top)
    lake = open_for_question(options.lake, options.site)
    tokens = chosen_tokens(lake, options)
    layers = None if options.layer is None else [options.layer]
    one = options.row is not None and tokens.count == 1
    score = options.score or ("strongest" if one else "difference")
    if score == "strongest":
        if tokens.count != 1:
            raise InputError(f"--score strongest is of one token, got {tokens.count}: take difference or hits")
        found = strongest_neurons(lake, int(tokens.rows[0]), options.top, layers=layers)
    else:
        passes = progress_bar("statistics of all words") if score == "difference" else nullcontext(None)
        with passes as report:
            found = firing_neurons(
                lake,
                tokens,
                options.top,
                score=score,
                layers=layers,
                keep=not options.no_keep,
                scheduler=options.scheduler,
                progress=report,
            )
    examples = _examples(lake, tokens)
    if options.json:
        print_answer(lake, {"tokens": tokens.count, "score": score, "examples": examples, "neurons": found})
        return 0
    _print_neurons(tokens.count, score, examples, found)
    return 0


def _examples(lake: Lake, tokens: "ChosenRows") -> list[dict[str, Any]]:
    """First tokens, without a value."""
    import numpy as np

    from neuronlake.analysis import describe_lines

    lines = np.concatenate(
        [lake.blocks.index(block) * lake.block_rows + rows for block, rows in sorted(tokens.blocks.items())]
    )
    described = describe_lines(lake, lines[:_EXAMPLES], np.zeros(len(lines[:_EXAMPLES]), dtype=np.float32))
    return [{name: value for name, value in entry.items() if name not in ("rank", "value")} for entry in described]


def _print_neurons(count: int, score: str, examples: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    console = output()
    width = context_width(console, examples, 11)
    for entry in examples:
        console.print(f"{entry['row']:>9}  {context(entry, width)}")
    if count > len(examples):
        console.print(f"… {count:,} tokens in all")
    console.print()
    console.print(_neuron_table(score, found) if found else "no neuron")


def _neuron_table(score: str, found: list[dict[str, Any]]) -> Table:
    if score == "strongest":
        grid = table("neuron", ">value")
        for entry in found:
            grid.add_row(entry["name"], number(entry["value"]))
    elif score == "hits":
        grid = table("neuron", ">hits", ">share", ">share of all tokens", ">mean")
        for entry in found:
            grid.add_row(
                entry["name"], f"{entry['hits']:,}", *(number(entry[name]) for name in ("share", "share_all", "mean"))
            )
    else:
        grid = table("neuron", ">difference", ">mean", ">mean of all words", ">deviation")
        for entry in found:
            grid.add_row(
                entry["name"],
                number(entry["difference"], 2),
                *(number(entry[name]) for name in ("mean", "mean_all", "deviation_all")),
            )
    return grid
