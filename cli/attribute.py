"""`neuronlake attribute`: what every neuron contributes to the prediction of words, per tag."""

import argparse
from typing import Any

import numpy as np
from rich.markup import escape

from neuronlake.cli.common import add_command, add_lake, messages, number, output, print_json, table
from neuronlake.cli.extract import add_model_options
from neuronlake.cli.questions import open_for_question, progress_bar
from neuronlake.store import InputError, Lake
from neuronlake.store.attribution import Attribution


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "attribute",
        "attribute the prediction of words to neurons by integrated gradients; kept in the lake, per tag of the word",
        "neuronlake attribute my.lake --model HuggingFaceTB/SmolLM2-135M --by upos\n"
        "neuronlake attribute my.lake --model ./model --tags NOUN VERB ADJ ADV --per-tag all\n"
        "neuronlake attribute my.lake --model ./model --method gradient      # one backward pass for all layers\n"
        "neuronlake attribute my.lake --model ./model --rule riemann --steps 20 --quantity probability  # Dai et al. 2022",
    )
    add_lake(parser)
    add_model_options(parser)
    parser.add_argument(
        "--by", default="upos", metavar="LABEL", help="label of the predicted word (default: upos); columns, ×, or SQL"
    )
    parser.add_argument("--where", metavar="SQL", help="only predicted words for which this is true")
    parser.add_argument("--tags", nargs="+", metavar="TAG", help="only words of these tags")
    parser.add_argument(
        "--per-tag", type=per_tag, default=200, metavar="N", help="predictions per tag, or all of them (default: 200)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of their choice (default: 0)")
    parser.add_argument(
        "--method",
        choices=("ig", "gradient"),
        default="ig",
        help="integrated gradients layer by layer, or gradient × activation, some hundred times faster (default: ig)",
    )
    parser.add_argument(
        "--rule", choices=("gauss", "riemann"), default="gauss", help="of the integral (default: gauss, Gauss–Legendre)"
    )
    parser.add_argument("--steps", type=int, default=3, metavar="M", help="points of the integral (default: 3)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        metavar="X",
        help="take more points where a layer's sum is off by more than that share of the layer's mean effect; 0 never does "
        "(default: 0.01; gauss only)",
    )
    parser.add_argument(
        "--quantity",
        choices=("log_probability", "probability"),
        default="log_probability",
        help="of the predicted token, what is explained (default: log_probability)",
    )
    parser.add_argument(
        "--share", type=float, default=0.05, metavar="X", help="share of neurons that are hit per prediction (default: 0.05)"
    )
    parser.add_argument(
        "--within",
        choices=("sample", "layer"),
        default="sample",
        help="the share is of all layers, or of each (default: sample)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--dtype", metavar="NAME", help="of the computation (default: that of the lake)")
    parser.add_argument(
        "--batch-targets", type=int, metavar="N", help="predictions per forward pass (default: 256; on a GPU 4,096)"
    )
    parser.set_defaults(run=_attribute)


def per_tag(text: str) -> int | None:
    """Parse a number, or ``all``: None."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or all, got {text!r}") from None


def _attribute(options: argparse.Namespace) -> int:
    lake = open_for_question(options.lake, None)
    try:
        from neuronlake.extractor import AttributionSettings, attribute, resolve_model
    except ModuleNotFoundError as error:
        raise InputError(f"attribution needs {error.name}: pip install 'neuronlake[extract]'") from error
    from neuronlake.analysis import token_labels

    settings = AttributionSettings(
        method=options.method,
        rule=options.rule,
        steps=options.steps,
        tolerance=options.tolerance or None,
        quantity=options.quantity,
        share=options.share,
        within=options.within,
        per_tag=options.per_tag,
        seed=options.seed,
        tags=None if options.tags is None else tuple(options.tags),
        device=options.device,
        dtype=options.dtype,
        batch_targets=options.batch_targets,
        trust_remote_code=options.trust_remote_code,
    )

    def labels(opened: Lake) -> Any:
        return token_labels(opened, options.by, where=options.where, subword="first", min_tokens=1)

    labels(lake)  # its errors first: hashing a model's weights takes a while
    console = messages()

    def say(message: str) -> None:
        console.print(f"[dim]{escape(message)}…[/dim]")

    source = resolve_model(options.model, gguf=options.gguf, trust_remote_code=options.trust_remote_code, say=say)
    with progress_bar("attribution") as progress:
        report = attribute(options.lake, source, labels, settings, say=say, progress=progress)
    if options.json:
        print_json(report.as_dict())
        return 0
    _print(report.attribution)
    out = output()
    out.print(f"{'kept' if report.made else 'there already'}: attribution/{report.attribution.name}", markup=False)
    if (missed := report.completeness) is not None:
        out.print(f"completeness: the sums miss the layers' effects by {missed:.2%} (mean over layers)")
    return 0


def _print(attribution: Attribution) -> None:
    """One line per tag: how well its words are predicted, and the neurons that are hit most."""
    tally = attribution.tally()
    record, targets = attribution.record, attribution.targets()
    tags = np.array(targets.column("tag").to_pylist())
    grid = table("tag", ">predictions", ">of", ">mean log p", "hit most often (share of predictions)")
    for place, (tag, samples, available) in enumerate(
        zip(attribution.tags, record["samples"], record["available"], strict=True)
    ):
        hits = tally.hits[place].astype(np.int64)
        best = np.argsort(-hits, axis=None, kind="stable")[:3]
        named = [(*map(int, np.unravel_index(flat, hits.shape)), int(hits.flat[flat])) for flat in best]
        shown = ", ".join(f"L{layer}.N{neuron} ({count / samples:.0%})" for layer, neuron, count in named if count)
        grid.add_row(
            escape(tag), f"{samples:,}", f"{available:,}",
            number(float(tally.log_probability[tags == tag].mean()) if samples else None, 2), shown,
        )  # fmt: skip
    output().print(grid)
