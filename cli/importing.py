"""`neuronlake import`: from activation files that somebody already has to a lake."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from neuronlake.cli.common import add_command, add_lake, messages, output, print_json
from neuronlake.store import ENCODINGS
from neuronlake.store.commits import committed_blocks
from neuronlake.store.layout import DEFAULT_SITE
from neuronlake.store.lock import refuse_second_writer

if TYPE_CHECKING:
    from neuronlake.store.foreign import ForeignSource

_EXAMPLES = """
neuronlake import eeg.lake recording.npy --tokens samples.csv --name "EEG, subject 3"
neuronlake import old.lake acts/layer-*.npy --tokens tokens.parquet --encoding bfloat16
neuronlake import acts.lake activations.safetensors --select 'blocks.*.mlp.hook_post'
neuronlake import bert.lake activations.hdf5 --tokens labels.tsv         # NeuroX; words come from the file
neuronlake import gemma.lake cached-activations/ --site hook_mlp_out     # SAELens CacheActivationsRunner
"""


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "import", "make a lake from activations that you already have; run again to resume", _EXAMPLES
    )
    add_lake(parser)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="activation files or folders of one format")
    source = parser.add_argument_group("source")
    source.add_argument(
        "--format",
        choices=("auto", "npy", "safetensors", "neurox", "saelens"),
        default="auto",
        help="what the sources are (default: auto, by their names)",
    )
    source.add_argument(
        "--tokens",
        type=Path,
        metavar="FILE",
        help="table with one line per row (.parquet, .csv, .tsv, .jsonl): form, token_id, sentence, document, word; "
        "every other column is a label",
    )
    source.add_argument(
        "--layers", type=_numbers, metavar="N,N", help="numbers of the layers, in the source's order (default: by the names)"
    )
    source.add_argument("--select", metavar="PATTERN", help="shell pattern of the tensors or columns to take (default: all)")
    source.add_argument(
        "--neurons-per-layer",
        type=_positive,
        metavar="N",
        help="of NeuroX data sets (tokens, layers × neurons) (default: they are one layer)",
    )
    lake = parser.add_argument_group("lake")
    lake.add_argument("--name", help="what the activations are of (default: the first source's name)")
    lake.add_argument("--site", default=DEFAULT_SITE, help="where in the model they are from (default: %(default)s)")
    lake.add_argument(
        "--encoding", choices=tuple(ENCODINGS), default="float16", help="how values are stored (default: float16)"
    )
    lake.add_argument(
        "--block-rows",
        type=_positive,
        metavar="N",
        help="rows of a block, a power of two (default: what fits in 2 GiB, at most 8192)",
    )
    parser.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    from neuronlake.store.compose import write_lake
    from neuronlake.store.foreign import ForeignSettings, open_foreign
    from neuronlake.store.foreign_tokens import read_token_table

    settings = ForeignSettings(
        format=options.format,
        layers=options.layers,
        select=options.select,
        neurons_per_layer=options.neurons_per_layer,
    )
    console = messages()
    refuse_second_writer(options.lake)  # hashing the source takes a while
    with open_foreign(options.sources, settings) as source:
        tokens: dict[str, Any] = dict(source.tokens)
        if options.tokens is not None:
            table = read_token_table(options.tokens)
            tokens.update(zip(table.column_names, table.columns, strict=True))
        rows = next(iter(source.layers.values())).shape[0]
        before = set(committed_blocks(options.lake))
        console.print(f"[dim]hashing {len(source.files)} file{'s' * (len(source.files) > 1)}…[/dim]")
        identity = source.identity()
        with Progress(
            TextColumn("importing"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as bar:
            task = bar.add_task("", total=rows)
            lake = write_lake(
                options.lake,
                source.layers,
                tokens=tokens,
                name=options.name or _default_name(options.sources[0]),
                encoding=options.encoding,
                site=options.site,
                block_rows=options.block_rows,
                identity=identity,
                progress=lambda done, _total: bar.update(task, completed=done),
            )
        _report(options, source, lake, sorted(set(lake.blocks) - before))
    return 0


def _default_name(source: Path) -> str:
    return source.resolve().name if source.is_dir() else source.stem


def _report(options: argparse.Namespace, source: "ForeignSource", lake: Any, written: list[int]) -> None:
    counts = dict(lake.plan.counts)
    if options.json:
        print_json(
            {
                "lake": str(lake.path),
                "format": source.format,
                "layers": {str(layer): origin for layer, origin in source.origins.items()},
                "rows": counts["tokens"] + counts["special"],
                "neurons": lake.neurons,
                "labels": list(lake.plan.label_columns),
                "blocks": lake.plan.blocks,
                "written": written,
                "committed": len(lake.blocks),
                "counts": counts,
            }
        )
        return
    console = output()
    for layer, origin in source.origins.items():
        console.print(f"layer {layer}: {escape(origin)}")
    console.print(
        f"{counts['documents']:,} documents, {counts['sentences']:,} sentences, {counts['words']:,} words, "
        f"{counts['tokens']:,} tokens (and {counts['special']:,} special) × {lake.neurons:,} neurons"
    )
    labels = ", ".join(lake.plan.label_columns) or "none"
    console.print(f"labels: {escape(labels)}")
    console.print(
        f"{escape(str(lake.path))}: {len(lake.blocks)} of {lake.plan.blocks} blocks committed, {len(written)} by this run"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected layer numbers, for example 0,4,8; got {text!r}")
    return tuple(map(int, parts))
