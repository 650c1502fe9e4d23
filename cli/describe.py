"""`neuronlake describe`: everything about one neuron."""

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from neuronlake.cli.analyse import context
from neuronlake.cli.common import add_command, number, output, print_json, table
from neuronlake.cli.questions import add_asked_lake, open_for_question
from neuronlake.store.layout import DEFAULT_SITE

_SHOWN = 40  # tags; a label such as lemma has thousands


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "describe",
        "describe one neuron: its distribution, its tags, its tokens in context, and what it writes",
        "neuronlake describe my.lake L12.N345\n"
        "neuronlake describe my.lake L12.N345 --by deprel -k 20 --json\n"
        "neuronlake weights my.lake --model ./model && neuronlake describe my.lake L12.N345    # and its vocabulary",
    )
    add_asked_lake(parser)
    parser.add_argument("neuron", metavar="NEURON", help="layer and neuron, as in L12.N345")
    parser.add_argument(
        "--by", metavar="LABEL", help="label of the tag profile, or SQL, as for rank (default: upos, where the lake has it)"
    )
    parser.add_argument("-k", type=int, default=10, metavar="N", help="tokens of each list (default: 10)")
    parser.add_argument(
        "--subword", choices=("last", "first", "all"), default="last", help="tokens of a word that carry its label"
    )
    parser.add_argument("--shift", type=int, default=0, metavar="K", help="read the label of the word K words later")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the distribution by tag: .png, .svg or .pdf")
    parser.set_defaults(run=_describe)


def _describe(options: argparse.Namespace) -> int:
    from neuronlake.analysis import describe_neuron, parse_neuron

    if options.plot is not None:
        from neuronlake.analysis.figure_style import check_path

        check_path(options.plot)  # before the lake is read
    lake = open_for_question(options.lake, options.site)
    layer, neuron = parse_neuron(options.neuron, lake)
    found = describe_neuron(lake, layer, neuron, by=options.by, k=options.k, subword=options.subword, shift=options.shift)
    if options.plot is not None:
        _plot(lake, found, options)
    if options.json:
        print_json({**found, "plot": None if options.plot is None else str(options.plot)})
        return 0
    _show(found, str(options.lake))
    if options.plot is not None:
        output().print(f"written to {options.plot}", markup=False)
    return 0


def _plot(lake: Any, found: dict[str, Any], options: argparse.Namespace) -> None:
    from neuronlake.analysis import neuron_histogram
    from neuronlake.store import InputError

    if found["tags"] is None:
        raise InputError("--plot draws one row per tag, and the lake has no upos: name a label with --by")
    neuron_histogram(
        lake, found["layer"], found["neuron"], options.plot, by=found["tags"]["by"], subword=options.subword,
        shift=options.shift,
    )  # fmt: skip


def _show(found: dict[str, Any], lake: str) -> None:
    console = output()
    site = "" if found["site"] == DEFAULT_SITE else f", site {found['site']}"
    console.print(f"[bold]{found['name']}[/bold] of {escape(str(found['model']))}{escape(site)}")
    if found["strongest_tag"] is not None:
        console.print(escape(f"{found['strongest_tag']['sentence']}, {found['strongest_tag']['count']:,} tokens"))
    _show_moments(console, found["moments"])
    if found["tags"] is not None:
        _show_tags(console, found["tags"])
    for end, name in (("top", "highest"), ("bottom", "lowest")):
        _show_tokens(console, found, end, name)
    if found["weights"] is not None:
        _show_weights(console, found["weights"])
    elif found["site"] == DEFAULT_SITE:
        console.print(f"\n[dim]what it writes: unknown; `neuronlake weights {escape(lake)} --model …` stores it, once[/dim]")


def _show_moments(console: Any, moments: dict[str, Any]) -> None:
    console.print(f"\n[bold]distribution[/bold] over {moments['count']:,} tokens ({moments['tokens']})")
    console.print(
        f"mean {number(moments['mean'])}   sd {number(moments['standard_deviation'])}   "
        f"skewness {number(moments['skewness'], 2)}   excess kurtosis {number(moments['excess_kurtosis'], 2)}"
    )
    console.print(
        f"above 0: {moments['fraction_active']:.1%}   exactly 0: {moments['fraction_zero']:.1%}   "
        f"sparsity {number(moments['sparsity']['value'])} (Treves–Rolls, 0 to 1)"
    )
    shares = moments["quantiles"]
    grid = table(">smallest", *(f">{float(share):.0%}" for share in shares), ">largest")
    grid.add_row(number(moments["minimum"]), *map(number, shares.values()), number(moments["maximum"]))
    console.print(grid)


def _show_tags(console: Any, tags: dict[str, Any]) -> None:
    policy = "all sub-words" if tags["subword"] == "all" else f"{tags['subword']} sub-word of each word"
    shift = f", label of the word {tags['shift']} later" if tags["shift"] else ""
    console.print(f"\n[bold]{escape(tags['by'])}[/bold] of {tags['labelled']:,} tokens ({policy}{shift}); AUROC is exact")
    grid = table("tag", ">tokens", ">mean", ">above 0", ">AUROC", ">Cohen d")
    for entry in tags["profile"][:_SHOWN]:
        grid.add_row(
            escape(entry["tag"]), f"{entry['count']:,}", number(entry["mean"]), f"{entry['fraction_active']:.1%}",
            number(entry["auroc"]), number(entry["cohen_d"], 2),
        )  # fmt: skip
    console.print(grid)
    if (more := len(tags["profile"]) - _SHOWN) > 0:
        console.print(f"and {more:,} tags more; --json lists all")
    if dropped := sorted(tags["dropped"]):
        some = ", ".join(dropped[:_SHOWN]) + (" …" if len(dropped) > _SHOWN else "")
        console.print(f"left out, fewer than two tokens: {some}", markup=False)


def _show_tokens(console: Any, found: dict[str, Any], end: str, name: str) -> None:
    lists = {f"{name} tokens": found[end], f"{name} tokens, one per document": found[f"{end}_per_document"]}
    shown: list[list[int]] = []
    for title, entries in lists.items():
        rows = [entry["row"] for entry in entries]
        if rows in shown:  # no document has two of them
            continue
        shown.append(rows)
        console.print(f"\n[bold]{title}[/bold]")
        labels = list(entries[0].get("labels", {})) if entries else []
        grid = table(">value", *labels, "context")
        for entry in entries:
            tags = (escape(str(entry["labels"][label] or "–")) for label in labels)
            grid.add_row(number(entry["value"]), *tags, context(entry))
        console.print(grid)


def _show_weights(console: Any, weights: dict[str, Any]) -> None:
    vocabulary, texts = weights["vocabulary"], weights["textualization"]
    console.print(
        f"\n[bold]what it writes[/bold]: norm {number(weights['norm'])}, contribution (mean |x| · norm) "
        f"{number(weights['contribution'])}"
    )
    role = f"; of the {vocabulary['role']} kind" if vocabulary["role"] else ""
    console.print(
        f"cosine with the {vocabulary['tokens']:,} tokens of the vocabulary: kurtosis {number(vocabulary['kurtosis'], 1)} "
        f"(normal: 3), skewness {number(vocabulary['skewness'])}{role}"
    )
    grid = table("raises when positive", ">cosine", "lowers when positive", ">cosine")
    for up, down in zip(vocabulary["top"], vocabulary["bottom"], strict=True):
        grid.add_row(quoted(up["token"]), number(up["cosine"]), quoted(down["token"]), number(down["cosine"]))
    console.print(grid)
    for end, name in (("top", "highest"), ("bottom", "lowest")):
        if texts is not None and texts[end]:
            words = " ".join(quoted(entry["token"]) for entry in texts[end])
            console.print(f"nearest to the embeddings of its {name} {texts['activations']} tokens: {words}")


def quoted(token: str) -> str:
    """Show a vocabulary token as console markup: with its spaces, and control characters by their escapes."""
    return escape(repr(token))
