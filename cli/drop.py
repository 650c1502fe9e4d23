"""`neuronlake drop`: free the disk of sites or results that are no longer wanted."""

import argparse
import sys
from typing import Any

from rich.markup import escape

from neuronlake.cli.common import add_command, add_lake, messages, output, print_json, size
from neuronlake.store import InputError, open_lake
from neuronlake.store.kept import KEPT

_EXAMPLES = """
neuronlake drop my.lake --site resid.post            # asks; interrupted, the same command finishes
neuronlake drop my.lake --site mlp.gate mlp.up --yes
neuronlake drop my.lake --kept statistics covariances --yes    # made again by the next question
"""


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "drop", "remove sites, or results that can be made again, from a lake", _EXAMPLES)
    add_lake(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--site", nargs="+", metavar="SITE", help="activations of these sites; only extraction brings them back"
    )
    what.add_argument("--kept", nargs="+", metavar="KIND", help=f"kept results: {', '.join(KEPT)}")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=_drop)


def _drop(options: argparse.Namespace) -> int:
    from neuronlake.store.dropping import bytes_of_site, check_drop, drop_results, drop_sites

    root = options.lake
    lake = open_lake(root)
    if options.site:
        sites = check_drop(lake, options.site)
        what = ", ".join(f"{site} ({size(bytes_of_site(lake, site))})" for site in sites)
        if sites and not _confirmed(options, f"drop {what} of {root}? Only another extraction brings it back"):
            return 1
    elif not _confirmed(options, f"drop all {', '.join(options.kept)} that {root} keeps?"):
        return 1
    try:
        report = drop_sites(root, options.site) if options.site else drop_results(root, options.kept)
    except KeyboardInterrupt:
        print("neuronlake: interrupted; the lake is whole: run the same command again to finish", file=sys.stderr)
        return 130
    if options.json:
        print_json(report.as_dict())
        return 0
    dropped = [*report.sites, *report.results]
    shown = f"dropped {', '.join(dropped[:6])}{' …' if len(dropped) > 6 else ''}" if dropped else "nothing left to drop"
    output().print(f"{escape(shown)}: {size(report.bytes)} freed")
    return 0


def _confirmed(options: argparse.Namespace, question: str) -> bool:
    """Ask on the terminal, unless told not to."""
    if options.yes:
        return True
    if options.json or not sys.stdin.isatty():
        raise InputError("nobody can be asked here: add --yes to drop without a question")
    messages().print(f"{escape(question)} [y/N] ", end="", markup=False)
    answer = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not answer:
        print("neuronlake: nothing was changed", file=sys.stderr)
    return answer
