"""`neuronlake index`."""

import argparse
from typing import Any

from neuronlake.cli.common import add_command, add_lake, messages, output, print_json
from neuronlake.store import complete_index, open_lake
from neuronlake.store.kept import INDEX
from neuronlake.store.lock import writing


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "index",
        "make the index of a lake that lacks it; extract and import write it as they go",
        "neuronlake index my.lake\nneuronlake index my.lake --json",
    )
    add_lake(parser)
    parser.set_defaults(run=_index)


def _index(options: argparse.Namespace) -> int:
    open_lake(options.lake)  # its errors first: taking the lock makes the folder
    with writing(options.lake):
        lake = open_lake(options.lake)
        with messages().status("indexing") as status:
            read = complete_index(lake, progress=lambda done, total: status.update(f"indexing: {done} of {total} blocks"))
    stored = sum(path.stat().st_size for path in (lake.path / INDEX).rglob("*") if path.is_file())
    activations = sum(file.bytes for commit in lake.commits for file in commit.files)
    if options.json:
        print_json({"blocks": len(lake.blocks), "read": read, "bytes": stored, "share": stored / max(activations, 1)})
        return 0
    output().print(
        f"{len(lake.blocks)} blocks indexed, {read} of them read now; {stored / 1e6:.1f} MB, "
        f"{stored / max(activations, 1):.1%} of the activations"
    )
    return 0
