"""`neuronlake probe`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from neuronlake.cli.common import add_command, lake_argument, messages, number, output, print_json, table
from neuronlake.cli.questions import (
    add_asked_lake,
    add_label_options,
    add_pass_options,
    on_scheduler,
    open_for_question,
    progress_bar,
)
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
_FEW_DOCUMENTS = 10
_FEW_KNOWN = 0.1


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
    add_asked_lake(parser)
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
        help="logistic (default), svm, elastic_net; lda, ridge: closed form, from covariances that the lake keeps; "
        "gaussian with --k; cav, car with --tag",
    )
    parser.add_argument("--shrinkage", type=float, default=0.01, help="of lda's covariance (default: 0.01)")
    parser.add_argument("--penalty", type=float, help="per token, of the others (default: 0.001; svm: 1/64)")
    parser.add_argument(
        "--l1-ratio", type=float, default=0.5, help="share of elastic_net's penalty that sets weights to zero (default: 0.5)"
    )
    parser.add_argument("--epochs", type=int, default=4, help="passes in mini-batches (default: 4)")
    parser.add_argument("--passes", type=int, help="most full passes after them (default: 10; elastic_net: 60)")
    parser.add_argument("--test", type=lake_argument, metavar="LAKE", help="test on another lake of the same model")
    parser.add_argument("--test-where", metavar="SQL", help="test on tokens for which this is true, instead of --where")
    parser.add_argument(
        "--split", choices=("document", "sentence"), default="document", help="what is held out (default: document)"
    )
    parser.add_argument("--test-share", type=float, default=0.2, metavar="SHARE", help="share held out (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of every random draw (default: 0)")
    parser.add_argument(
        "--controls", type=int, default=1, metavar="N", help="control tasks and shuffled labels (default: 1)"
    )
    parser.add_argument("--random-draws", type=int, default=10, metavar="N", help="draws of random neurons (default: 10)")
    add_pass_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all scores: .parquet, .csv or .json")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="draw what there is to draw")
    parser.add_argument("--format", choices=_FORMATS, default="png", help="of the figures (default: png)")
    parser.set_defaults(run=on_scheduler(_run))


def print_probe(result: "ProbeResult", console: Console | None = None) -> None:
    """Print a probe's scores beside those that they must be compared with."""
    console = console or output()
    grid = table("", ">accuracy", "95 %", ">macro-F1", "")
    grid.add_row(
        "probe",
        number(result.accuracy),
        _interval(result.intervals["accuracy"]),
        number(result.macro_f1),
        f"{result.counts['n_features']:,} neurons, balanced accuracy {number(result.balanced_accuracy)}",
        style="bold",
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
    if options.json:
        print_json(found[0].to_dict() if len(found) == 1 else [each.to_dict() for each in found])
    elif len(found) == 1:
        _print_one(found[0])
    else:
        _print_several(found)
    drawn = [] if options.figures is None else _draw(found, options.figures, options.format)
    for path in [*([] if options.out is None else [options.out]), *drawn]:
        messages().print(f"wrote {path}", markup=False)
    if options.figures is not None and not drawn:
        messages().print("no figure for several layers, neurons or shifts at once: sweep over one of them")
    return 0


def _probes(options: argparse.Namespace) -> list["ProbeResult"]:
    from neuronlake.analysis import probe_sweep

    chosen = any(value is not None for value in (options.k, options.top_k, options.neurons))
    layers = options.layer or ["all" if chosen else "each"]
    if len(layers) > 1 and {"all", "each"} & set(layers):
        raise InputError("--layer takes layer numbers, or 'all', or 'each'")
    if options.neurons is not None and options.layer is not None:
        raise InputError("--neurons names the neurons: --layer would choose others; give only one of them")
    lake = open_for_question(options.lake, options.site)
    other = None if options.test is None else open_for_question(options.test, lake.site)
    with progress_bar("probes") as report:
        results = probe_sweep(
            lake,
            options.by,
            over="layer" if layers == ["each"] else "all",
            layers=None if layers[0] in ("all", "each") else layers,
            ks=options.k,
            shifts=list(dict.fromkeys(options.shift)),
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
    _print_counts([result], console)


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
    _print_counts(results, console)


def _print_counts(results: Sequence["ProbeResult"], console: Console) -> None:
    """Print what the scores rest on, and whatever is out of the ordinary in any of the results."""
    for counts, settings in {str(result.settings["shift"]): (result.counts, result.settings) for result in results}.values():
        split = "another lake" if settings["split"] is None else f"held-out {settings['split']}s"
        console.print(
            f"\nlearned from {counts['n_train']:,} tokens of {_documents(counts['n_train_documents'])}, tested on "
            f"{counts['n_test']:,} of {_documents(counts['n_test_documents'])} ({split}, seed {settings['seed']}"
            + (")" if settings["shift"] == 0 else f", shift {settings['shift']})")
        )
        known = counts["n_test_known_words"] / counts["n_test"]
        if known < _FEW_KNOWN:
            console.print(f"words: {known:.0%} of the test tokens' words occur in training: controls by word say little")
        if settings["bootstrap"]["without"]:
            console.print(f"no intervals: {settings['bootstrap']['without']}")
        elif counts["n_test_documents"] < _FEW_DOCUMENTS:
            console.print(
                f"intervals of {counts['n_test_documents']} documents are too narrow: their true level is below 95 %"
            )
    constant = max(result.counts["n_constant_features"] for result in results)
    if constant:
        console.print(f"neurons that are constant over the training tokens: {constant:,}{_at_most(results)}")
    stopped = [result for result in results if result.settings.get("converged") is False]
    if stopped:
        settings = stopped[0].settings
        before = f"{settings['epochs']} epochs and " if "epochs" in settings else ""
        which = "" if len(results) == 1 else f"{len(stopped)} of {len(results)} "
        console.print(f"{which}stopped after {before}{settings['passes']} passes, before convergence")
    asked, got = max(results[0].settings["k"] or [0]), max(result.counts["n_features"] for result in results)
    if asked > got:
        console.print(f"--k {asked}: only {got} neurons were chosen, the others are constant or repeat them")
    for result in results[:1]:
        if "n_nonzero" in result.settings:
            console.print(
                f"neurons with a weight for any tag: {result.settings['n_nonzero']:,} of {result.counts['n_features']:,}"
            )
    dropped = sorted({tag for result in results for tag in result.dropped})
    if dropped:
        shown = ", ".join(dropped[:20]) + (" …" if len(dropped) > 20 else "")
        tokens = max(sum(result.dropped.values()) for result in results)
        console.print(f"left out, fewer than two training tokens: {shown} ({tokens:,} tokens)", markup=False)


def _documents(count: int) -> str:
    return f"{count:,} document" + ("" if count == 1 else "s")


def _at_most(results: Sequence["ProbeResult"]) -> str:
    return "" if len(results) == 1 else " at most"


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
    shifts = {result.settings["shift"] for result in results}
    if len(layers) == len(shifts) == 1 and len(sizes) > 1:
        drawn.append(figures.accuracy_by_features(rows, folder / f"accuracy-by-neurons.{suffix}"))
    if len(shifts) > 1 and len(layers) == len(sizes) == 1:
        drawn.append(figures.accuracy_by_shift(rows, folder / f"accuracy-by-shift.{suffix}"))
    return drawn
