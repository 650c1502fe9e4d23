"""`neuronlake copy`: a lake to another place, every byte checked on the way."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from neuronlake.cli.common import add_command, lake_argument, messages, output, print_json, size

if TYPE_CHECKING:
    from neuronlake.store.copying import CopyReport
    from neuronlake.store.copying import Progress as Report

_EXAMPLES = """
neuronlake copy my.lake /backup/my.lake
neuronlake copy s3://bucket/my.lake my.lake              # stopped, it goes on when run again
neuronlake copy my.lake s3://bucket/my.lake --no-kept    # results that can be made again stay behind
neuronlake copy big.lake sample.lake --blocks 0:8
"""


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "copy", "copy a lake between folders and object stores; run again to go on", _EXAMPLES)
    parser.add_argument(
        "source", metavar="SRC", type=lake_argument, help="folder or URL of the lake; it may be written to meanwhile"
    )
    parser.add_argument("target", metavar="DST", type=lake_argument, help="new folder or URL, or an earlier copy")
    parser.add_argument("--blocks", type=block_range, metavar="A:B", help="only blocks A to B-1 (of those committed)")
    parser.add_argument("--no-index", action="store_true", help="leave the index: `neuronlake index` makes it again")
    parser.add_argument("--no-kept", action="store_true", help="leave kept statistics, weights, covariances, attribution")
    add_threads(parser)
    parser.set_defaults(run=_copy)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how many files are copied at once."""
    parser.add_argument("--threads", type=_positive, default=8, metavar="N", help="files copied at once (default: 8)")


def block_range(text: str) -> tuple[int, int]:
    """A range of blocks, for argparse."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"expected FIRST:LAST, for example 0:8, got {text!r}")
    return int(first), int(last)


@contextmanager
def copying(what: str) -> Iterator["Report"]:
    """Show how many bytes are copied, and say after an interruption how to go on."""
    console = messages()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def interrupted() -> int:
    """Say that nothing is lost, and return the exit code."""
    print(
        "neuronlake: interrupted; blocks copied so far are committed: run the same command again to go on", file=sys.stderr
    )
    return 130


def show_copied(report: "CopyReport", *, index: bool) -> None:
    """Print what was copied, and what was not."""
    console = output()
    console.print(
        f"{escape(report.target)}: {len(report.copied)} of {len(report.blocks)} blocks copied now, {report.files:,} files, "
        f"{size(report.bytes)}, each as its record promises"
    )
    if report.differing:
        console.print(
            f"[yellow]kept[/yellow] {len(report.differing)} blocks that were there with other bytes (computed elsewhere): "
            f"{', '.join(map(str, report.differing[:6]))}{' …' if len(report.differing) > 6 else ''}"
        )
    if report.results:
        console.print(f"with {escape(', '.join(report.results[:6]))}{' …' if len(report.results) > 6 else ''}")
    for line in report.left:
        console.print(f"[yellow]left[/yellow] {escape(line)}")
    if index and any(line.startswith("index/blocks-") for line in report.left):
        console.print(f"`neuronlake index {escape(report.target)}` makes the index")


def _copy(options: argparse.Namespace) -> int:
    from neuronlake.store.copying import copy_lake

    try:
        with copying("copying") as progress:
            report = copy_lake(
                options.source,
                options.target,
                blocks=options.blocks,
                index=not options.no_index,
                kept=not options.no_kept,
                threads=options.threads,
                progress=progress,
            )
    except KeyboardInterrupt:
        return interrupted()
    if options.json:
        print_json(report.as_dict())
    else:
        show_copied(report, index=not options.no_index)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 256, got {text!r}")
    return int(text)
