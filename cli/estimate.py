"""`neuronlake estimate`: what a lake will take, before a GPU is rented for it."""

import argparse
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from neuronlake.cli.common import add_command, lake_argument, messages, output, print_json, size, table
from neuronlake.store import DEFAULT_ENCODING, ENCODINGS, InputError, open_lake
from neuronlake.store.layout import DEFAULT_SITE

if TYPE_CHECKING:
    from neuronlake.store.capacity import Contents, LakeShape
    from neuronlake.store.capacity_rates import MeasuredLake

_EXAMPLES = """
neuronlake estimate --model ./Llama-3-8B --tokens 100e6 --tokens-per-second 20000 --gpus 8 --gpu-price 2.5
neuronlake estimate --layers 80 --neurons 28672 --tokens 100e6 --block-rows 4096
neuronlake estimate --layers 32 --neurons 14336 --hidden 4096 --sites mlp.post resid.post --tokens 1e6
neuronlake estimate --model ./SmolLM2-135M --tokens 1e6 --measure 5               # runs the model here
neuronlake estimate --model ./SmolLM2-135M --tokens 10e6 --measured small.lake    # bytes and times of a lake that exists
neuronlake estimate --layers 32 --neurons 14336 --tokens 100e6 --bandwidth 10Gbit --storage-price 21 --egress-price 90
"""
_HIDDEN_SITES = ("resid.post", "mlp.out", "attn.head_out")
_NEURON_SITES = (DEFAULT_SITE, "mlp.gate", "mlp.gate_sign", "mlp.up")
# Sentences of EWT have 19 tokens; one that is at hand when a block is full has more, since long ones are hit more often.
_SEQUENCE_TOKENS = 64
_ENCODE_SECONDS = 1.5
_BANDWIDTH = re.compile(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([kmgt]?)(bit|b|B)(?:/s|ps)?", re.IGNORECASE)
_LARGE_INDEX = 0.25  # of the activations
_COMFORTABLE_BYTES = 32 << 30


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "estimate", "say what a lake will take: bytes, files, memory, hours, money; nothing is written", _EXAMPLES
    )
    model = parser.add_argument_group("model (its configuration, or its shape)")
    model.add_argument("--model", metavar="PATH|ID", help="folder, .gguf file or hub id; no weights are needed")
    model.add_argument("--gguf", metavar="FILE", help="GGUF file inside the folder or hub repository")
    model.add_argument("--trust-remote-code", action="store_true", help="let the model's repository run its own Python code")
    model.add_argument("--module", metavar="PATTERN", help="as for extract")
    model.add_argument("--layers", type=_count, metavar="N", help="layers, without a model")
    model.add_argument("--neurons", type=_count, metavar="N", help="MLP neurons per layer, without a model")
    model.add_argument("--hidden", type=_count, metavar="N", help="width of the residual stream, without a model")
    model.add_argument("--sites", nargs="+", metavar="SITE", help=f"what is kept (default: {DEFAULT_SITE})")
    lake = parser.add_argument_group("lake")
    lake.add_argument("--tokens", type=_count, required=True, metavar="N", help="tokens of the corpus, such as 100e6")
    lake.add_argument("--encoding", default=DEFAULT_ENCODING, metavar="NAME", help="of values (default: %(default)s)")
    lake.add_argument("--block-rows", type=_count, metavar="N", help="rows of a block (default: as extract chooses)")
    lake.add_argument(
        "--sequence-tokens",
        type=_count,
        metavar="N",
        help="tokens of a sentence, or of a document: half of one stays empty at every block's end (default: 64)",
    )
    lake.add_argument("--tags", type=_whole, default=17, metavar="N", help="tags of the label that is kept (default: 17)")
    lake.add_argument(
        "--measured", type=lake_argument, metavar="LAKE", help="take bytes per value and the rest from a lake that exists"
    )
    rates = parser.add_argument_group("rates")
    rate = rates.add_mutually_exclusive_group()
    rate.add_argument(
        "--tokens-per-second",
        type=_amount,
        metavar="R",
        help="of one GPU; of a model that several share: divided by their number (default: of --measured)",
    )
    rate.add_argument("--measure", type=_amount, metavar="SECONDS", help="run the model here for so long to find that out")
    rates.add_argument("--device", default="auto", help="of --measure: cpu, cuda or cuda:N")
    rates.add_argument("--gpus", type=_count, default=1, metavar="N", help="GPUs (default: 1)")
    rates.add_argument(
        "--encode-rate",
        type=_amount,
        metavar="V",
        help="values that a core encodes a second, such as 200e6 (default: measured here)",
    )
    rates.add_argument("--cores", type=_count, metavar="N", help="cores of the analysis (default: this machine's)")
    rates.add_argument("--bandwidth", type=_bandwidth, metavar="B", help="of a transfer: 10Gbit, 500MB (a second)")
    prices = parser.add_argument_group("prices (any currency)")
    prices.add_argument("--gpu-price", type=_amount, metavar="P", help="of a GPU for an hour")
    prices.add_argument("--storage-price", type=_amount, metavar="P", help="of a TB for a month")
    prices.add_argument("--egress-price", type=_amount, metavar="P", help="of a TB that leaves")
    prices.add_argument("--months", type=_amount, default=1.0, metavar="N", help="that the lake is kept (default: 1)")
    parser.set_defaults(run=_estimate)


def _estimate(options: argparse.Namespace) -> int:
    from neuronlake.store.capacity import BENCHMARKED, LakeShape, contents
    from neuronlake.store.capacity_rates import measure_encoding, measure_lake
    from neuronlake.store.capacity_work import Means, work
    from neuronlake.store.parallel import usable_cpus

    if options.encoding not in ENCODINGS:
        raise InputError(f"unknown encoding {options.encoding!r}: known are {', '.join(ENCODINGS)}")
    layers, widths = _shape(options)
    shapes = {
        name: LakeShape.of(layers=layers, widths=widths, encoding=name, block_rows=options.block_rows) for name in ENCODINGS
    }
    shape = shapes[options.encoding]
    measured = None if options.measured is None else measure_lake(open_lake(options.measured))
    footprint = BENCHMARKED if measured is None else measured.footprint
    found = {
        name: contents(
            one, tokens=options.tokens, filled=_filled(options, one, measured), tags=options.tags, footprint=footprint
        )
        for name, one in shapes.items()
    }
    speed, speed_source = _speed(options, shape, measured)
    encode = options.encode_rate or measure_encoding(shape, seconds=_ENCODE_SECONDS)
    means = Means(
        tokens_per_second=speed,
        gpus=options.gpus,
        encode_values_per_second=encode,
        cores=options.cores or usable_cpus(),
        bandwidth_bytes_per_second=options.bandwidth,
        gpu_hour_price=options.gpu_price,
        storage_price=options.storage_price,
        months=options.months,
        egress_price=options.egress_price,
    )
    lake = found[options.encoding]
    stages = work(shape, lake, means)
    report = {
        "model": options.model,
        "layers": layers,
        "widths": dict(widths),
        "tokens": options.tokens,
        "values_per_token": shape.values_per_token,
        "values": shape.values_per_token * options.tokens,
        "encodings": {
            name: {
                "bytes_per_value": (one.size["shards"] + one.size["scales"]) / (shape.values_per_token * options.tokens),
                "activations_bytes": one.size["shards"] + one.size["scales"],
                "bytes": one.all_bytes,
                "block_rows": shapes[name].block_rows,
                "blocks": one.blocks,
            }
            for name, one in found.items()
        },
        "encoding": options.encoding,
        "block_rows": shape.block_rows,
        "blocks": lake.blocks,
        "buffer_bytes": shape.buffer_bytes,
        "files": {**lake.files, "all": lake.all_files},
        "bytes": {**lake.size, "all": lake.all_bytes},
        "gpus": options.gpus,
        **stages,
        "encode_values_per_second": encode,
        "sources": {
            "bytes": footprint.source,
            "tokens_per_second": speed_source,
            "encode_values_per_second": "given" if options.encode_rate else "measured on a core of this machine just now",
            "pass": "benchmarks/results/statistics.json, two cores",
        },
        "remarks": _remarks(shape, lake),
    }
    if options.json:
        print_json(report)
    else:
        _show(report)
    return 0


def _shape(options: argparse.Namespace) -> tuple[int, Mapping[str, int]]:
    """Layers, and units of each site."""
    if options.model is not None:
        if options.layers or options.neurons or options.hidden:
            raise InputError("give --model, or --layers and --neurons, not both")
        try:
            from neuronlake.extractor.speed import model_shape
        except ModuleNotFoundError as error:
            raise InputError(
                f"reading a model needs {error.name}: pip install 'neuronlake[extract]', or give --layers and --neurons"
            ) from error
        found = model_shape(
            options.model,
            gguf=options.gguf,
            sites=options.sites,
            module=options.module,
            trust_remote_code=options.trust_remote_code,
        )
        return found.layers, found.widths
    if options.gguf or options.module or options.trust_remote_code or options.measure:
        raise InputError("--gguf, --module, --trust-remote-code and --measure need --model")
    if not (options.layers and options.neurons):
        raise InputError("say which model: --model PATH|ID, or --layers N --neurons N")
    known = dict.fromkeys(_NEURON_SITES, options.neurons) | dict.fromkeys(_HIDDEN_SITES, options.hidden)
    sites = options.sites or [DEFAULT_SITE]
    if len(set(sites)) != len(sites):
        raise InputError(f"name each site once, got {' '.join(sites)}")
    for site in sites:
        if site not in known:
            raise InputError(f"the width of site {site!r} is not known without a model: known are {', '.join(known)}")
        if known[site] is None:
            raise InputError(f"site {site} is as wide as the residual stream: add --hidden N")
    return options.layers, {site: known[site] for site in sites}


def _filled(options: argparse.Namespace, shape: "LakeShape", measured: "MeasuredLake | None") -> float:
    """Rows in use of a block, on average."""
    if measured is not None and options.sequence_tokens is None:
        lake = open_lake(options.measured)
        empty = lake.block_rows - measured.filled
    else:
        empty = ((options.sequence_tokens or _SEQUENCE_TOKENS) - 1) / 2
    return max(shape.block_rows - empty, shape.block_rows / 2)  # at worst every block is half empty


def _speed(
    options: argparse.Namespace, shape: "LakeShape", measured: "MeasuredLake | None"
) -> tuple[float | None, str | None]:
    """Tokens a second of one GPU, and where that is from."""
    if options.tokens_per_second:
        return options.tokens_per_second, "given"
    if options.measure:
        from neuronlake.extractor.speed import tokens_per_second

        console = messages()
        rate = tokens_per_second(
            options.model,
            seconds=options.measure,
            gguf=options.gguf,
            sites=options.sites,
            module=options.module,
            trust_remote_code=options.trust_remote_code,
            device=options.device,
            sequence_tokens=options.sequence_tokens or _SEQUENCE_TOKENS,
            say=lambda line: console.print(f"[dim]{escape(line)}…[/dim]"),
        )
        return rate, "the model, run here just now on made-up text; without encoding and writing"
    if measured is not None and measured.tokens_per_second is not None:
        lake = open_lake(options.measured)
        if (len(lake.layers), sum(lake.spec.width(site) for site in lake.sites)) == (
            shape.layers,
            sum(shape.widths.values()),
        ):
            return measured.tokens_per_second, f"times between the commits of {options.measured}"
    return None, None


def _remarks(shape: "LakeShape", lake: "Contents") -> list[str]:
    remarks = []
    activations = lake.size["shards"] + lake.size["scales"]
    if lake.size["index"] > _LARGE_INDEX * activations:
        line = (
            f"the index is {lake.size['index'] / activations:.0%} of the activations: its size is fixed per neuron and block"
        )
        rows = shape.block_rows
        while (
            rows < 1 << 16 and rows < lake.tokens and shape.buffer_bytes / shape.block_rows * rows * 2 <= _COMFORTABLE_BYTES
        ):
            rows *= 2
        if rows > shape.block_rows:
            line += f"; --block-rows {rows} makes it {rows // shape.block_rows} times smaller, for buffers of "
            line += size(shape.buffer_bytes / shape.block_rows * rows)
        remarks.append(line)
    return remarks


def _show(report: dict[str, Any]) -> None:
    console = output()

    def line(name: str, text: str) -> None:
        console.print(f"[bold]{name:12s}[/bold]{escape(text)}")

    widths, extract, analyse = report["widths"], report["extract"], report["analyse"]
    line(
        "model",
        f"{report['model'] or 'by its shape'}: {report['layers']} layers × "
        + ", ".join(f"{width:,} at {site}" for site, width in widths.items()),
    )
    line("values", f"{report['values_per_token']:,} per token, {report['values']:.3g} of {report['tokens']:,} tokens")
    grid = table("encoding", ">bytes/value", ">activations", ">with the rest", ">block rows", ">blocks")
    for name, one in report["encodings"].items():
        grid.add_row(
            f"{name} *" if name == report["encoding"] else name,
            f"{one['bytes_per_value']:.3f}",
            size(one["activations_bytes"]),
            size(one["bytes"]),
            f"{one['block_rows']:,}",
            f"{one['blocks']:,}",
        )
    console.print(grid)
    sizes, files = report["bytes"], report["files"]
    line("stored", ", ".join(f"{kind} {size(count)}" for kind, count in sizes.items() if count and kind != "all"))
    line("files", f"{files['all']:,}: " + ", ".join(f"{n:,} {kind}" for kind, n in files.items() if n and kind != "all"))
    line(
        "memory", f"{size(report['buffer_bytes'])} for a block's buffer; twice that with a GPU, one being written meanwhile"
    )
    if extract["hours"] is None:
        line("extraction", "give --tokens-per-second, --measure SECONDS or --measured LAKE for its time")
        line("encoding", f"{extract['encoding_core_hours']:,.1f} hours of a core")
    else:
        rate = extract["bytes_per_second"]
        line(
            "extraction",
            f"{extract['tokens_per_second']:,.0f} tokens/s on {report['gpus']} GPU{'s' * (report['gpus'] > 1)}: "
            f"{_hours(extract['hours'])}, {extract['gpu_hours']:,.1f} GPU hours",
        )
        line("to keep up", f"{size(rate)}/s to the disk, {rate * 8 / 1e9:,.2f} Gbit/s to an object store")
        line(
            "encoding",
            f"{extract['encoding_cores']:,.1f} cores to keep up, {extract['encoding_core_hours']:,.1f} core hours in all, "
            f"{report['encode_values_per_second'] / 1e6:,.0f} Mvalues/s a core",
        )
    line(
        "analysis",
        f"a pass of all statistics: {_hours(analyse['pass_hours'])} on {analyse['cores']} cores, "
        f"reading {size(analyse['bytes_read'])} at {size(analyse['bytes_per_second'])}/s",
    )
    if report["transfer"]["hours"] is not None:
        line("transfer", _hours(report["transfer"]["hours"]))
    prices = {
        "extraction": extract["cost"],
        f"storage of {report['keep']['months']:g} month{'s' * (report['keep']['months'] != 1)}": report["keep"]["cost"],
        "one transfer out": report["transfer"]["cost"],
    }
    if any(price is not None for price in prices.values()):
        line("cost", ", ".join(f"{stage} {price:,.2f}" for stage, price in prices.items() if price is not None))
    for remark in report["remarks"]:
        line("remark", remark)
    sources = report["sources"]
    console.print(f"[dim]bytes as measured of {escape(sources['bytes'])}; other models and texts differ[/dim]")
    if sources["tokens_per_second"]:
        console.print(f"[dim]tokens/s: {escape(sources['tokens_per_second'])}[/dim]")
    console.print(f"[dim]encoding: {sources['encode_values_per_second']}; statistics: {sources['pass']}[/dim]")


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.1f} s"
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    return f"{hours:,.1f} hours" if hours < 72 else f"{hours / 24:,.1f} days"


def _amount(text: str) -> float:
    """A positive number, for argparse."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = math.nan
    if not 0 < value < 1e15:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _count(text: str) -> int:
    """A whole number of at least 1, also as 100e6, for argparse."""
    try:
        value = float(text.replace("_", "").replace(",", ""))
    except ValueError:
        value = math.nan
    if not (1 <= value <= 1e15 and value == int(value)):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1e15, such as 100e6, got {text!r}")
    return int(value)


def _whole(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _bandwidth(text: str) -> float:
    """Bytes a second, for argparse: 10Gbit, 500MB."""
    match = _BANDWIDTH.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) < 1e18:
        raise argparse.ArgumentTypeError(f"expected a rate such as 10Gbit or 500MB, got {text!r}")
    scale = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}[match[2].lower()]
    bits = match[3].lower() == "bit" or match[3] == "b"
    return float(match[1]) * scale / (8 if bits else 1)
