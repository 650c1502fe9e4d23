"""`neuronlake index`."""

import argparse
from functools import partial
from typing import Any

from neuronlake.cli.common import add_command, add_lake, messages, output, print_json
from neuronlake.store import DamageError, complete_index, open_lake
from neuronlake.store.files import sizes_below
from neuronlake.store.kept import INDEX, discard, kept_record, kept_results
from neuronlake.store.lock import writing
from neuronlake.store.objects import LakePath


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "index",
        "make the index of a lake that lacks it; extract and import write it as they go",
        "neuronlake index my.lake\n"
        "neuronlake index my.lake --by upos deprel        # and list the top tokens of every tag × neuron",
    )
    add_lake(parser)
    parser.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="also list the highest and lowest tokens within every tag of these labels (columns, several joined by ×, or "
        "SQL), at every site, so that `top --where LABEL=TAG` reads no activations; extract does it for upos, at the first",
    )
    parser.set_defaults(run=_index)


def _index(options: argparse.Namespace) -> int:
    from neuronlake.analysis import complete_tag_lists

    open_lake(options.lake)  # its errors first: taking the lock makes the folder
    with writing(options.lake):
        removed = _remove_damaged(options.lake)
        lake = open_lake(options.lake)
        listed = {}
        with messages().status("indexing") as status:
            read = complete_index(lake, progress=lambda done, total: status.update(f"indexing: {done} of {total} blocks"))
            for by in options.by:
                said = partial("listing tokens by {}: {} of {} layers".format, by)
                listed[by] = max(
                    complete_tag_lists(lake.at(site), by, progress=lambda *done, said=said: status.update(said(*done)))
                    for site in lake.sites
                )
    stored = sum(sizes_below(lake.path / INDEX).values())
    activations = sum(file.bytes for commit in lake.commits for file in commit.files)
    if options.json:
        share = stored / max(activations, 1)
        print_json(
            {"blocks": len(lake.blocks), "read": read, "listed": listed, "removed": removed, "bytes": stored, "share": share}
        )
        return 0
    console = output()
    for name in removed:
        console.print(f"{INDEX}/{name} was damaged: removed", markup=False)
    console.print(f"{len(lake.blocks)} blocks indexed, {read} of them read now")
    for by, blocks in listed.items():
        console.print(f"top tokens by {by}: {blocks} of {len(lake.blocks)} blocks read now", markup=False)
    console.print(f"{stored / 1e6:.1f} MB, {stored / max(activations, 1):.1%} of the activations")
    return 0


def _remove_damaged(root: LakePath) -> list[str]:
    """Remove what the index has of damaged results: what is not made again here is by the next question."""
    removed = []
    for name in kept_results(root, kept=INDEX):
        try:
            kept_record(root, name, kept=INDEX, full=True)
        except DamageError:
            discard(root, name, kept=INDEX)
            removed.append(name)
    return removed
