"""`neuronlake plot`: pictures."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronlake.cli.common import add_command, output, print_json
from neuronlake.store import InputError

if TYPE_CHECKING:
    from neuronlake.store import Lake


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What a kind of picture takes."""

    takes: tuple[str, ...] = ()
    """Options that mean something to it, out of `_OPTIONS`."""
    needs: tuple[str, str] | None = None
    """An option that must be given, and an example of it."""
    method: str | None = None
    """The ranker unless one is chosen; None: it takes none."""


_OPTIONS = ("method", "tag", "tags", "top", "neuron")
_KINDS = {
    "heatmap": _Kind(takes=("method",), method="auroc"),
    "bars": _Kind(takes=("method", "tags", "top"), method="auroc"),
    "volcano": _Kind(takes=("method", "tag", "top"), needs=("tag", "--tag NOUN"), method="cohen_d"),
    "histogram": _Kind(takes=("neuron", "tags"), needs=("neuron", "--neuron L12.N345")),
}


def add_commands(commands: Any) -> None:
    """Add the command."""
    from neuronlake.cli.questions import add_asked_lake, add_label_options, add_pass_options, on_scheduler

    parser = add_command(
        commands,
        "plot",
        "draw a picture: PNG, SVG or PDF by the file's name",
        "neuronlake plot my.lake --kind heatmap --by upos --out layers.png       # best score of every layer × tag\n"
        "neuronlake plot my.lake --kind bars --by upos --top 3 --out best.svg    # best neurons of every tag\n"
        "neuronlake plot my.lake --kind volcano --by upos --tag NOUN --out noun.pdf\n"
        "neuronlake plot my.lake --kind histogram --by upos --neuron L12.N345 --out neuron.png",
    )
    add_asked_lake(parser)
    parser.add_argument("--kind", default="heatmap", metavar="KIND", help=f"{', '.join(_KINDS)} (default: heatmap)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write: .png, .svg or .pdf")
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="ranker (default: auroc, for volcano cohen_d; `neuronlake rank --methods` lists all)",
    )
    parser.add_argument("--tag", metavar="TAG", help="the tag that a volcano is of")
    parser.add_argument("--tags", nargs="+", metavar="TAG", help="only these tags, in this order (bars, histogram)")
    parser.add_argument(
        "--top", type=int, metavar="N", help="neurons per tag (bars, default: 1), or named (volcano, default: 12)"
    )
    parser.add_argument("--neuron", metavar="NEURON", help="the neuron that a histogram is of, as in L12.N345")
    add_label_options(parser)
    add_pass_options(parser)
    parser.set_defaults(run=on_scheduler(_plot))


def _plot(options: argparse.Namespace) -> int:
    kind = _check(options)
    from neuronlake.analysis.figure_style import check_path
    from neuronlake.analysis.figure_volcano import check_top
    from neuronlake.analysis.rankers import get_ranker
    from neuronlake.cli.questions import open_for_question

    # whatever can be wrong is said before the lake is read
    check_path(options.out)
    method = options.method or kind.method
    if method is not None:
        get_ranker(method)
    if options.kind == "volcano" and options.top is not None:
        check_top(options.top)
    lake = open_for_question(options.lake, options.site)
    if options.kind == "histogram":
        _histogram(lake, options)
    else:
        _of_statistics(lake, options, str(method))
    if options.json:
        print_json({"kind": options.kind, "by": options.by, "method": method, "site": lake.site, "out": str(options.out)})
    else:
        output().print(f"written to {options.out}", markup=False)
    return 0


def _check(options: argparse.Namespace) -> _Kind:
    """Return the kind of picture asked for, if the options fit it."""
    kind = _KINDS.get(options.kind)
    if kind is None:
        raise InputError(f"unknown kind of picture {options.kind!r}: known are {', '.join(_KINDS)}")
    if kind.needs is not None and getattr(options, kind.needs[0]) is None:
        raise InputError(f"a {options.kind} is of one {kind.needs[0]}: add for example {kind.needs[1]}")
    for name in _OPTIONS:
        if name not in kind.takes and getattr(options, name) is not None:
            takers = [other for other, settings in _KINDS.items() if name in settings.takes]
            raise InputError(f"--{name} means nothing to a {options.kind}: it is for {', '.join(takers)}")
    if options.top is not None and options.top < 1:
        raise InputError(f"top must be at least 1, got {options.top}")
    return kind


def _histogram(lake: "Lake", options: argparse.Namespace) -> None:
    from neuronlake.analysis import parse_neuron
    from neuronlake.analysis.figure_histogram import neuron_histogram

    layer, neuron = parse_neuron(options.neuron, lake)
    neuron_histogram(
        lake,
        layer,
        neuron,
        options.out,
        by=options.by,
        tags=options.tags,
        where=options.where,
        subword=options.subword,
        shift=options.shift,
        scheduler=options.scheduler,
    )


def _of_statistics(lake: "Lake", options: argparse.Namespace, method: str) -> None:
    from neuronlake.analysis.figure_volcano import volcano
    from neuronlake.analysis.figures import layer_tag_heatmap, tag_bars
    from neuronlake.analysis.rankers import get_ranker
    from neuronlake.cli.questions import refined, statistics

    result = statistics(lake, options, also=get_ranker(method).also)
    if options.kind == "heatmap":
        layer_tag_heatmap(result, method, options.out)
    elif options.kind == "bars":
        top = options.top or 1
        result = refined(lake, result, method, top=top, scheduler=options.scheduler)
        tag_bars(result, method, options.out, tags=options.tags, top=top)
    else:
        volcano(result, options.out, options.tag, method, **({} if options.top is None else {"top": options.top}))
