"""`neuronlake info` and `neuronlake verify`."""

import argparse
from typing import Any

from rich.markup import escape

from neuronlake.cli.common import add_command, add_lake, output, print_json, size
from neuronlake.store import open_lake, verify


def add_commands(commands: Any) -> None:
    """Add the commands."""
    info = add_command(commands, "info", "show what a lake holds", "neuronlake info my.lake\nneuronlake info my.lake --json")
    add_lake(info)
    info.set_defaults(run=_info)
    check = add_command(
        commands,
        "verify",
        "check that a lake is whole",
        "neuronlake verify my.lake          # records and sizes\nneuronlake verify my.lake --full   # every byte",
    )
    add_lake(check)
    check.add_argument("--full", action="store_true", help="read every file and compare its checksum")
    check.set_defaults(run=_verify)


def _info(options: argparse.Namespace) -> int:
    lake = open_lake(options.lake)
    stored = sum(record.bytes for commit in lake.commits for record in commit.files)
    rows = sum(commit.rows for commit in lake.commits)
    values = rows * len(lake.layers) * len(lake.sites) * lake.neurons
    record = {
        "path": str(lake.path),
        "fingerprint": lake.fingerprint,
        "format_version": lake.spec.as_dict()["format_version"],
        "model": dict(lake.spec.model),
        "capture": dict(lake.spec.capture),
        "corpus": lake.spec.plan["corpus"],
        "context": lake.spec.plan["context"],
        "sites": list(lake.sites),
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
    }
    if options.json:
        print_json(record)
        return 0
    files = ", ".join(file["name"] for file in record["corpus"].get("files", [])[:4])
    counts = record["counts"]
    lines = {
        "model": f"{lake.spec.model['name']} ({lake.spec.model['architecture']}, computed in {lake.spec.capture['dtype']})",
        "corpus": f"{files}{' …' if len(record['corpus'].get('files', [])) > 4 else ''}, {record['context']} context",
        "text": ", ".join(f"{counts[name]:,} {name}" for name in ("documents", "sentences", "words", "tokens")),
        "neurons": f"{len(lake.layers)} layers × {lake.neurons:,} neurons, site {', '.join(lake.sites)}",
        "stored": f"{size(stored)}, {record['bytes_per_value']:.3f} bytes per value as {lake.encoding}"
        if values
        else "nothing yet",
        "blocks": f"{len(lake.blocks)} of {lake.plan.blocks} committed, {lake.block_rows:,} rows each",
        "labels": ", ".join(lake.label_columns),
        "fingerprint": lake.fingerprint[:16],
    }
    console = output()
    for name, value in lines.items():
        console.print(f"[bold]{name:12s}[/bold]{escape(value)}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    report = verify(options.lake, full=options.full)
    if options.json:
        print_json(report.as_dict())
        return 0 if report.ok else 1
    console = output()
    for line in report.damage:
        console.print(f"[red]damaged[/red]  {line}")
    for path in report.unknown_files:
        console.print(f"[yellow]unknown[/yellow]  {path} (never read; safe to delete if it is yours)")
    read = f", {size(report.bytes_checked)} read" if report.full else ""
    verdict = "[green]ok[/green]" if report.ok else f"[red]{len(report.damage)} problems[/red]"
    console.print(
        f"{verdict}: {report.blocks_committed} of {report.blocks_planned} blocks committed, "
        f"{report.files_checked} files checked{read}"
    )
    return 0 if report.ok else 1
