"""What the commands that question a lake share: label options, statistics with a progress bar."""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from neuronlake.cli.common import add_lake, messages, print_json
from neuronlake.store import InputError, Lake, open_lake
from neuronlake.store.objects import LakePath

if TYPE_CHECKING:
    import xarray as xr

METHODS = "auroc, average_precision, cohen_d, welch_t, mutual_information, lape …; --method help lists all"

_LABEL_IS = re.compile(r"([^\W\d][\w.:×]*)=([^\s'\"=<>()]+)")
"""``upos=NOUN``; anything else is SQL, where the tag would stand in quotes."""


def add_asked_lake(parser: argparse.ArgumentParser) -> None:
    """Add the LAKE argument and the choice of its site."""
    add_lake(parser)
    parser.add_argument(
        "--site", metavar="SITE", help="where in the model, of a lake of several sites (default: the first; see `info`)"
    )


def open_for_question(path: LakePath, site: str | None) -> Lake:
    """Open a lake at a site for a question, and say so if the answer will be of a part of its corpus only."""
    lake = open_lake(path).at(site)
    if not lake.blocks:
        raise InputError(f"{lake.path} has no committed block yet: run the `neuronlake extract` that began it again")
    if not lake.complete:
        messages().print(
            f"[yellow]note:[/yellow] {len(lake.blocks)} of {lake.plan.blocks} blocks are extracted; the answer is of these"
        )
    return lake


def print_answer(lake: Lake, answer: dict[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Print an answer as JSON: it, or every line of a list, names the site."""
    site = {"site": lake.site}
    print_json({**answer, **site} if isinstance(answer, dict) else [{**line, **site} for line in answer])


def parse_where(text: str | None) -> tuple[str, str] | str | None:
    """Return (label, tag) of ``LABEL=TAG``; anything else is SQL and stays as it is."""
    match = None if text is None else _LABEL_IS.fullmatch(text.strip())
    return text if match is None else (match[1], match[2])


def add_label_options(
    parser: argparse.ArgumentParser, *, where: bool = True, several: bool = False, shifts: bool = False
) -> None:
    """Add the options that say which tokens carry which label, or labels."""
    parser.add_argument(
        "--by",
        default=["upos"] if several else "upos",
        nargs="+" if several else None,
        metavar="LABEL",
        help="label column (default: upos; `neuronlake info` lists all), several joined by ×, or an SQL expression",
    )
    if where:
        parser.add_argument(
            "--where", metavar="SQL", help="only tokens for which this is true, e.g. \"upos='VERB' AND deprel='root'\""
        )
    parser.add_argument(
        "--subword", choices=("last", "first", "all"), default="last", help="tokens of a word that count (default: last)"
    )
    parser.add_argument(
        "--shift",
        type=int,
        default=[0] if shifts else 0,
        nargs="+" if shifts else None,
        metavar="K",
        help="read the label of the word K words later (default: 0)" + ("; several: one probe each" if shifts else ""),
    )


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    """Add the choice of where a pass over the lake runs; the command is to be run by `on_scheduler`."""
    parser.add_argument(
        "--scheduler",
        metavar="NAME|ADDRESS",
        help="where the lake is read: threads (default), processes, synchronous, or on a Dask cluster (tcp://…), whose "
        "workers see it under the same path",
    )


def on_scheduler(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return a command that connects to the cluster that it is given, if any, for all that it asks of it."""

    def connected_run(options: argparse.Namespace) -> int:
        if "://" not in (options.scheduler or ""):
            return run(options)
        from neuronlake.analysis.cluster import Cluster

        def say(message: str) -> None:
            if not options.json:
                messages().print(f"[dim]{message}[/dim]")

        with Cluster(options.scheduler, say=say) as cluster:
            if cluster.dashboard is not None:
                say(f"dashboard of the cluster: {cluster.dashboard}")
            options.scheduler = cluster
            return run(options)

    return connected_run


def add_pass_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a pass over the lake whose results are kept."""
    add_scheduler(parser)
    parser.add_argument("--no-keep", action="store_true", help="neither use nor keep results in the lake")


def permuted(
    lake: Lake, dataset: "xr.Dataset", method: str, *, permutations: int, seed: int, scheduler: Any = None
) -> "xr.Dataset":
    """Compute p-values from permuted labels, with a progress bar."""
    from neuronlake.analysis import permutation_test

    with progress_bar("permutations") as report:
        return permutation_test(
            lake,
            dataset,
            method,
            permutations=permutations,
            seed=seed,
            scheduler=scheduler,
            progress=report,
        )


def statistics(lake: Lake, options: argparse.Namespace, *, also: Iterable[str] = ()) -> "xr.Dataset":
    """Compute statistics, or load those that are kept, with a progress bar on the terminal."""
    return all_statistics(lake, options, [options.by], also=also)[0]


def all_statistics(
    lake: Lake, options: argparse.Namespace, labels: Sequence[str], *, also: Iterable[str] = ()
) -> list["xr.Dataset"]:
    """Compute the statistics of several labels, or load those that are kept, likewise."""
    from neuronlake.analysis import LabelRequest, compute_several

    console = messages()
    with progress_bar("statistics") as report:
        results = compute_several(
            lake,
            [LabelRequest(by=by, where=options.where, subword=options.subword, shift=options.shift) for by in labels],
            also=tuple(also),
            keep=not getattr(options, "no_keep", False),
            scheduler=getattr(options, "scheduler", None),
            progress=report,
        )
    kept = str(results[0].attrs.get("kept", ""))
    if kept.startswith("no: "):
        console.print(f"[yellow]note:[/yellow] the statistics were not kept: {kept.removeprefix('no: ')}", markup=True)
    return results


def refined(lake: Lake, dataset: "xr.Dataset", method: str, *, top: int, scheduler: Any = None) -> "xr.Dataset":
    """Make exact what a ranking's order rests on, with a progress bar."""
    from neuronlake.analysis import refine

    with progress_bar(f"exact {method}") as report:
        return refine(
            lake,
            dataset,
            method,
            top=top,
            scheduler=scheduler,
            progress=report,
        )


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, gone when it is done; give what is to be called with (done, total)."""
    console = messages()
    columns = TextColumn(title), BarColumn(bar_width=30), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
