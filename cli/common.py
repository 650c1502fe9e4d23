"""What the commands share: options, output, consoles."""

import argparse
import json
import math
from typing import Any

from rich.console import Console
from rich.table import Table

from neuronlake.store.errors import InputError
from neuronlake.store.markup import size as size
from neuronlake.store.objects import LakePath, lake_path


def add_command(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """Add a sub-command with examples in its help and the options that every command has."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "".join(f"  {line.strip()}\n" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_lake(parser: argparse.ArgumentParser) -> None:
    """Add the LAKE argument."""
    parser.add_argument(
        "lake", metavar="LAKE", type=lake_argument, help="folder of the lake, or its URL: s3://…, gs://…, az://…"
    )


def lake_argument(text: str) -> LakePath:
    """Return the path of a lake from what the command line says."""
    try:
        return lake_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def messages() -> Console:
    """Console for progress and remarks: standard error, so that output can be piped."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def output() -> Console:
    """Console for results."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # a pipe or a file has no width to fit into: rich would assume 80 and cut the tables
    return console


def print_json(result: Any) -> None:
    """Print a result as JSON. Not-a-number has no place in JSON and would be a bug of ours: it raises."""
    print(json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False))


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table; a column whose name starts with ``>`` is right-aligned."""
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        result.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return result


def number(value: float | None, digits: int = 3) -> str:
    """Format a score; an absent one is a dash."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3g}"


def p_value(value: float | None) -> str:
    """Format a p or q value; what underflows is said to be small, not zero."""
    if value is None:
        return "–"
    return "<1e-300" if value < 1e-300 else f"{value:.1e}"
