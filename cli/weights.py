"""`neuronlake weights`: what neuron questions need of the model, stored once."""

import argparse
from typing import Any

from rich.markup import escape

from neuronlake.cli.common import add_command, add_lake, messages, output, print_json, size
from neuronlake.cli.extract import add_model_options
from neuronlake.cli.questions import progress_bar
from neuronlake.store import InputError, open_lake


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "weights",
        "store what every neuron writes and how it reads in the vocabulary, from the model that the lake was made with",
        "neuronlake weights my.lake --model HuggingFaceTB/SmolLM2-135M\n"
        "neuronlake weights my.lake --model ./models --gguf SmolLM2-135M-Instruct.Q4_1.gguf --json",
    )
    add_lake(parser)
    add_model_options(parser)
    parser.set_defaults(run=_weights)


def _weights(options: argparse.Namespace) -> int:
    open_lake(options.lake)  # its errors first: hashing a model's weights takes a while
    try:
        from neuronlake.extractor import resolve_model
        from neuronlake.extractor.weights import store_weights
    except ModuleNotFoundError as error:
        raise InputError(f"reading a model needs {error.name}: pip install 'neuronlake[extract]'") from error
    console = messages()

    def say(message: str) -> None:
        console.print(f"[dim]{escape(message)}…[/dim]")

    source = resolve_model(options.model, gguf=options.gguf, trust_remote_code=options.trust_remote_code, say=say)
    with progress_bar("vocabulary") as progress:
        report = store_weights(
            options.lake,
            source,
            say=say,
            progress=progress,
        )
    record = report.as_dict()
    if options.json:
        print_json(record)
        return 0
    embeddings = ", input embeddings" if record["embeddings"] else "; the input embeddings are too large to keep"
    output().print(
        f"{'stored' if report.made else 'there already'}: {size(report.bytes)}; output vectors of "
        f"{len(record['layers'])} layers × {record['neurons']:,} neurons, their reading in {record['vocabulary']:,} "
        f"tokens{embeddings}"
    )
    return 0
