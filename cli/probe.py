"""`neuronlake probe`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from neuronlake.cli.common import add_command, add_lake, messages, number, output, print_json, table
from neuronlake.cli.questions import add_label_options, add_pass_options, open_for_question, progress_bar
from neuronlake.store import InputError

if TYPE_CHECKING:
    from neuronlake.analysis import ProbeResult

_CONTROLS = {
    "majority": "majority",
    "most_frequent_tag_per_word": "most frequent tag per word",
    "control_task": "control task",
    "shuffled_labels": "shuffled labels",
    "random_neurons": "random neurons",
}
_FORMATS = ("png", "svg", "pdf")


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "probe",
        "train probes of a label and test them on held-out documents, beside baselines and controls",
        "neuronlake probe my.lake --by upos --layer 8\n"
        "neuronlake probe my.lake --classifier lda --out layers.parquet --figures pictures   # every layer\n"
        "neuronlake probe my.lake --k 1 2 4 8 16 32 64             # few neurons, from any layer\n"
        "neuronlake probe my.lake --top-k 10 --tags NOUN VERB ADJ ADV   # the 10 best neurons of each tag\n"
        "neuronlake probe my.lake --layer 8 --shift 0 1 2 4         # tags of words still to come\n"
        "neuronlake probe my.lake --layer 8 --test other.lake",
    )
    add_lake(parser)
    add_label_options(parser, shifts=True)
    parser.add_argument("--tags", nargs="+", metavar="TAG", help="only these tags")
    parser.add_argument("--tag", metavar="TAG", help="tell this tag from all others")
    parser.add_argument(
        "--layer",
        nargs="+",
        type=_layer,
        metavar="L|all|each",
        help="layers whose neurons are used together, or chosen from; each: one probe per layer "
        "(default: each; all where --k, --top-k or --neurons choose)",
    )
    parser.add_argument("--neurons", nargs="+", metavar="NEURON", help="exactly these, as in L12.N345")
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="use the K best neurons per tag, chosen on training documents"
    )
    parser.add_argument(
        "--k", type=int, nargs="+", metavar="K", help="use K neurons in all, chosen one by one; several: one probe each"
    )
    parser.add_argument("--method", default="auroc", metavar="NAME", help="ranker for --top-k (default: auroc)")
    parser.add_argument(
        "--classifier",
        default="logistic",
        metavar="NAME",
        help="logistic (default), svm, elastic_net; lda, ridge: closed form, from covariances that the lake keeps",
    )
    parser.add_argument("--shrinkage", type=float, default=0.01, help="of lda's covariance (default: 0.01)")
    parser.add_argument("--penalty", type=float, help="per token, of the others (default: 0.001; svm: 1/64)")
    parser.add_argument(
        "--l1-ratio", type=float, default=0.5, help="share of elastic_net's penalty that sets weights to zero (default: 0.5)"
    )
    parser.add_argument("--epochs", type=int, default=4, help="passes in mini-batches (default: 4)")
    parser.add_argument("--passes", type=int, help="most full passes after them (default: 10; elastic_net: 60)")
    parser.add_argument("--test", type=Path, metavar="LAKE", help="test on another lake of the same model")
    parser.add_argument("--test-where", metavar="SQL", help="test on tokens for which this is true, instead of --where")
    parser.add_argument(
        "--split", choices=("document", "sentence"), default="document", help="what is held out (default: document)"
    )
    parser.add_argument("--test-share", type=float, default=0.2, metavar="SHARE", help="share held out (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of every random draw (default: 0)")
    parser.add_argument("--controls", type=int, default=1, metavar="N", help="control tasks fitted (default: 1)")
    parser.add_argument("--random-draws", type=int, default=10, metavar="N", help="draws of random neurons (default: 10)")
    add_pass_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all scores: .parquet, .csv or .json")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="draw what there is to draw")
    parser.add_argument("--format", choices=_FORMATS, default="png", help="of the figures (default: png)")
    parser.set_defaults(run=_run)


def print_probe(result: "ProbeResult", console: Console | None = None) -> None:
    """Print a probe's scores beside those that they must be compared with."""
    console = console or output()
    grid = table("", ">accuracy", "95 %", ">macro-F1", "")
    grid.add_row(
        "probe", number(result.accuracy), _interval(result.intervals["accuracy"]), number(result.macro_f1), "", style="bold"
    )
    for name, scores in {**result.baselines, **result.controls}.items():
        grid.add_row(_CONTROLS[name], number(scores["accuracy"]), "", number(scores["macro_f1"]), _remark(result, name))
    console.print(grid)


def _remark(result: "ProbeResult", name: str) -> str:
    if name == "control_task" and result.selectivity is not None:
        return f"selectivity {number(result.selectivity)} ({_interval(result.intervals['selectivity'])})"
    if name == "most_frequent_tag_per_word":
        above = result.accuracy - result.baselines[name]["accuracy"]
        return f"the probe is {above:+.3f} ({_interval(result.intervals['above_most_frequent_tag'])})"
    if name == "random_neurons":
        scores = result.controls[name]
        best = max(draw["accuracy"] for draw in scores["draws"])
        return f"{len(scores['draws'])} draws of {scores['neurons']}, at best {number(best)}"
    return ""


def _interval(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3f} … {ends[1]:.3f}"


def _layer(text: str) -> int | str:
    if text not in ("all", "each") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a layer number, 'all' or 'each', got {text!r}")
    return int(text) if text.isdecimal() else text


def _run(options: argparse.Namespace) -> int:
    from neuronlake.analysis.outputs import check_new
    from neuronlake.analysis.probing.result import OUT_SUFFIXES, write_results

    if options.out is not None:
        check_new(options.out, OUT_SUFFIXES)
    if options.figures is not None and not options.figures.is_dir():
        raise InputError(f"no folder {options.figures} to draw in: create it first")
    found = _probes(options)
    if options.out is not None:
        write_results(found, options.out)
    drawn = [] if options.figures is None else _draw(found, options.figures, options.format)
    if options.json:
        print_json(found[0].to_dict() if len(found) == 1 else [each.to_dict() for each in found])
    elif len(found) == 1:
        _print_one(found[0])
    else:
        _print_several(found)
    for path in [*([] if options.out is None else [options.out]), *drawn]:
        messages().print(f"wrote {path}", markup=False)
    return 0


def _probes(options: argparse.Namespace) -> list["ProbeResult"]:
    from neuronlake.analysis import probe_sweep

    chosen = any(value is not None for value in (options.k, options.top_k, options.neurons))
    layers = options.layer or ["all" if chosen else "each"]
    if len(layers) > 1 and {"all", "each"} & set(layers):
        raise InputError("--layer takes layer numbers, or 'all', or 'each'")
    if options.neurons is not None and options.layer is not None:
        raise InputError("--neurons names the neurons: --layer would choose others; give only one of them")
    lake = open_for_question(options.lake)
    other = None if options.test is None else open_for_question(options.test)
    with progress_bar("probes") as report:
        results = probe_sweep(
            lake,
            options.by,
            over="layer" if layers == ["each"] else "all",
            layers=None if layers[0] in ("all", "each") else layers,
            ks=options.k,
            shifts=options.shift,
            test=other,
            scheduler=options.scheduler,
            progress=report,
            tags=options.tags,
            tag=options.tag,
            where=options.where,
            test_where=options.test_where,
            subword=options.subword,
            neurons=options.neurons,
            top_k=options.top_k,
            method=options.method,
            classifier=options.classifier,
            shrinkage=options.shrinkage,
            penalty=options.penalty,
            l1_ratio=options.l1_ratio,
            epochs=options.epochs,
            max_passes=options.passes,
            split=options.split,
            test_share=options.test_share,
            seed=options.seed,
            control_draws=options.controls,
            random_draws=options.random_draws,
            keep=not options.no_keep,
        )
    return list(results)


def _print_one(result: "ProbeResult") -> None:
    console = output()
    print_probe(result, console)
    grid = table("tag", ">F1", "95 %", ">precision", ">recall", ">test tokens")
    for tag, scores in result.per_tag.items():
        grid.add_row(
            escape(tag),
            number(scores["f1"]),
            _interval(scores["f1_interval"]),
            number(scores["precision"]),
            number(scores["recall"]),
            f"{int(scores['support']):,}",
        )
    console.print()
    console.print(grid)
    _print_counts(result, console)


def _print_several(results: Sequence["ProbeResult"]) -> None:
    console = output()
    grid = table(
        "layers", ">shift", ">neurons", ">accuracy", "95 %", ">macro-F1", ">selectivity", ">control", ">random", ">shuffled",
        ">per word", ">majority",
    )  # fmt: skip
    for result in results:
        layers = result.settings["layers"]
        controls = [result.controls.get(name, {}).get("accuracy") for name in _CONTROLS if name not in result.baselines]
        grid.add_row(
            ", ".join(map(str, layers)) if len(layers) < 4 else f"{layers[0]} … {layers[-1]}",
            str(result.settings["shift"]),
            f"{result.counts['n_features']:,}",
            number(result.accuracy),
            _interval(result.intervals["accuracy"]),
            number(result.macro_f1),
            number(result.selectivity),
            number(controls[0]),
            number(controls[2]),
            number(controls[1]),
            number(result.baselines["most_frequent_tag_per_word"]["accuracy"]),
            number(result.baselines["majority"]["accuracy"]),
        )
    console.print(grid)
    _print_counts(results[0], console)


def _print_counts(result: "ProbeResult", console: Console) -> None:
    counts, settings = result.counts, result.settings
    split = "another lake" if settings["split"] is None else f"held-out {settings['split']}s"
    console.print(
        f"\nlearned from {counts['n_train']:,} tokens of {counts['n_train_documents']:,} documents, tested on "
        f"{counts['n_test']:,} of {counts['n_test_documents']:,} ({split}, seed {settings['seed']})"
    )
    if settings["bootstrap"]["without"]:
        console.print(f"no intervals: {settings['bootstrap']['without']}")
    if counts["n_constant_features"]:
        console.print(f"neurons that are constant over the training tokens: {counts['n_constant_features']:,}")
    if settings.get("converged") is False:
        before = f"{settings['epochs']} epochs and " if "epochs" in settings else ""
        console.print(f"stopped after {before}{settings['passes']} passes, before convergence")
    if "n_nonzero" in settings:
        console.print(f"neurons with a weight for any tag: {settings['n_nonzero']:,} of {counts['n_features']:,}")
    if result.dropped:
        shown = ", ".join(sorted(result.dropped)[:20]) + (" …" if len(result.dropped) > 20 else "")
        console.print(f"left out, fewer than two training tokens: {shown}", markup=False)


def _draw(results: Sequence["ProbeResult"], folder: Path, suffix: str) -> list[Path]:
    """Draw every figure that these results allow."""
    from neuronlake.analysis.probing import figures
    from neuronlake.analysis.probing.result import table_rows

    rows = table_rows(results)
    layers = {tuple(result.settings["layers"]) for result in results}
    sizes = {result.counts["n_features"] for result in results}
    drawn = []
    if len(results) == 1:
        (result,) = results
        path = folder / f"confusion.{suffix}"
        drawn.append(figures.confusion_figure(result.confusion, list(result.tags), path, subtitle=result.settings["name"]))
    if len(layers) > 1 and len(results) == len(layers):
        drawn += [
            figures.accuracy_by_layer(rows, folder / f"accuracy-by-layer.{suffix}"),
            figures.tag_f1_heatmap(rows, folder / f"f1-by-layer.{suffix}"),
        ]
        if all(result.selectivity is not None for result in results):
            drawn.append(figures.selectivity_figure(rows, folder / f"selectivity-by-layer.{suffix}"))
    if len(layers) == 1 and len(sizes) > 1:
        drawn.append(figures.accuracy_by_features(rows, folder / f"accuracy-by-neurons.{suffix}"))
    if len({result.settings["shift"] for result in results}) > 1 and len(layers) == len(sizes) == 1:
        drawn.append(figures.accuracy_by_shift(rows, folder / f"accuracy-by-shift.{suffix}"))
    return drawn
