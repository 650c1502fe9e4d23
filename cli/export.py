"""`neuronlake column` and `rows`: values as files, of some neurons over all tokens, or of some tokens over all neurons."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.markup import escape

from neuronlake.cli.common import add_command, number, output, size, table
from neuronlake.cli.questions import add_asked_lake, open_for_question, parse_where, print_answer
from neuronlake.cli.tokens import add_token_choice, chosen_tokens
from neuronlake.store import InputError


def add_commands(commands: Any) -> None:
    """Add the commands."""
    _add_column(commands)
    _add_rows(commands)


def _add_column(commands: Any) -> None:
    parser = add_command(
        commands,
        "column",
        "write all values of some neurons with their tokens, or show a summary and the first lines",
        "neuronlake column my.lake L12.N345 --labels upos\n"
        "neuronlake column my.lake L12.N345 L0.N97 --labels upos deprel --out two.parquet\n"
        "neuronlake column my.lake L12.N345 --where \"upos='VERB'\" --out verbs.npy      # and verbs.rows.npy",
    )
    add_asked_lake(parser)
    parser.add_argument("neurons", nargs="+", metavar="NEURON", help="layer and neuron, as in L12.N345")
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help="label columns to add")
    parser.add_argument(
        "--where", metavar="LABEL=TAG|SQL", help="only tokens of words with that label, or that fulfil an SQL predicate"
    )
    parser.add_argument("--special", action="store_true", help="special tokens too (begin of sequence and the like)")
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="lines to show without --out (default: 10)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write them: .parquet, .csv, or .npy (values alone, and the rows beside)"
    )
    parser.set_defaults(run=_column)


def _column(options: argparse.Namespace) -> int:
    from neuronlake.analysis import parse_neuron, write_columns
    from neuronlake.analysis.neuron_columns import SUFFIXES, column_tables
    from neuronlake.analysis.outputs import check_new

    if options.out is not None:
        check_new(options.out, SUFFIXES)
    if options.limit < 0:
        raise InputError(f"limit must be at least 0, got {options.limit}")
    lake = open_for_question(options.lake, options.site)
    neurons = [parse_neuron(name, lake) for name in options.neurons]
    question: dict[str, Any] = {
        "labels": options.labels,
        "where": parse_where(options.where),
        "special": options.special,
    }
    if options.out is not None:
        lines = write_columns(lake, options.out, neurons, **question)
        if options.json:
            print_answer(lake, {"out": str(options.out), "tokens": lines, "neurons": options.neurons})
        else:
            output().print(f"{lines:,} tokens × {len(neurons)} neurons written to {options.out}", markup=False)
        return 0
    summary, first = _summary(column_tables(lake, neurons, **question), options.limit)
    if options.json:
        print_answer(lake, {"neurons": summary, "first": first})
        return 0
    console = output()
    grid = table("neuron", ">tokens", ">mean", ">deviation", ">least", ">greatest")
    for entry in summary:
        scores = (number(entry[name]) for name in ("mean", "deviation", "least", "greatest"))
        grid.add_row(entry["name"], f"{entry['tokens']:,}", *scores)
    console.print(grid)
    if first:
        names = [entry["name"] for entry in summary]
        grid = table(">row", "token", *options.labels, *(f">{name}" for name in names))
        for line in first:
            grid.add_row(
                str(line["row"]),
                escape(line["token"]),
                *(escape(str(line[label] or "–")) for label in options.labels),
                *(number(line[name]) for name in names),
            )
        console.print()
        console.print(grid)
    return 0


def _summary(parts: Iterable[Any], limit: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Moments of the neurons, float64, combined block by block (Chan, Golub and LeVeque, 1979); and the first lines."""
    import numpy as np

    count = 0
    first: list[dict[str, Any]] = []
    names: list[str] = []
    mean = squares = least = greatest = np.zeros(0)
    for part in parts:
        if not names:
            names = [field.name for field in part.schema if str(field.type) == "float"]
            mean, squares = np.zeros(len(names)), np.zeros(len(names))
            least, greatest = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        if not part.num_rows:
            continue
        first += part.slice(0, limit - len(first)).to_pylist()
        values = np.stack([part.column(name).to_numpy() for name in names], axis=1).astype(np.float64)
        here, total = values.mean(axis=0), count + len(values)
        step = here - mean
        squares = squares + ((values - here) ** 2).sum(axis=0) + step**2 * (count * len(values) / total)
        mean, count = mean + step * (len(values) / total), total
        least, greatest = np.minimum(least, values.min(axis=0)), np.maximum(greatest, values.max(axis=0))
    summary = [
        {
            "name": name,
            "tokens": count,
            "mean": float(mean[place]) if count else None,
            "deviation": float(np.sqrt(squares[place] / (count - 1))) if count > 1 else None,
            "least": float(least[place]) if count else None,
            "greatest": float(greatest[place]) if count else None,
        }
        for place, name in enumerate(names)
    ]
    return summary, first


def _add_rows(commands: Any) -> None:
    parser = add_command(
        commands,
        "rows",
        "write all neurons of some tokens: float32 (tokens, layers, neurons)",
        "neuronlake rows my.lake --form dog --out dog.npy           # and dog.rows.npy\n"
        "neuronlake rows my.lake --sentence 12 --out sentence.npz   # activations, rows, layers\n"
        "neuronlake rows my.lake --where \"upos='VERB'\" --layers 10 11 12 --out verbs.zarr",
    )
    add_asked_lake(parser)
    add_token_choice(parser)
    parser.add_argument("--layers", type=int, nargs="+", metavar="L", help="only these layers (default: all)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="file to write: .npy, .npz, .zarr or .parquet"
    )
    parser.set_defaults(run=_rows)


def _rows(options: argparse.Namespace) -> int:
    from neuronlake.analysis import write_token_activations
    from neuronlake.analysis.outputs import check_new
    from neuronlake.analysis.token_rows import SUFFIXES

    check_new(options.out, SUFFIXES)
    lake = open_for_question(options.lake, options.site)
    shape = write_token_activations(lake, chosen_tokens(lake, options), options.out, layers=options.layers)
    if options.json:
        chosen = sorted(set(options.layers)) if options.layers else list(lake.layers)
        print_answer(lake, {"out": str(options.out), "shape": list(shape), "layers": chosen})
        return 0
    tokens, layers, neurons = shape
    volume = size(4 * tokens * layers * neurons)
    output().print(
        f"{tokens:,} tokens × {layers} layers × {neurons:,} neurons ({volume}) written to {options.out}", markup=False
    )
    return 0
