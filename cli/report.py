"""`neuronlake report`: the explorer's views as one file."""

import argparse
from pathlib import Path
from typing import Any

from neuronlake.cli.common import add_command, output, print_json, size
from neuronlake.cli.questions import add_asked_lake, open_for_question, progress_bar
from neuronlake.store.errors import InputError


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "report",
        "write what `serve` shows as one HTML file",
        "neuronlake report my.lake --out supplement.html\n"
        "neuronlake report my.lake --out nouns.html --tags NOUN PROPN --ranked 50 --shown 10 --neurons L12.N345",
    )
    add_asked_lake(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="HTML file to write; it must not exist")
    parser.add_argument("--by", metavar="LABEL", help="label whose statistics are kept (default: upos, or else the first)")
    parser.add_argument("--method", default="auroc", metavar="NAME", help="ranking, from kept statistics (default: auroc)")
    parser.add_argument("--tags", nargs="+", metavar="TAG", help="tags with a ranking (default: all)")
    parser.add_argument("--ranked", type=int, default=20, metavar="N", help="neurons in every ranking (default: 20)")
    parser.add_argument(
        "--shown", type=int, default=3, metavar="N", help="neurons per tag with a section of their own (default: 3)"
    )
    parser.add_argument("--neurons", nargs="+", default=[], metavar="NEURON", help="more of them, as in L12.N345")
    parser.add_argument("-k", type=int, default=8, metavar="N", help="tokens of each list (default: 8)")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    try:
        from neuronlake.analysis.explorer.report import write_report
    except ModuleNotFoundError as error:
        raise InputError(f"report needs the package {error.name}: pip install 'neuronlake[explore]'") from None

    lake = open_for_question(options.lake, options.site)
    with progress_bar("neurons") as report:
        path = write_report(
            lake, options.out, by=options.by, method=options.method, tags=options.tags, ranked=options.ranked,
            shown=options.shown, neurons=options.neurons, contexts=options.k, progress=report,
        )  # fmt: skip
    written = path.stat().st_size
    if options.json:
        print_json({"path": str(path), "bytes": written})
    else:
        output().print(f"written to {options.out}, {size(written)}", markup=False)
    return 0
