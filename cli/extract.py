"""`neuronlake extract`: from a corpus and a model to a lake."""

import argparse
import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronlake.cli.common import add_command, add_lake, messages, output, print_json
from neuronlake.cli.gathering import Gathering
from neuronlake.store import DEFAULT_ENCODING, ENCODINGS
from neuronlake.store.commits import committed_blocks
from neuronlake.store.errors import DamageError, InputError, StorageError
from neuronlake.store.lock import refuse_second_writer
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import read_plan_record

if TYPE_CHECKING:
    from rich.console import Console

    from neuronlake.extractor import ExtractReport
    from neuronlake.extractor.corpora import Corpus

_EXAMPLES = """
neuronlake extract ewt.lake --model HuggingFaceTB/SmolLM2-135M --conllu en_ewt-ud-train.conllu.gz
neuronlake extract ewt.lake --model ./models --gguf SmolLM2-135M-Instruct.Q4_1.gguf --conllu treebanks/
neuronlake extract books.lake --model ./Llama-3-8B --text books/ --tagger en_core_web_sm --context document --on-long split
neuronlake extract mine.lake --model ./model --table tagged.parquet --encoding bfloat16
neuronlake extract talks.lake --model facebook/wav2vec2-large-960h-lv60-self --audio utterances.jsonl
neuronlake extract ewt.lake --model ./model --conllu ewt.conllu --shard $SLURM_ARRAY_TASK_ID/16    # with --array=0-15
neuronlake extract ewt.lake --model ./model --conllu ewt.conllu --scheduler tcp://10.0.0.1:8786    # on a Dask cluster
neuronlake extract ewt.lake --model ./Llama-3-70B --conllu ewt.conllu --backend vllm --tensor-parallel 4
"""


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "extract", "run a model over a corpus once and keep every neuron; run again to resume", _EXAMPLES
    )
    add_lake(parser)
    add_model_options(parser)
    corpus = parser.add_argument_group("corpus (one of)")
    kind = corpus.add_mutually_exclusive_group(required=True)
    kind.add_argument("--conllu", nargs="+", type=Path, metavar="FILE", help="CoNLL-U files or folders, also .gz")
    kind.add_argument(
        "--text", nargs="+", type=Path, metavar="FILE", help="plain text files or folders, each file a document"
    )
    kind.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="tagged sentences as JSONL or Parquet")
    kind.add_argument(
        "--audio",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="speech: tables (JSONL or Parquet) of utterances that name their audio files and time their words",
    )
    corpus.add_argument(
        "--tagger", default="en_core_web_sm", metavar="PIPE", help="spaCy pipeline for --text (default: %(default)s)"
    )
    corpus.add_argument(
        "--processes", type=_positive, default=1, metavar="N", help="tagging processes for --text (default: 1)"
    )
    corpus.add_argument("--limit-sentences", type=_positive, metavar="N", help="take only the first N sentences")
    plan = parser.add_argument_group("plan")
    plan.add_argument(
        "--context",
        choices=("sentence", "document"),
        default="sentence",
        help="what the model sees at once (default: sentence)",
    )
    plan.add_argument(
        "--on-long",
        choices=("error", "truncate", "split"),
        default="error",
        help="a too long sequence is refused, cut (and counted), or its document split between sentences (default: error)",
    )
    plan.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="longest sequence (default: the model's context, at most a block)"
    )
    plan.add_argument("--no-special-tokens", action="store_true", help="do not let the tokenizer add its special tokens")
    plan.add_argument(
        "--block-rows",
        type=_positive,
        metavar="N",
        help="rows of a block, a power of two (default: what fits in 2 GiB, at most 8192)",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--backend", choices=("transformers", "vllm"), default="transformers", help="engine of the forward passes"
    )
    run.add_argument(
        "--tensor-parallel", type=_positive, default=1, metavar="N", help="GPUs that share every layer (with --backend vllm)"
    )
    run.add_argument(
        "--sites",
        nargs="+",
        metavar="SITE",
        help="what to keep: mlp.post (the neurons; default), mlp.gate, mlp.gate_sign, mlp.up, mlp.out, resid.post, "
        "attn.head_out; of mixtures of experts also mlp.routing (default too), mlp.shared",
    )
    run.add_argument(
        "--module",
        metavar="PATTERN",
        help="for an architecture that is not known: name of the MLPs' output projections, whose inputs are the neurons, "
        "with {layer} for the layer's number",
    )
    run.add_argument(
        "--encoding",
        choices=tuple(ENCODINGS),
        default=DEFAULT_ENCODING,
        help=f"how values are stored (default: {DEFAULT_ENCODING})",
    )
    run.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    run.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="compute precision (default: float32 on a CPU, the checkpoint's on a GPU)",
    )
    run.add_argument(
        "--batch-tokens",
        type=_positive,
        metavar="N",
        help="largest padded forward pass (default: 512 on a CPU, 16384 on a GPU)",
    )
    run.add_argument(
        "--plain-kernels",
        action="store_true",
        help="on a CPU, compute as transformers alone does, to the bit (by default linear layers are faster and differ by "
        "float32's rounding)",
    )
    run.add_argument(
        "--stats",
        metavar="LABEL",
        help="label whose statistics and top tokens are gathered on the way, so that `rank` and `top --where LABEL=TAG` are "
        "ready at the end; 'none' for none (default: upos, where the corpus has it)",
    )
    many = parser.add_argument_group(
        "several processes or machines",
        "run the same command as often as you like, at once: each takes blocks that no other is at",
    )
    part = many.add_mutually_exclusive_group()
    part.add_argument("--blocks", type=_block_range, metavar="A:B", help="extract only blocks A to B-1")
    part.add_argument(
        "--shard",
        type=_shard,
        metavar="K/N",
        help="extract only every N-th block, beginning with block K; K counts from 0 to N-1, as SLURM_ARRAY_TASK_ID does "
        "with --array=0-15 and N = 16",
    )
    many.add_argument(
        "--wait",
        type=_seconds,
        default=3600,
        metavar="SECONDS",
        help="longest wait for another process that plans this lake or completes its index (default: %(default)s)",
    )
    many.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="have the workers of a dask.distributed cluster extract, for example tcp://10.0.0.1:8786; lake and model must "
        "be where the workers find them under the same name",
    )
    many.add_argument(
        "--worker-resources",
        type=_resources,
        metavar="NAME=N",
        help="what a block takes of a worker's declared resources (default: GPU=1 if workers declare GPU)",
    )
    parser.set_defaults(run=_extract)


def add_model_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that say which model."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", required=required, metavar="PATH|ID", help="folder, .gguf file or hub id of a transformers model"
    )
    model.add_argument("--gguf", metavar="FILE", help="GGUF file inside the folder or hub repository")
    model.add_argument("--trust-remote-code", action="store_true", help="let the model's repository run its own Python code")


def describe_interruption(root: LakePath) -> str:
    """Say how far an interrupted extraction got and how to go on."""
    try:
        plan = read_plan_record(root) if root.is_dir() else None
        done = len(committed_blocks(root))
    except (DamageError, StorageError) as error:
        return f"interrupted; {error}"
    if plan is None and done:
        return f"interrupted while planning again; {done} committed blocks are kept: run the same command again"
    if plan is None:
        return "interrupted while planning; run the same command again to start over"
    return f"interrupted; {done} of {plan.blocks} blocks are committed in {root}: run the same command again to go on"


def _extract(options: argparse.Namespace) -> int:
    if options.worker_resources and not options.scheduler:
        raise InputError("--worker-resources says what a block takes of a cluster's worker: name its --scheduler, too")
    if options.shard and options.scheduler:
        raise InputError("--shard is for processes that know of no scheduler: leave it out, the workers share the blocks")
    corpus = _corpus(options)
    refuse_second_writer(options.lake, shared=True)  # hashing the weights of a large model takes a while
    # torch and transformers take seconds to import: bad input has been found by now
    try:
        from neuronlake.cli.progress import ExtractProgress
        from neuronlake.extractor import ExtractSettings, extract, resolve_model
    except ModuleNotFoundError as error:
        raise InputError(f"extraction needs {error.name}: pip install 'neuronlake[extract]'") from error

    settings = ExtractSettings(
        encoding=options.encoding,
        context=options.context,
        on_long=options.on_long,
        max_tokens=options.max_tokens,
        special_tokens=not options.no_special_tokens,
        block_rows=options.block_rows,
        device=options.device,
        dtype=options.dtype,
        batch_tokens=options.batch_tokens,
        blocks=options.blocks,
        shard=options.shard,
        wait_s=options.wait,
        trust_remote_code=options.trust_remote_code,
        sites=None if options.sites is None else tuple(options.sites),
        module=options.module,
        backend=options.backend,
        tensor_parallel=options.tensor_parallel,
        plain_kernels=options.plain_kernels,
    )
    with ExtractProgress(messages(), unit="frame" if options.audio else "token") as progress, ExitStack() as stack:
        cluster = None
        if options.scheduler:  # before anything that takes long
            from neuronlake.extractor.cluster import ClusterSettings, connect

            wanted = ClusterSettings(
                address=options.scheduler, model=options.model, gguf=options.gguf, resources=options.worker_resources
            )
            cluster = stack.enter_context(connect(wanted, settings, progress.observer))
        source = resolve_model(
            options.model, gguf=options.gguf, trust_remote_code=options.trust_remote_code, say=progress.observer.say
        )
        gathering = Gathering(options.stats, progress.observer.say)
        if cluster is not None:
            if options.stats is not None:
                progress.observer.tap = gathering.start
            report = cluster.extract(options.lake, corpus, source)
            gathering.compute(report)
        else:
            progress.observer.tap = gathering.start
            report = extract(options.lake, corpus, source, settings, progress.observer)
            gathering.finish(report, alone=options.shard is None)
    if options.json:
        print_json(report.as_dict())
        return 0
    show_counts(output(), report)
    return 0


def show_counts(console: "Console", report: "ExtractReport") -> None:
    """Print what was planned, how well tokens and words align, and what is committed."""
    counts, frames = report.counts, report.unit == "frame"
    rows = f"{counts['tokens']:,} frames" if frames else f"{counts['tokens']:,} tokens (and {counts['special']:,} special)"
    console.print(f"{counts['documents']:,} documents, {counts['sentences']:,} sentences, {counts['words']:,} words, {rows}")
    alignment = (
        f"{counts['uncovered']:,} frames lie in no word; {counts['words_unreached']:,} words reached by no frame"
        if frames
        else f"{counts['multi']:,} tokens cover several words, {counts['uncovered']:,} cover none; "
        f"{counts['words_unreached']:,} words reached by no token, {counts['words_only_multi']:,} only by shared ones"
    )
    console.print(f"alignment: {alignment}; {counts['truncated_sequences']:,} sequences truncated")
    console.print(
        f"{report.lake}: {report.committed} of {report.blocks} blocks committed, {len(report.extracted)} by this run"
    )


def _corpus(options: argparse.Namespace) -> "Corpus":
    from neuronlake.extractor.corpora import AudioCorpus, ConlluCorpus, TableCorpus, TextCorpus

    if options.conllu:
        return ConlluCorpus(paths=tuple(options.conllu), limit_sentences=options.limit_sentences)
    if options.audio:
        return AudioCorpus(paths=tuple(options.audio), limit_sentences=options.limit_sentences)
    if options.table:
        return TableCorpus(paths=tuple(options.table), limit_sentences=options.limit_sentences)
    return TextCorpus(
        paths=tuple(options.text),
        tagger=options.tagger,
        processes=options.processes,
        limit_sentences=options.limit_sentences,
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, at least 0, got {text!r}")
    return seconds


def _shard(text: str) -> tuple[int, int]:
    place, slash, shards = text.partition("/")
    if not (slash and place.isdecimal() and shards.isdecimal() and int(place) < int(shards)):
        raise argparse.ArgumentTypeError(
            f"expected K/N with K from 0 to N-1, for example 0/16 to 15/16 (--array=0-15), got {text!r}"
        )
    return int(place), int(shards)


def _resources(text: str) -> dict[str, float]:
    found = {}
    for part in text.split(","):
        name, equals, amount = part.strip().partition("=")
        if not (name and equals and amount.isdecimal() and int(amount) > 0):
            raise argparse.ArgumentTypeError(f"expected NAME=N, for example GPU=1, got {text!r}")
        found[name] = float(amount)
    return found


def _block_range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected FIRST:LAST, for example 0:8, got {text!r}")
    return int(first), int(last)
