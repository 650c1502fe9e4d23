"""`neuronlake stats` and `rank`: every neuron against every tag."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from neuronlake.cli.common import add_command, number, output, p_value, print_json, table
from neuronlake.cli.questions import (
    add_asked_lake,
    add_label_options,
    add_pass_options,
    all_statistics,
    on_scheduler,
    open_for_question,
    permuted,
    refined,
    statistics,
)
from neuronlake.store import InputError

if TYPE_CHECKING:
    import xarray as xr


def add_commands(commands: Any) -> None:
    """Add the commands."""
    _add_stats(commands)
    _add_rank(commands)


class ListMethods(argparse.Action):
    """Print the registry of rankers and leave."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it."""
        from rich.padding import Padding

        from neuronlake.analysis import RANKERS

        console = output()
        for ranker in RANKERS.values():
            console.print(f"[bold]{ranker.name}[/bold]")
            for line in (ranker.description, ranker.formula, f"p: {ranker.test}", ranker.source):
                console.print(Padding(escape(line), (0, 0, 0, 4), expand=False))
        parser.exit()


def _add_stats(commands: Any) -> None:
    parser = add_command(
        commands,
        "stats",
        "compute moments, activity, AUROC and the like of every neuron for every tag; kept in the lake",
        "neuronlake stats my.lake --by upos Number deprel            # one pass for all\n"
        "neuronlake stats my.lake --by upos×Number --where \"deprel='nsubj'\"\n"
        "neuronlake stats my.lake --by Number --out number.zarr      # open with xarray; or number.parquet",
    )
    add_asked_lake(parser)
    add_label_options(parser, several=True)
    add_pass_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything: .zarr for xarray, or .parquet")
    parser.set_defaults(run=on_scheduler(_stats))


def _stats(options: argparse.Namespace) -> int:
    from neuronlake.analysis.derived import ON_REQUEST

    _check_out(options.out, (".zarr", ".parquet"))
    if options.out is not None and len(options.by) > 1:
        raise InputError(f"--out holds one label, got --by {' '.join(options.by)}: ask for one at a time")
    # what takes a while and the table does not show is computed for the file
    also = ON_REQUEST if options.out is not None else ()
    results = all_statistics(open_for_question(options.lake, options.site), options, options.by, also=also)
    _write(results[0], options.out)
    tables = [_per_tag(result) for result in results]
    if options.json:
        records = [
            {"by": by, "attributes": dict(result.attrs), "tags": rows, "out": options.out and str(options.out)}
            for by, result, rows in zip(options.by, results, tables, strict=True)
        ]
        print_json(records[0] if len(records) == 1 else records)
        return 0
    console = output()
    for by, result, rows in zip(options.by, results, tables, strict=True):
        grid = table(
            "tag", ">tokens", ">mean", ">variance", ">share active", ">largest Cohen d", "at",
            title=escape(by) if len(results) > 1 else None,
        )  # fmt: skip
        for row in rows:
            grid.add_row(
                escape(row["tag"]), f"{row['count']:,}", number(row["mean"], 4), number(row["variance"], 4),
                number(row["fraction_active"]), number(row.get("largest_cohen_d"), 2), row.get("neuron", "–"),
            )  # fmt: skip
        console.print(grid)
        _print_dropped(console, result)
    console.print("mean, variance and share active are averages over all neurons")
    if options.out is not None:
        console.print(f"written to {options.out}")
    return 0


def _per_tag(result: "xr.Dataset") -> list[dict[str, Any]]:
    """One line per tag: averages over all neurons, and the neuron that stands out most."""
    from neuronlake.analysis import rank

    rows: list[dict[str, Any]] = [
        {
            "tag": str(tag),
            "count": int(result["count"].sel(tag=tag)),
            **{name: float(result[name].sel(tag=tag).mean()) for name in ("mean", "variance", "fraction_active")},
        }
        for tag in result["tag"].to_numpy()
    ]
    if len(rows) > 1:
        for row, best in zip(rows, rank(result, "cohen_d", top=1), strict=True):
            row |= {"largest_cohen_d": best["cohen_d"], "neuron": best["name"]}
    return rows


def _add_rank(commands: Any) -> None:
    parser = add_command(
        commands,
        "rank",
        "list the neurons that tell a tag from the others best",
        "neuronlake rank my.lake --by upos --method auroc --top 10\n"
        "neuronlake rank my.lake --by Tense --method welch_t --tags Past --json\n"
        "neuronlake rank my.lake --by \"CASE WHEN deprel='root' THEN 'root' ELSE 'other' END\" --out root.parquet",
    )
    add_asked_lake(parser)
    add_label_options(parser)
    add_pass_options(parser)
    parser.add_argument("--method", default="auroc", metavar="NAME", help="ranker (default: auroc; --methods lists all)")
    parser.add_argument("--methods", nargs=0, action=ListMethods, help="list the rankers and leave")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="neurons per tag (default: 10)")
    parser.add_argument("--tags", nargs="+", metavar="TAG", help="only these tags")
    parser.add_argument(
        "--permutations",
        type=int,
        metavar="N",
        help="p from N permutations of the labels within documents, for any method; every four read the lake once",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the permutations (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the list: .parquet")
    parser.set_defaults(run=on_scheduler(_rank))


def _rank(options: argparse.Namespace) -> int:
    from neuronlake.analysis import rank
    from neuronlake.analysis.rankers import get_ranker

    ranker = get_ranker(options.method)  # a wrong name is said before the lake is read
    _check_out(options.out, (".parquet",))
    if options.top < 1:
        raise InputError(f"top must be at least 1, got {options.top}")
    if options.permutations is not None and options.permutations < 1:
        raise InputError(f"permutations must be at least 1, got {options.permutations}")
    lake = open_for_question(options.lake, options.site)
    result = statistics(lake, options, also=ranker.also)
    exact = refined(lake, result, options.method, top=options.top, scheduler=options.scheduler)
    ranking = [{**entry, "site": lake.site} for entry in rank(exact, options.method, top=options.top, tags=options.tags)]
    if options.permutations is not None:
        null = permuted(
            lake, result, options.method, permutations=options.permutations, seed=options.seed, scheduler=options.scheduler
        )
        for entry in ranking:
            here = null.sel(tag=entry["tag"], layer=entry["layer"], neuron=entry["neuron"])
            entry |= {f"{name}_permutation": float(here[name]) for name in ("p", "p_family")}
    if options.out is not None:
        _write_ranking(ranking, options.out)
    if options.json:
        print_json(ranking)
        return 0
    _print_ranking(ranking, options.method)
    _print_dropped(output(), result)
    return 0


def _print_ranking(ranking: Sequence[dict[str, Any]], method: str) -> None:
    by_permutation = ranking and "p_family_permutation" in ranking[0]
    last = ">p, all neurons permuted" if by_permutation else ">q"
    grid = table("tag", ">tokens", "neuron", f">{method}", "direction", ">mean", ">mean of rest", last)
    previous = None
    for entry in ranking:
        if previous not in (None, entry["tag"]):
            grid.add_row()
        new = entry["tag"] != previous
        previous = entry["tag"]
        grid.add_row(
            f"[bold]{escape(entry['tag'])}[/bold]" if new else "",
            f"{entry['count']:,}" if new else "",
            entry["name"],
            number(entry[method]),
            "higher" if entry["sign"] > 0 else "lower",
            number(entry["mean"]),
            number(entry["mean_rest"]),
            p_value(entry["p_family_permutation"] if by_permutation else entry.get("q")),
        )
    output().print(grid)


def _print_dropped(console: Any, result: "xr.Dataset") -> None:
    if dropped := result.attrs.get("dropped"):
        console.print(f"left out, fewer than two tokens: {', '.join(sorted(dropped))}", markup=False)


def _check_out(path: Path | None, suffixes: Sequence[str]) -> None:
    if path is None:
        return
    if path.suffix not in suffixes:
        raise InputError(f"--out writes {' or '.join(suffixes)}: expected a name ending so, got {path}")
    if path.exists():
        raise InputError(f"{path} exists: choose another name")
    if not path.absolute().parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} in")


def _write(result: "xr.Dataset", path: Path | None) -> None:
    if path is None:
        return
    if path.suffix == ".zarr":
        # format 2: Zarr 3 has no settled data type for the tags, which are strings
        result.to_zarr(path, zarr_format=2, consolidated=False)
        return
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    # tag by tag, so that the long table is never whole in memory
    metadata = {"neuronlake": json.dumps(dict(result.attrs))}
    writer = None
    for place, tag in enumerate(result["tag"].to_numpy()):
        lines = result.isel(tag=place, drop=True).to_dataframe().reset_index()
        lines.insert(0, "tag", str(tag))
        part = pa.Table.from_pandas(lines, preserve_index=False).replace_schema_metadata(metadata)
        writer = writer or pq.ParquetWriter(path, part.schema, compression="zstd")
        writer.write_table(part)
    if writer is not None:
        writer.close()


def _write_ranking(ranking: Sequence[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(ranking)), path, compression="zstd")
