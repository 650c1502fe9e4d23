"""`neuronlake neighbours` and `clusters`."""

import argparse
from typing import Any

from neuronlake.cli.analyse import print_tokens
from neuronlake.cli.common import add_command, number, output, table
from neuronlake.cli.questions import (
    add_asked_lake,
    add_scheduler,
    on_scheduler,
    open_for_question,
    print_answer,
    progress_bar,
)
from neuronlake.store import InputError


def add_commands(commands: Any) -> None:
    """Add the commands."""
    parser = add_command(
        commands,
        "neighbours",
        "show the neurons most like a neuron, or the tokens whose activations are most like a token's",
        "neuronlake neighbours my.lake L12.N345                     # by correlation over all tokens\n"
        "neuronlake neighbours my.lake L12.N345 --by profile --label upos\n"
        "neuronlake neighbours my.lake L12.N345 --by weights        # needs `neuronlake weights`\n"
        "neuronlake neighbours my.lake --row 1234 --layer 12 --json",
    )
    add_asked_lake(parser)
    parser.add_argument("neuron", nargs="?", metavar="NEURON", help="layer and neuron, as in L12.N345")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="how many (default: 10)")
    neuron = parser.add_argument_group("of a neuron")
    neuron.add_argument(
        "--by",
        choices=("activation", "profile", "weights"),
        help="correlation of activations, AUROC of every tag, or output vectors (default: activation)",
    )
    neuron.add_argument("--label", metavar="LABEL", help="label of the profile (default: upos)")
    neuron.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="neurons whose correlation is computed (default: 10 for each of -k, and 50)",
    )
    token = parser.add_argument_group("of a token")
    token.add_argument("--row", type=int, metavar="ROW", help="row of the token, as `top --json` shows it")
    token.add_argument("--layer", type=int, metavar="L", help="layer whose activations are compared")
    token.add_argument("--exact", action="store_true", help="compare with every token instead of asking an index")
    token.add_argument("--labels", nargs="+", metavar="LABEL", help="label columns to show")
    add_scheduler(parser)
    parser.set_defaults(run=on_scheduler(_neighbours))

    clusters = add_command(
        commands,
        "clusters",
        "show clusters of neurons whose activations correlate: those that say the same",
        "neuronlake clusters my.lake\nneuronlake clusters my.lake --threshold 0.8 --json",
    )
    add_asked_lake(clusters)
    clusters.add_argument(
        "--threshold", type=float, default=0.9, metavar="R", help="mean |correlation| that joins two clusters (default: 0.9)"
    )
    add_scheduler(clusters)
    clusters.set_defaults(run=on_scheduler(_clusters))


def _neighbours(options: argparse.Namespace) -> int:
    if (options.neuron is None) == (options.row is None):
        raise InputError("give a neuron, as in L12.N345, or a token by --row and --layer")
    return _of_token(options) if options.neuron is None else _of_neuron(options)


def _of_neuron(options: argparse.Namespace) -> int:
    from neuronlake.analysis import neighbours, parse_neuron

    _refuse(options, "a token", ("layer", "exact", "labels"))
    if options.label is not None and options.by != "profile":
        raise InputError("--label is of the profile: add --by profile")
    if options.candidates is not None and options.by not in (None, "activation"):
        raise InputError(f"--candidates is of --by activation; --by {options.by} compares all neurons")
    lake = open_for_question(options.lake, options.site)
    layer, neuron = parse_neuron(options.neuron, lake)
    if options.by == "profile" and options.label is None and "upos" not in lake.label_columns:
        raise InputError(f"the lake has no upos: give the profile's --label, one of {', '.join(lake.label_columns)}")
    with progress_bar("sketching") as report:
        found = neighbours(
            lake,
            layer,
            neuron,
            options.k,
            by=options.by or "activation",
            label=options.label or "upos",
            candidates=options.candidates,
            scheduler=options.scheduler,
            progress=report,
        )
    if options.json:
        print_answer(lake, found)
        return 0
    kind = list(found[0])[-1] if found else "similarity"
    grid = table("neuron", f">{kind}")
    for entry in found:
        grid.add_row(entry["name"], number(entry[kind]))
    output().print(grid)
    return 0


def _of_token(options: argparse.Namespace) -> int:
    from neuronlake.analysis import similar_tokens

    _refuse(options, "a neuron", ("by", "label", "candidates"))
    if options.layer is None:
        raise InputError("--row needs --layer: tokens are compared layer by layer")
    lake, labels = open_for_question(options.lake, options.site), options.labels or []
    with progress_bar("indexing") as report:
        found = similar_tokens(
            lake,
            options.row,
            options.layer,
            options.k,
            exact=options.exact,
            labels=labels,
            scheduler=options.scheduler,
            progress=report,
        )
    if options.json:
        print_answer(lake, found)
        return 0
    print_tokens(found, labels, value="similarity")
    return 0


def _clusters(options: argparse.Namespace) -> int:
    from neuronlake.analysis import redundancy_clusters

    lake = open_for_question(options.lake, options.site)
    with progress_bar("comparing neurons") as report:
        found = redundancy_clusters(lake, options.threshold, scheduler=options.scheduler, progress=report)
    if options.json:
        print_answer(lake, found)
        return 0
    grid = table(">neurons", ">mean |r|", ">least", "layers", "which")
    for cluster in found:
        names, layers = cluster["neurons"], cluster["layers"]
        span = f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"
        more = f", and {len(names) - 6} more" if len(names) > 6 else ""
        grid.add_row(f"{len(names):,}", number(cluster["mean"]), number(cluster["least"]), span, ", ".join(names[:6]) + more)
    output().print(grid if found else f"no two neurons correlate by {options.threshold} or more")
    return 0


def _refuse(options: argparse.Namespace, what: str, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(options, name) not in (None, False):
            raise InputError(f"--{name} is for the neighbours of {what}")
