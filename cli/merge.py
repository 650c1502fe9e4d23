"""`neuronlake merge`: lakes of one model, put together without the model."""

import argparse
from typing import Any

from rich.markup import escape

from neuronlake.cli.common import add_command, lake_argument, output, print_json
from neuronlake.cli.copy import add_threads, copying, interrupted, show_copied

_EXAMPLES = """
neuronlake merge all.lake shard-0.lake shard-1.lake shard-2.lake    # one plan, extracted apart with --blocks or --shard
neuronlake merge both.lake news.lake fiction.lake                   # two texts of one model: fiction's documents follow
"""


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "merge", "put lakes of one model together, without encoding again; run again to go on", _EXAMPLES
    )
    parser.add_argument("target", metavar="OUT", type=lake_argument, help="new folder or URL, or an earlier merge")
    parser.add_argument("sources", metavar="LAKE", type=lake_argument, nargs="+", help="two lakes at least, in this order")
    parser.add_argument("--no-index", action="store_true", help="leave the index: `neuronlake index` makes it again")
    add_threads(parser)
    parser.set_defaults(run=_merge)


def _merge(options: argparse.Namespace) -> int:
    from neuronlake.store.merging import merge_lakes

    try:
        with copying("merging") as progress:
            report = merge_lakes(
                options.target,
                options.sources,
                index=not options.no_index,
                threads=options.threads,
                progress=progress,
            )
    except KeyboardInterrupt:
        return interrupted()
    if options.json:
        print_json(report.as_dict())
        return 0
    kind = "parts of one plan" if report.same_plan else "different texts, one after the other"
    output().print(f"{len(report.parts)} lakes, {kind}: {len(report.blocks)} of {report.planned} blocks are there")
    show_copied(report, index=not options.no_index)
    if len(report.blocks) < report.planned:
        output().print(f"the rest: finish the lakes ({escape(', '.join(report.parts))}) and run the same command again")
    return 0
