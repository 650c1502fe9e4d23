"""`neuronlake stats`, `rank`, `top`, `probe` and `plot`: questions that need the lake alone."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from neuronlake.cli.common import add_command, add_lake, messages, number, output, p_value, print_json, table
from neuronlake.store import InputError, Lake, open_lake

if TYPE_CHECKING:
    import xarray as xr

    from neuronlake.analysis import ProbeResult

_METHODS = ("auroc", "mean_difference", "cohen_d", "welch_t")


def add_commands(commands: Any) -> None:
    """Add the commands."""
    _add_stats(commands)
    _add_rank(commands)
    _add_top(commands)
    _add_probe(commands)
    _add_plot(commands)


def statistics(lake: Lake, options: argparse.Namespace, *, auroc: bool) -> "xr.Dataset":
    """Compute statistics with a progress bar on the terminal."""
    from neuronlake.analysis import compute_statistics

    console = messages()
    with Progress(
        TextColumn("statistics"),
        BarColumn(bar_width=30),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("statistics")
        return compute_statistics(
            lake,
            options.by,
            subword=options.subword,
            shift=options.shift,
            auroc=auroc,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def probe_lines(result: "ProbeResult") -> list[str]:
    """Describe a probe's accuracy beside its baselines, one line each."""
    lines = [f"probe                        accuracy {result.accuracy:.3f}   macro-F1 {result.macro_f1:.3f}"]
    for name, scores in result.baselines.items():
        lines.append(f"{name.replace('_', ' '):28s} accuracy {scores['accuracy']:.3f}   macro-F1 {scores['macro_f1']:.3f}")
    return lines


def _open(path: Path) -> Lake:
    """Open a lake for a question, and say so if the answer will be of a part of its corpus only."""
    lake = open_lake(path)
    if not lake.complete:
        messages().print(
            f"[yellow]note:[/yellow] {len(lake.blocks)} of {lake.plan.blocks} blocks are extracted; the answer is of these"
        )
    return lake


def _add_label_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--by", default="upos", metavar="LABEL", help="label column (default: upos; `neuronlake info` lists all)"
    )
    parser.add_argument(
        "--subword", choices=("last", "first", "all"), default="last", help="tokens of a word that count (default: last)"
    )
    parser.add_argument(
        "--shift", type=int, default=0, metavar="K", help="read the label of the word K words later (default: 0)"
    )


def _add_stats(commands: Any) -> None:
    parser = add_command(
        commands,
        "stats",
        "compute count, mean, variance, share active and AUROC of every neuron for every tag",
        "neuronlake stats my.lake --by upos\nneuronlake stats my.lake --by Number --out number.zarr   # open with xarray",
    )
    add_lake(parser)
    _add_label_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.zarr", help="keep the whole result as a Zarr dataset for xarray")
    parser.set_defaults(run=_stats)


def _stats(options: argparse.Namespace) -> int:
    if options.out is not None and options.out.suffix != ".zarr":
        raise InputError(f"--out writes a Zarr dataset: expected a name ending in .zarr, got {options.out}")
    if options.out is not None and options.out.exists():
        raise InputError(f"{options.out} exists: choose another name")
    result = statistics(_open(options.lake), options, auroc=True)
    if options.out is not None:
        # format 2: Zarr 3 has no settled data type for the tags, which are strings
        result.to_zarr(options.out, zarr_format=2, consolidated=False)
    from neuronlake.analysis import rank

    rows = []
    for best in rank(result, "cohen_d", top=1):
        at = result.sel(tag=best["tag"])
        rows.append(
            {
                "tag": best["tag"],
                "count": int(at["count"]),
                "mean": float(at["mean"].mean()),
                "variance": float(at["variance"].mean()),
                "fraction_active": float(at["fraction_active"].mean()),
                "largest_cohen_d": best["cohen_d"],
                "neuron": best["name"],
            }
        )
    if options.json:
        print_json(
            {"by": options.by, "attributes": dict(result.attrs), "tags": rows, "out": options.out and str(options.out)}
        )
        return 0
    grid = table("tag", ">tokens", ">mean", ">variance", ">share active", ">largest Cohen d", "at")
    for row in rows:
        grid.add_row(
            escape(row["tag"]), f"{row['count']:,}", number(row["mean"], 4), number(row["variance"], 4),
            number(row["fraction_active"]), number(row["largest_cohen_d"], 2), row["neuron"],
        )  # fmt: skip
    console = output()
    console.print(grid)
    _print_dropped(console, result)
    console.print("mean, variance and share active are averages over all neurons")
    if options.out is not None:
        console.print(f"kept in {options.out}: xarray.open_zarr({str(options.out)!r}, consolidated=False)")
    return 0


def _add_rank(commands: Any) -> None:
    parser = add_command(
        commands,
        "rank",
        "list the neurons that tell a tag from the others best",
        "neuronlake rank my.lake --by upos --method auroc --top 10\n"
        "neuronlake rank my.lake --by Tense --method welch_t --tags Past --json",
    )
    add_lake(parser)
    _add_label_options(parser)
    parser.add_argument("--method", default="auroc", metavar="NAME", help=f"{', '.join(_METHODS)} (default: auroc)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="neurons per tag (default: 10)")
    parser.add_argument("--tags", nargs="+", metavar="TAG", help="only these tags")
    parser.set_defaults(run=_rank)


def _rank(options: argparse.Namespace) -> int:
    from neuronlake.analysis import rank
    from neuronlake.analysis.rankers import get_ranker

    get_ranker(options.method)  # a wrong name is said before the lake is read
    result = statistics(_open(options.lake), options, auroc=options.method == "auroc")
    ranking = rank(result, options.method, top=options.top, tags=options.tags)
    if options.json:
        print_json(ranking)
        return 0
    console = output()
    grid = table("tag", ">tokens", "neuron", f">{options.method}", "direction", ">mean", ">mean of rest", ">q")
    previous = None
    for entry in ranking:
        if previous not in (None, entry["tag"]):
            grid.add_row()
        new = entry["tag"] != previous
        previous = entry["tag"]
        grid.add_row(
            f"[bold]{escape(entry['tag'])}[/bold]" if new else "",
            f"{entry['count']:,}" if new else "",
            entry["name"],
            number(entry[options.method]),
            "higher" if entry["sign"] > 0 else "lower",
            number(entry["mean"]),
            number(entry["mean_rest"]),
            p_value(entry.get("q")),
        )
    console.print(grid)
    _print_dropped(console, result)
    return 0


def _print_dropped(console: Any, result: "xr.Dataset") -> None:
    if dropped := result.attrs.get("dropped"):
        console.print(f"left out, fewer than two tokens: {', '.join(sorted(dropped))}")


def _add_top(commands: Any) -> None:
    parser = add_command(
        commands,
        "top",
        "show the tokens that fire a neuron most, in context",
        "neuronlake top my.lake L12.N345 -k 20\nneuronlake top my.lake L12.N345 --bottom --where upos=NOUN --json",
    )
    add_lake(parser)
    parser.add_argument("neuron", metavar="NEURON", help="layer and neuron, as in L12.N345")
    parser.add_argument("-k", type=int, default=20, metavar="N", help="how many tokens (default: 20)")
    parser.add_argument("--bottom", action="store_true", help="the lowest values instead of the highest")
    parser.add_argument("--where", metavar="LABEL=TAG", help="only tokens of words with that label")
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help="label columns to show")
    parser.set_defaults(run=_top)


def _top(options: argparse.Namespace) -> int:
    from neuronlake.analysis import parse_neuron, top_tokens

    lake = _open(options.lake)
    layer, neuron = parse_neuron(options.neuron, lake)
    where = None
    if options.where is not None:
        label, equals, tag = options.where.partition("=")
        if not equals:
            raise InputError(f"--where takes LABEL=TAG, for example upos=NOUN, got {options.where!r}")
        where = (label, tag)
    found = top_tokens(lake, layer, neuron, options.k, bottom=options.bottom, where=where, labels=options.labels)
    if options.json:
        print_json(found)
        return 0
    grid = table(">value", *options.labels, "context")
    for entry in found:
        grid.add_row(
            number(entry["value"]), *(escape(str(entry["labels"][label] or "–")) for label in options.labels), context(entry)
        )
    output().print(grid)
    return 0


def context(entry: dict[str, Any], width: int = 60) -> str:
    """Return a token's sentence as console markup: the token highlighted, `width` characters kept on either side."""
    before, mark, rest = entry["context"].partition("«")
    if not mark:
        return f"[dim](special token)[/dim] {escape(before[:width])}"
    token, _, after = rest.partition("»")
    bare = token.lstrip()  # a leading space belongs to the token, but looks wrong inside the marks
    before, token = before + token[: len(token) - len(bare)], bare
    before = f"…{before[-width:]}" if len(before) > width else before
    after = f"{after[:width]}…" if len(after) > width else after
    # the marks stay: a pipe, a log and a screen reader show no bold
    return f"[dim]{escape(before)}[/dim][bold]«{escape(token)}»[/bold][dim]{escape(after)}[/dim]"


def _add_probe(commands: Any) -> None:
    parser = add_command(
        commands,
        "probe",
        "train a linear probe of a label and test it on held-out documents, beside its baselines",
        "neuronlake probe my.lake --by upos --layer 0\n"
        "neuronlake probe my.lake --by upos --top-k 10             # the 10 best neurons of each tag, from any layer\n"
        "neuronlake probe my.lake --by upos --layer 0 --classifier svm --split sentence",
    )
    add_lake(parser)
    _add_label_options(parser)
    parser.add_argument("--layer", type=_layer, metavar="L|all", help="layer whose neurons are used (default: all)")
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="use the K best neurons per tag, chosen on training documents"
    )
    parser.add_argument("--method", default="auroc", metavar="NAME", help="ranker for --top-k (default: auroc)")
    parser.add_argument(
        "--classifier", choices=("lda", "svm"), default="lda", help="lda: out of core; svm: in memory (default: lda)"
    )
    parser.add_argument(
        "--split", choices=("document", "sentence"), default="document", help="what is held out (default: document)"
    )
    parser.add_argument("--test-share", type=float, default=0.2, metavar="SHARE", help="share held out (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    parser.set_defaults(run=_probe)


def _layer(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a layer number or 'all', got {text!r}")
    return text if text == "all" else int(text)


def _probe(options: argparse.Namespace) -> int:
    from neuronlake.analysis import probe

    lake = _open(options.lake)
    with messages().status("fitting the probe"):
        result = probe(
            lake,
            options.by,
            layer=options.layer,
            top_k=options.top_k,
            method=options.method,
            classifier=options.classifier,
            subword=options.subword,
            shift=options.shift,
            split=options.split,
            test_share=options.test_share,
            seed=options.seed,
        )
    if options.json:
        print_json(result.to_dict())
        return 0
    console = output()
    for line in probe_lines(result):
        console.print(line)
    grid = table("tag", ">F1", ">precision", ">recall", ">test tokens")
    for tag, scores in result.per_tag.items():
        grid.add_row(
            escape(tag),
            number(scores["f1"]),
            number(scores["precision"]),
            number(scores["recall"]),
            f"{int(scores['support']):,}",
        )
    console.print(grid)
    counts = result.counts
    console.print(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
    if result.dropped:
        console.print(f"left out, fewer than two training tokens: {', '.join(sorted(result.dropped))}")
    return 0


def _add_plot(commands: Any) -> None:
    parser = add_command(
        commands,
        "plot",
        "draw a layer × tag heat map of the best neuron's score",
        "neuronlake plot my.lake --by upos --out upos.png\n"
        "neuronlake plot my.lake --by upos --method cohen_d --out upos.svg",
    )
    add_lake(parser)
    _add_label_options(parser)
    parser.add_argument("--method", default="auroc", metavar="NAME", help=f"{', '.join(_METHODS)} (default: auroc)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG, SVG or PDF")
    parser.set_defaults(run=_plot)


def _plot(options: argparse.Namespace) -> int:
    from neuronlake.analysis import layer_tag_heatmap
    from neuronlake.analysis.rankers import get_ranker

    get_ranker(options.method)
    result = statistics(_open(options.lake), options, auroc=options.method == "auroc")
    path = layer_tag_heatmap(result, options.method, options.out)
    if options.json:
        print_json({"path": str(path)})
    else:
        output().print(str(path))
    return 0
