"""`neuronlake top` and `coactivation`."""

import argparse
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from neuronlake.cli.common import add_command, number, output, table
from neuronlake.cli.questions import (
    add_asked_lake,
    add_scheduler,
    on_scheduler,
    open_for_question,
    parse_where,
    print_answer,
    progress_bar,
)

_LABEL_WIDTH = 20  # characters of a label on a terminal: the context beside it is what is read


def add_commands(commands: Any) -> None:
    """Add the commands."""
    _add_top(commands)
    _add_coactivation(commands)


def _add_top(commands: Any) -> None:
    parser = add_command(
        commands,
        "top",
        "show the tokens that fire a neuron most, in context",
        "neuronlake top my.lake L12.N345 -k 20\n"
        "neuronlake top my.lake L12.N345 --bottom --where upos=NOUN --json\n"
        "neuronlake top my.lake L12.N345 --where \"upos='VERB' AND deprel='root'\" --per-document 1\n"
        "neuronlake top my.lake 'L12.N345*0.7' 'L3.N10*-0.2'           # a weighted sum of neurons",
    )
    add_asked_lake(parser)
    parser.add_argument(
        "neurons",
        nargs="+",
        metavar="NEURON",
        help="layer and neuron, as in L12.N345; several, or NEURON*WEIGHT, are added up",
    )
    parser.add_argument("-k", type=int, default=20, metavar="N", help="how many tokens (default: 20)")
    parser.add_argument("--bottom", action="store_true", help="the lowest values instead of the highest")
    parser.add_argument(
        "--where", metavar="LABEL=TAG|SQL", help="only tokens of words with that label, or that fulfil an SQL predicate"
    )
    parser.add_argument("--per-document", type=int, metavar="M", help="at most so many tokens of one document")
    parser.add_argument("--special", action="store_true", help="special tokens too (begin of sequence and the like)")
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help="label columns to show")
    parser.set_defaults(run=_top)


def _top(options: argparse.Namespace) -> int:
    from neuronlake.analysis import parse_weights, top_tokens, top_tokens_weighted

    lake = open_for_question(options.lake, options.site)
    weights = parse_weights(options.neurons, lake)
    settings: dict[str, Any] = {
        "bottom": options.bottom,
        "where": parse_where(options.where),
        "per_document": options.per_document,
        "labels": options.labels,
        "special": options.special,
    }
    if list(weights.values()) == [1.0]:
        found = top_tokens(lake, *next(iter(weights)), options.k, **settings)
    else:
        found = top_tokens_weighted(lake, weights, options.k, **settings)
    if options.json:
        print_answer(lake, found)
        return 0
    print_tokens(found, options.labels)
    return 0


def print_tokens(
    entries: Sequence[dict[str, Any]], labels: Sequence[str], *, rows: bool = False, value: str = "value"
) -> None:
    """Print tokens in context; what does not fit on the terminal is taken from the context, never from the values."""
    console = output()
    longest = _LABEL_WIDTH if console.is_terminal else None
    columns = {f">{value}": [number(entry[value]) for entry in entries]}
    if rows:
        columns[">row"] = [str(entry["row"]) for entry in entries]
    columns |= {label: [_shortened(str(entry["labels"][label] or "–"), longest) for entry in entries] for label in labels}
    taken = sum(2 + max(map(cell_len, [title.lstrip(">"), *cells])) for title, cells in columns.items())
    width = context_width(console, entries, taken)
    grid = table(*columns, "context")
    grid.columns[-1].no_wrap = False  # rich narrows such columns first, should characters be wider than one cell
    for place, entry in enumerate(entries):
        text = Text.from_markup(context(entry, width), overflow="ellipsis")
        text.no_wrap = True
        grid.add_row(*(escape(cells[place]) for cells in columns.values()), text)
    console.print(grid)


def context_width(console: Console, entries: Sequence[dict[str, Any]], taken: int) -> int:
    """Characters of context on either side of a token that fit beside `taken` cells."""
    longest = max((cell_len(entry["token"]) for entry in entries), default=0)
    return max(10, min(60, (console.width - taken - longest - 4) // 2))  # four cells for the marks and the dots


def _shortened(text: str, longest: int | None) -> str:
    return text if longest is None or len(text) <= longest else f"{text[: longest - 1]}…"


def context(entry: dict[str, Any], width: int = 60) -> str:
    """Return a token's sentence as console markup: the token highlighted, `width` characters kept on either side."""
    text, token, start = entry["context"], entry["token"], entry["start"]
    if start is None:
        return f"[dim](special token)[/dim] {escape(text[:width])}"
    before, after = text[:start], text[start + len(token) + 2 :]  # two marks; a sentence may have others of its own
    bare = token.lstrip() or token  # a leading space belongs to the token, but looks wrong inside the marks
    before, token = before + token[: len(token) - len(bare)], bare
    before = f"…{before[-width:]}" if len(before) > width else before
    after = f"{after[:width]}…" if len(after) > width else after
    # the marks stay: a pipe, a log and a screen reader show no bold
    return f"[dim]{escape(before)}[/dim][bold]«{escape(token)}»[/bold][dim]{escape(after)}[/dim]"


def _add_coactivation(commands: Any) -> None:
    parser = add_command(
        commands,
        "coactivation",
        "show the neurons that correlate most with a neuron, of all neurons, over all tokens",
        "neuronlake coactivation my.lake L12.N345 --top 20\n"
        "neuronlake coactivation my.lake L12.N345 --where \"upos='NOUN'\" --json",
    )
    add_asked_lake(parser)
    parser.add_argument("neuron", metavar="NEURON", help="layer and neuron, as in L12.N345")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many neurons (default: 20)")
    parser.add_argument("--where", metavar="SQL", help="only tokens that fulfil an SQL predicate")
    parser.add_argument("--special", action="store_true", help="special tokens too (begin of sequence and the like)")
    add_scheduler(parser)
    parser.set_defaults(run=on_scheduler(_coactivation))


def _coactivation(options: argparse.Namespace) -> int:
    from neuronlake.analysis import coactivation, parse_neuron
    from neuronlake.analysis.correlation import strongest

    lake = open_for_question(options.lake, options.site)
    neuron = parse_neuron(options.neuron, lake)
    with progress_bar("correlating with all neurons") as report:
        correlations = coactivation(
            lake,
            neuron,
            where=options.where,
            special=options.special,
            scheduler=options.scheduler,
            progress=report,
        )
    (found,) = strongest(correlations, options.top)
    if options.json:
        print_answer(lake, found)
        return 0
    grid = table("neuron", ">correlation")
    for entry in found:
        grid.add_row(entry["name"], number(entry["correlation"]))
    output().print(grid)
    return 0
