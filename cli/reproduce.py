"""`neuronlake reproduce`: the study of arXiv 2511.06519 from a finished lake, with controls, and its report."""

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from neuronlake.cli.attribute import per_tag
from neuronlake.cli.common import add_command, add_lake, lake_argument, messages, number, output, print_json, table
from neuronlake.cli.extract import add_model_options
from neuronlake.cli.questions import open_for_question, progress_bar
from neuronlake.store import InputError
from neuronlake.store.layout import DEFAULT_SITE


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "reproduce",
        "run the study of key neurons (arXiv 2511.06519) with controls and write a report: attribution, selection, "
        "classifiers, lesions",
        "neuronlake reproduce my.lake --model HuggingFaceTB/SmolLM2-135M --out study\n"
        "neuronlake reproduce train.lake --model ./model --on dev.lake --test pud.lake --out study\n"
        "neuronlake reproduce my.lake --model ./model --method ig --out study          # as the paper; takes hours\n"
        "neuronlake reproduce my.lake --model ./model --classes-only --layers 0 15 29 --tokens 400 --out quick",
    )
    add_lake(parser)
    add_model_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the report and finished steps")
    parser.add_argument(
        "--on",
        type=lake_argument,
        metavar="LAKE",
        help="measure on this lake of the same model (default: on held-out documents)",
    )
    parser.add_argument("--test", type=lake_argument, metavar="LAKE", help="test the classifiers on this lake, too")
    which = parser.add_argument_group("key neurons")
    which.add_argument("--by", default="upos", metavar="LABEL", help="label (default: upos)")
    which.add_argument(
        "--method",
        default="gradient",
        metavar="NAME",
        help="gradient (× activation: minutes, the default), ig (integrated gradients, the paper's: hours on CPUs), "
        "activation_share or auroc (no gradients)",
    )
    which.add_argument("-k", type=int, default=100, metavar="N", help="per tag and layer, for classifiers (default: 100)")
    which.add_argument("--lesion-k", type=int, default=200, metavar="N", help="per tag, for lesions (default: 200)")
    which.add_argument("--fdr", type=float, default=0.05, metavar="Q", help="largest q of the χ² test (default: 0.05)")
    which.add_argument(
        "--per-tag", type=per_tag, default=200, metavar="N", help="predictions per tag, or all of them (default: 200)"
    )
    which.add_argument(
        "--classes", default="NOUN,VERB,ADJ,ADV", metavar="TAG,TAG,…", help="told apart (default: the paper's four)"
    )
    which.add_argument("--classes-only", action="store_true", help="no classifiers and lesions of the other tags")
    probes = parser.add_argument_group("classifiers")
    probes.add_argument(
        "--test-share", type=float, metavar="SHARE", help="of the documents, held out (default: 0.2; none with --on)"
    )
    probes.add_argument(
        "--shift",
        type=int,
        nargs="+",
        default=[0, 1],
        metavar="K",
        help="label of the token's own word (0), or of the word K words later (default: 0 1)",
    )
    probes.add_argument("--layers", type=int, nargs="+", metavar="L", help="classifiers on these only (default: each)")
    probes.add_argument(
        "--train-tokens",
        type=per_tag,
        default=50_000,
        metavar="N",
        help="words' tokens to learn from, of training documents drawn at random, or all of them (default: 50,000)",
    )
    probes.add_argument("--random-draws", type=int, default=5, metavar="N", help="of random neurons (default: 5)")
    lesions = parser.add_argument_group("lesions")
    lesions.add_argument("--tokens", type=int, default=2000, metavar="N", help="words to predict, at least (default: 2000)")
    lesions.add_argument("--least", type=int, default=30, metavar="N", help="of each tag, if so many (default: 30)")
    lesions.add_argument("--random", type=int, default=20, metavar="N", help="layer-matched random sets (default: 20)")
    run = parser.add_argument_group("run")
    run.add_argument("--seed", type=int, default=0, help="of every random draw (default: 0)")
    run.add_argument("--draws", type=int, default=1000, metavar="N", help="bootstrap resamples (default: 1000)")
    run.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    run.add_argument("--batch-targets", type=int, metavar="N", help="predictions per forward pass of the attribution")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from neuronlake.cli.reproduce_steps import StudySettings, begin

    settings = StudySettings(
        by=options.by,
        method=options.method,
        k=options.k,
        fdr=options.fdr,
        classes=tuple(dict.fromkeys(tag.strip() for tag in options.classes.split(",") if tag.strip())),
        classes_only=options.classes_only,
        per_tag=options.per_tag,
        test_share=options.test_share,
        shifts=tuple(dict.fromkeys(options.shift)),
        layers=None if options.layers is None else tuple(sorted(set(options.layers))),
        random_draws=options.random_draws,
        train_tokens=options.train_tokens,
        lesion_k=options.lesion_k,
        random=options.random,
        tokens=options.tokens,
        least=options.least,
        seed=options.seed,
        draws=options.draws,
    )
    lake, test, on = (
        None if path is None else open_for_question(path, DEFAULT_SITE) for path in (options.lake, options.test, options.on)
    )
    if lake is None:
        raise InputError("no lake given")
    try:
        from neuronlake.cli.reproduce_run import HTML, MARKDOWN, RESULT, prepare_folder, reproduce
        from neuronlake.extractor import resolve_model
        from neuronlake.extractor.weights import check_model
    except ModuleNotFoundError as error:
        raise InputError(f"reproduce needs {error.name}: pip install 'neuronlake[extract]'") from error
    study = begin(lake, settings, test=test, on=on)
    console = messages()

    def say(message: str) -> None:
        console.print(f"[dim]{escape(message)}…[/dim]")

    source = resolve_model(options.model, gguf=options.gguf, trust_remote_code=options.trust_remote_code, say=say)
    check_model(lake, source)
    prepare_folder(options.out)
    run = {
        "device": options.device,
        "batch_targets": options.batch_targets,
        "trust_remote_code": options.trust_remote_code,
    }
    try:
        result = reproduce(study, source, run, options.out, say=say, progress=progress_bar)
    except KeyboardInterrupt:
        console.print(f"neuronlake: interrupted; finished steps are kept in {options.out}: run it again", markup=False)
        return 130
    if options.json:
        print_json(result)
    else:
        _print(result)
    for name in (HTML, MARKDOWN, RESULT):
        console.print(f"wrote {options.out / name}", markup=False)
    return 0


def _print(result: dict[str, Any]) -> None:
    """The classes' classifiers and the lesions in short; the rest is in the report."""
    grid = table("classes from", "classifier", ">shift", ">neurons", ">accuracy", ">per word", ">random", ">selectivity")
    for probe in result["probes"]:
        if probe["task"] == "classes" and (probe["layer"] is None or probe["layer"] == result["best_layer"]):
            grid.add_row(
                probe["where"],
                probe["classifier"],
                str(probe["shift"]),
                f"{probe['n_features']:,}",
                number(probe["accuracy"]),
                number(probe["baselines"]["most_frequent_tag_per_word"]["accuracy"]),
                number(probe["controls"].get("random_neurons", {}).get("accuracy")),
                number(probe["selectivity"]),
            )
    out, found = output(), result["lesions"]["summary"]
    out.print(grid)
    out.print(
        f"\nlesions of key neurons hurt their own tag more than the others for {found['above_others']} of {found['tags']} "
        f"tags, more than 95 % of random sets do for {found['above_random']}, both for {found['both']}"
    )
