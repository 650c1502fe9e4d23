"""`neuronlake lesion`: switch neurons off in the live model, and see which words it predicts worse."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from neuronlake.cli.common import add_command, add_lake, lake_argument, messages, number, output, print_json, table
from neuronlake.cli.extract import add_model_options
from neuronlake.cli.questions import open_for_question, progress_bar
from neuronlake.store import InputError
from neuronlake.store.layout import DEFAULT_SITE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from neuronlake.analysis import LabelVector
    from neuronlake.analysis.neuron_sets import NeuronSet
    from neuronlake.store import Lake

_FORMATS = ("pdf", "svg", "png")
_DEFAULT_K = 100


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "lesion",
        "set key neurons to zero, their mean or a value in the live model, and measure how it predicts the next word",
        "neuronlake lesion my.lake --model HuggingFaceTB/SmolLM2-135M --by upos --method auroc -k 200\n"
        "neuronlake lesion train.lake --on dev.lake --model ./model -k 200 --tags NOUN VERB --out lesions\n"
        "neuronlake lesion my.lake --model ./model --neurons key.json --do mean --doses 10,30,100,300 --out lesions\n"
        "neuronlake lesion my.lake --model ./model -k 100 --per-layer --do clamp --value 0.5 --json",
    )
    add_lake(parser)
    add_model_options(parser)
    which = parser.add_argument_group("which neurons")
    which.add_argument(
        "--neurons",
        type=Path,
        metavar="FILE",
        help="JSON: tag → list of [layer, neuron], best first; or what `rank --json` prints (default: by --method)",
    )
    which.add_argument("--by", default="upos", metavar="LABEL", help="label of the words to predict (default: upos)")
    which.add_argument("--method", metavar="NAME", help="ranker (default: auroc; `neuronlake rank --methods` lists all)")
    which.add_argument(
        "--shift",
        type=int,
        metavar="K",
        help="rank by the label of the word K words later (default: 1, the word that is predicted; 0: the token's own word)",
    )
    which.add_argument("-k", type=int, metavar="N", help="best neurons of each tag (default: 100; of a file: all)")
    which.add_argument("--per-layer", action="store_true", help="so many in each layer, instead of in all layers together")
    which.add_argument("--tags", nargs="+", metavar="TAG", help="lesion only the neurons of these tags")
    what = parser.add_argument_group("what is done")
    what.add_argument("--do", default="zero", metavar="KIND", help="zero (default), mean (over the lake's tokens) or clamp")
    what.add_argument("--value", type=float, metavar="X", help="what a clamp sets them to")
    what.add_argument("--random", type=int, default=20, metavar="N", help="layer-matched random sets per tag (default: 20)")
    what.add_argument("--doses", type=_numbers, default=(), metavar="N,N,…", help="other numbers of neurons: dose–response")
    what.add_argument("--dose-random", type=int, default=5, metavar="N", help="random sets per tag at these (default: 5)")
    text = parser.add_argument_group("what is measured")
    text.add_argument(
        "--on",
        type=lake_argument,
        metavar="LAKE",
        help="predict the text of this lake of the same model (default: of LAKE, without documents to choose neurons on)",
    )
    text.add_argument("--where", metavar="SQL", help="only words to predict for whose first token this is true")
    text.add_argument("--tokens", type=int, default=2000, metavar="N", help="words to predict at least (default: 2000)")
    text.add_argument(
        "--least", type=int, default=30, metavar="N", help="of each lesioned tag, if there are so many (default: 30)"
    )
    text.add_argument("--seed", type=int, default=0, help="of every random draw (default: 0)")
    text.add_argument(
        "--draws", type=int, default=1000, metavar="N", help="bootstrap resamples of documents (default: 1000)"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    run.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help="auto (float32 on a CPU, the checkpoint's on a GPU), float32, bfloat16, float16",
    )
    run.add_argument("--batch-tokens", type=int, metavar="N", help="largest padded forward pass (default: 512, GPU 4096)")
    run.add_argument("--scheduler", metavar="NAME|ADDRESS", help="of the pass that ranks neurons: see `neuronlake rank`")
    run.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write lesions.json, neurons.json and figures; finished runs are kept there and not repeated",
    )
    run.add_argument("--format", choices=_FORMATS, default="pdf", help="of the figures (default: pdf)")
    parser.set_defaults(run=_run)


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers such as 10,30,100,300, got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def _run(options: argparse.Namespace) -> int:
    _check(options)
    lake = open_for_question(options.lake, DEFAULT_SITE)
    on = lake if options.on is None else open_for_question(options.on, DEFAULT_SITE)
    if lake.spec.model.get("sha256") != on.spec.model.get("sha256"):
        raise InputError(
            f"{on.path} was made by {on.spec.model.get('name')}, {lake.path} by {lake.spec.model.get('name')}: neurons of "
            "one model say nothing of another's"
        )
    try:
        result = _measure(lake, on, options)
    except KeyboardInterrupt:
        if options.out is None:
            raise
        messages().print(
            f"neuronlake: interrupted; finished runs are kept in {options.out}: run the same command again to go on",
            markup=False,
        )
        return 130
    if options.json:
        print_json(result)
    else:
        _print(result)
    for path in result["files"]:
        messages().print(f"wrote {path}", markup=False)
    return 0


def _measure(lake: "Lake", on: "Lake", options: argparse.Namespace) -> dict[str, Any]:
    from neuronlake.analysis import split_documents, token_labels
    from neuronlake.analysis.neuron_sets import read_sets

    try:
        from neuronlake.cli.lesion_run import LesionSettings, run_lesions
        from neuronlake.extractor import resolve_model
        from neuronlake.extractor.lesion_values import lesion_values
        from neuronlake.extractor.lesions import check_model
    except ModuleNotFoundError as error:
        raise InputError(f"lesions need {error.name}: pip install 'neuronlake[extract]'") from error
    k = options.k if options.k is not None or options.neurons is not None else _DEFAULT_K
    settings = LesionSettings(
        do=options.do,
        value=options.value,
        k=k,
        doses=options.doses,
        per_layer=options.per_layer,
        random=options.random,
        dose_random=options.dose_random,
        tokens=options.tokens,
        least=options.least,
        seed=options.seed,
        draws=options.draws,
        device=options.device,
        dtype=options.dtype,
        batch_tokens=options.batch_tokens,
        trust_remote_code=options.trust_remote_code,
    )
    lesion_values(lake, options.do, options.value, ())  # whether they fit together
    console = messages()

    def say(message: str) -> None:
        console.print(f"[dim]{escape(message)}…[/dim]")

    sets = None if options.neurons is None else _of_tags(read_sets(options.neurons), options.tags, options.neurons)
    labels = token_labels(on, options.by, where=options.where, subword="first", min_tokens=1)
    source = resolve_model(options.model, gguf=options.gguf, trust_remote_code=options.trust_remote_code, say=say)
    check_model(lake, source)
    documents = None
    if sets is None:
        chosen_on = None
        if on is lake:
            split = split_documents(labels, test_share=0.5, seed=options.seed)
            documents, chosen_on = split.test, split.train
        sets, chosen = _choose(lake, options, chosen_on, k, labels, documents)
    else:
        chosen = {"file": str(options.neurons)}
    with progress_bar("lesions") as report:
        return run_lesions(
            lake,
            on,
            source,
            sets,
            labels,
            settings,
            documents=documents,
            chosen=chosen,
            out=options.out,
            suffix=options.format,
            say=say,
            progress=report,
        )


def _of_tags(sets: "list[NeuronSet]", tags: Sequence[str] | None, path: Path) -> "list[NeuronSet]":
    known = {each.tag: each for each in sets}
    for tag in tags or ():
        if tag not in known:
            raise InputError(f"{path} has no neurons of {tag!r}: it has those of {', '.join(known)}")
    return sets if tags is None else [known[tag] for tag in dict.fromkeys(tags)]


def _choose(
    lake: "Lake",
    options: argparse.Namespace,
    documents: "NDArray[np.int64] | None",
    k: int,
    labels: "LabelVector",
    measured: "NDArray[np.int64] | None",
) -> "tuple[list[NeuronSet], dict[str, Any]]":
    """Rank neurons; say of which tags there is nothing to measure."""
    from neuronlake.analysis.key_sets import choose_sets

    settings = {
        "method": options.method or "auroc",
        "shift": 1 if options.shift is None else options.shift,
        "per_layer": options.per_layer,
    }
    with progress_bar("ranking") as report:
        sets = choose_sets(
            lake,
            options.by,
            k=max(k, *options.doses, 0),
            tags=options.tags,
            documents=documents,
            scheduler=options.scheduler,
            progress=report,
            **settings,
        )
    if options.tags is None:
        here = labels if measured is None else labels.keep(np.isin(labels.documents, measured))
        there = {tag for tag, count in zip(here.tags, here.counts, strict=True) if count}
        if absent := [each.tag for each in sets if each.tag not in there]:
            messages().print(f"[yellow]note:[/yellow] no word to predict of {escape(', '.join(absent))}: left out")
        sets = [each for each in sets if each.tag in there]
    on = "all documents" if documents is None else f"{len(documents):,} documents of which nothing is measured"
    return sets, {**settings, "on": on}


def _print(result: dict[str, Any]) -> None:
    console = output()
    grid = table(
        "neurons of", ">words", ">log-loss", ">Δ own", "95 %", ">Δ others", ">selectivity", ">Δ random", ">most", ">p", ">q",
        ">Δ other keys", ">Δ accuracy", "layers",
    )  # fmt: skip
    for effect in result["lesions"]:
        own, random = effect["own"], effect["random"]
        grid.add_row(
            escape(effect["tag"]),
            f"{effect['targets']:,}",
            number(result["clean"][effect["tag"]]["log_loss"]),
            number(own["value"]),
            "–" if own["low"] is None else f"{own['low']:.3f} … {own['high']:.3f}",
            number(effect["others"]["value"]),
            number(effect["selectivity"]["value"]),
            number(effect["random_mean"]),
            number(max(random) if random else None),
            number(effect["p"]),
            number(effect["q"]),
            number(effect["other_keys_mean"]),
            number(effect["own_accuracy"]["value"]),
            _layers(effect["layers"]),
        )
    console.print(grid)
    text, cost, settings, found = (result[name] for name in ("text", "cost", "settings", "summary"))
    console.print(
        f"\n{text['targets']:,} words of {text['documents']:,} documents predicted; Δ in nats per word against the model as "
        f"it is; seed {settings['seed']}"
    )
    parts = [f"its own tag more than the others: {found['above_others']} of {found['tags']} tags"]
    if settings["random"]:
        parts.append(f"more than 95 % of {settings['random']} random sets do: {found['above_random']}")
        parts.append(f"both: {found['both']}")
    if found["tags"] > 1:
        parts.append(f"more than any other tag's key neurons do: {found['largest_of_keys']}")
    console.print("lesions hurt " + "; ".join(parts))
    if result["doses"]:
        _print_doses(result, console)
    console.print(
        f"{cost['lesions']:,} lesions ({cost['reused']:,} of them measured before) in {cost['seconds']:.0f} s: "
        f"{cost['passes']:.1f} forward passes of {cost['clean_s']:.1f} s, {cost['share_of_layers_skipped']:.0%} of the "
        "layers skipped"
    )


def _print_doses(result: dict[str, Any], console: "Console") -> None:
    entries = [*result["doses"], *result["lesions"]]
    neurons = sorted({entry["neurons"] for entry in entries})
    console.print()
    grid = table("Δ own (random)", *(f">{count:,}" for count in neurons))
    for tag in dict.fromkeys(entry["tag"] for entry in result["lesions"]):
        of = {entry["neurons"]: entry for entry in entries if entry["tag"] == tag}
        grid.add_row(
            escape(tag),
            *(
                f"{number(of[count]['own']['value'])} ({number(of[count]['random_mean'])})" if count in of else "–"
                for count in neurons
            ),
        )
    console.print(grid)
    console.print()


def _layers(profile: dict[int, int]) -> str:
    """Write the layers' middle half: of 200 neurons the 50th to the 150th, from below."""
    total, below, ends = sum(profile.values()), 0, []
    for layer, count in profile.items():
        ends += [layer] * sum(below < total * share <= below + count for share in (0.25, 0.75))
        below += count
    return str(ends[0]) if ends[0] == ends[-1] else f"{ends[0]}–{ends[-1]}"


def _check(options: argparse.Namespace) -> None:
    """Refuse options that mean nothing together."""
    if options.neurons is not None:
        for name in ("method", "shift", "scheduler"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name} ranks neurons, but --neurons names them: give only one of them")
        if options.per_layer:
            raise InputError("--per-layer chooses neurons, but --neurons names them: give only one of them")
    if options.k is not None and options.k < 1:
        raise InputError(f"-k must be at least 1, got {options.k}")
