"""`neuronlake info` and `neuronlake verify`."""

import argparse
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from neuronlake.cli.common import add_command, add_lake, messages, output, print_json, size
from neuronlake.cli.extract import add_model_options
from neuronlake.store import VerifyReport, open_lake, verify
from neuronlake.store.errors import InputError
from neuronlake.store.files import sizes_below
from neuronlake.store.kept import KEPT
from neuronlake.store.lake_summary import summary
from neuronlake.store.objects import LakePath
from neuronlake.store.repair import RepairReport, repair

if TYPE_CHECKING:
    from rich.console import Console

    from neuronlake.extractor.recompute import AuditReport

_VERIFY_EXAMPLES = """
neuronlake verify my.lake                    # records, metadata and sizes
neuronlake verify my.lake --full             # every byte
neuronlake verify my.lake --full --repair    # drop what is damaged, so that the same extract command makes it again
neuronlake verify my.lake --recompute 2 --model ./SmolLM2-135M    # compute two blocks again and compare
"""


def add_commands(commands: Any) -> None:
    """Add the commands."""
    info = add_command(commands, "info", "show what a lake holds", "neuronlake info my.lake\nneuronlake info my.lake --json")
    add_lake(info)
    info.set_defaults(run=_info)
    check = add_command(commands, "verify", "check that a lake is whole", _VERIFY_EXAMPLES)
    add_lake(check)
    check.add_argument("--full", action="store_true", help="read every file and compare its checksum")
    action = check.add_mutually_exclusive_group()
    action.add_argument(
        "--repair",
        action="store_true",
        help="restore metadata, drop damaged blocks; the same extract command redoes them",
    )
    action.add_argument(
        "--recompute",
        type=_positive,
        metavar="N",
        help="extract N random blocks again and compare (needs --model; room for a block in TMPDIR)",
    )
    add_model_options(check, required=False)
    check.add_argument("--device", help="of --recompute: cpu, cuda or cuda:N (default: the kind that computed the block)")
    check.add_argument(
        "--audio",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="of --recompute, for a speech lake: the tables it was made from",
    )
    check.add_argument("--seed", type=_seed, metavar="S", help="of --recompute: choice of blocks (default: random)")
    check.set_defaults(run=_verify)


def _info(options: argparse.Namespace) -> int:
    lake = open_lake(options.lake)
    stored = sum(record.bytes for commit in lake.commits for record in commit.files)
    widths = {site: lake.spec.width(site) for site in lake.sites}
    rows = sum(commit.rows for commit in lake.commits)
    values = rows * len(lake.layers) * sum(widths.values())
    record = {
        "path": str(lake.path),
        "fingerprint": lake.fingerprint,
        "format_version": lake.spec.as_dict()["format_version"],
        "model": dict(lake.spec.model),
        "capture": dict(lake.spec.capture),
        "corpus": lake.spec.plan["corpus"],
        "context": lake.spec.plan["context"],
        "sites": list(lake.sites),
        "widths": widths,
        "layers": len(lake.layers),
        "neurons": lake.neurons,
        "encoding": lake.encoding,
        "block_rows": lake.block_rows,
        "blocks": lake.plan.blocks,
        "committed": len(lake.blocks),
        "complete": lake.complete,
        "rows": rows,
        "counts": dict(lake.plan.counts),
        "bytes": stored,
        "bytes_per_value": stored / values if values else None,
        "labels": list(lake.label_columns),
        "label_sets": {labels.name: list(labels.columns) for labels in lake.label_sets},
        "kept": {kept: _size_of(lake.path / kept) for kept in KEPT},
    }
    if options.json:
        print_json(record)
        return 0
    about = summary(lake)
    lines = {
        **{name: about[name] for name in ("model", "corpus", "text", "neurons")},
        "stored": f"{size(stored)}, {record['bytes_per_value']:.3f} bytes per value as {lake.encoding}"
        if values
        else "nothing yet",
        "blocks": about["blocks"],
        "labels": ", ".join(lake.label_columns),
        **({"added": ", ".join(record["label_sets"])} if record["label_sets"] else {}),
        "kept": ", ".join(f"{kept} {size(count)}" for kept, count in record["kept"].items() if count) or "nothing",
        "fingerprint": lake.fingerprint[:16],
    }
    console = output()
    for name, value in lines.items():
        console.print(f"[bold]{name:12s}[/bold]{escape(value)}")
    return 0


def _size_of(folder: LakePath) -> int:
    """Bytes of a folder's files, 0 where there is none."""
    return sum(sizes_below(folder).values())


def _verify(options: argparse.Namespace) -> int:
    _check_options(options)
    if options.repair:
        return _repair(options)
    report = verify(options.lake, full=options.full)
    audit = _recompute(options) if options.recompute is not None and report.ok else None
    ok = report.ok and (audit is None or audit.ok)
    if options.json:
        record = report.as_dict()
        print_json({**record, "ok": ok, "recompute": audit.as_dict()} if audit is not None else record)
        return 0 if ok else 1
    console = output()
    _show(console, report)
    if not report.ok:
        console.print(
            f"next: neuronlake verify {escape(str(options.lake))}{' --full' if options.full else ''} --repair "
            "keeps what is whole"
        )
    if audit is not None:
        _show_audit(console, audit)
    return 0 if ok else 1


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    if options.recompute is not None:
        if options.model is None:
            raise InputError("--recompute needs the model: add --model PATH|ID, the one that the lake was made with")
        return
    given = {
        "--model": options.model,
        "--gguf": options.gguf,
        "--device": options.device,
        "--audio": options.audio,
        "--seed": options.seed,
        "--trust-remote-code": options.trust_remote_code or None,
    }
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} has no effect without --recompute N")


def _show(console: "Console", report: VerifyReport) -> None:
    for line in report.damage:
        console.print(f"[red]damaged[/red]  {escape(line)}")
    for path in report.leftovers:
        console.print(f"[yellow]leftover[/yellow] {escape(path)} (never read; --repair removes it)")
    for path in report.unknown_files:
        console.print(f"[yellow]unknown[/yellow]  {escape(path)} (never read; safe to delete if it is yours)")
    if report.writer is not None:
        console.print(f"[yellow]writing[/yellow]  {escape(report.writer)} has the lake open for writing")
    read = f", {size(report.bytes_checked)} read" if report.full else ""
    problems = f"{len(report.damage)} problem{'s' if len(report.damage) > 1 else ''}"
    verdict = "[green]ok[/green]" if report.ok else f"[red]{problems}[/red]"
    console.print(
        f"{verdict}: {report.blocks_committed} of {report.blocks_planned or 'unknown'} blocks committed, "
        f"{report.files_checked} files checked{read}"
    )


def _repair(options: argparse.Namespace) -> int:
    try:
        report = repair(options.lake, full=options.full)
    except KeyboardInterrupt:
        print("neuronlake: interrupted; what was done so far is safe: run the same command again", file=sys.stderr)
        return 130
    if options.json:
        print_json(report.as_dict())
    else:
        _show_repair(output(), report, str(options.lake))
    return 0 if report.ok else 1


def _show_repair(console: "Console", report: RepairReport, lake: str) -> None:
    for line in report.damage:
        console.print(f"[red]damaged[/red]  {escape(line)}")
    for line in report.refused:
        console.print(f"[red]refused[/red]  {escape(line)}")
    for line in report.actions:
        console.print(f"[green]done[/green]     {escape(line)}")
    if report.after is not None and not report.after.ok:
        console.print("still damaged:")
        _show(console, report.after)
    if report.refused:
        console.print("[red]nothing was changed[/red]")
    elif not report.actions:
        console.print("[green]ok[/green]: nothing to repair")
    else:
        todo = (["plan again"] if report.plan_again else []) + (
            [f"extract block{'s' if len(report.redo) > 1 else ''} {', '.join(map(str, report.redo))}"] if report.redo else []
        )
        command = f"run the command that made it once more (neuronlake extract or import {lake} …) to {' and '.join(todo)}"
        console.print(f"[green]repaired[/green]: {escape(command) if todo else 'the lake is whole'}")


def _recompute(options: argparse.Namespace) -> "AuditReport":
    try:
        from neuronlake.extractor import AudioCorpus, resolve_model
        from neuronlake.extractor.recompute import recompute
    except ModuleNotFoundError as error:
        raise InputError(f"--recompute needs {error.name}: pip install 'neuronlake[extract]'") from error
    console = messages()

    def say(message: str) -> None:
        console.print(f"[dim]{escape(message)}…[/dim]")

    return recompute(
        options.lake,
        resolve_model(options.model, gguf=options.gguf, trust_remote_code=options.trust_remote_code, say=say),
        blocks=options.recompute,
        seed=secrets.randbits(32) if options.seed is None else options.seed,
        device=options.device or "auto",
        trust_remote_code=options.trust_remote_code,
        audio=AudioCorpus(paths=tuple(options.audio)) if options.audio else None,
        say=say,
    )


def _show_audit(console: "Console", audit: "AuditReport") -> None:
    for block in audit.blocks:
        verdict = "[green]same[/green]    " if block.ok else "[red]differs[/red] "
        if block.identical:
            detail = "identical, byte for byte"
        else:
            detail = (
                f"not identical: {block.differing:.2%} of the values differ, by at most {block.largest:.1e} of the largest "
                f"in layer {block.largest_layer}, {block.typical:.1e} in a typical neuron (tolerance {block.tolerance:.1e})"
            )
        console.print(f"{verdict} block {block.block}, {block.rows:,} rows: {detail}")
        for line in block.provenance_differences:
            console.print(f"          {escape(line)}")
    verdict = "[green]ok[/green]" if audit.ok else "[red]the lake does not hold what this model computes[/red]"
    console.print(f"{verdict}: {len(audit.blocks)} blocks computed again (--seed {audit.seed})")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)
