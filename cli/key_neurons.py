"""`neuronlake key-neurons`: the neurons that a method puts first for every tag."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from neuronlake.cli.common import add_command, add_lake, number, output, p_value, print_json, table
from neuronlake.cli.questions import add_scheduler, on_scheduler, open_for_question, progress_bar, refined, statistics
from neuronlake.store import InputError, Lake
from neuronlake.store.layout import DEFAULT_SITE

if TYPE_CHECKING:
    import xarray as xr


def add_commands(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "key-neurons",
        "choose the key neurons of every tag by attribution or another method, and say how they overlap and where they lie",
        "neuronlake key-neurons my.lake --by upos                       # by attribution, 100 per layer\n"
        "neuronlake key-neurons my.lake --method auroc -k 200 --per overall\n"
        "neuronlake key-neurons my.lake --method activation_share --shift 1 --out key.json",
    )
    add_lake(parser)
    parser.add_argument("--by", default="upos", metavar="LABEL", help="label (default: upos)")
    parser.add_argument(
        "--method",
        default="attribution",
        metavar="NAME",
        help="attribution (as kept by `neuronlake attribute`), activation_share (among a token's top 5 %% by |a|·‖w_out‖, a "
        "surrogate that needs no gradients), or a ranker (default: attribution)",
    )
    parser.add_argument("--name", metavar="PART", help="which attribution, where the lake keeps several of the label")
    parser.add_argument("-k", type=int, default=100, metavar="N", help="neurons (default: 100)")
    parser.add_argument(
        "--per", choices=("layer", "overall"), default="layer", help="per layer of a tag, or per tag (default: layer)"
    )
    parser.add_argument(
        "--fdr",
        type=float,
        default=0.05,
        metavar="Q",
        help="leave out neurons of a larger q; 1 leaves out none (default: 0.05)",
    )
    parser.add_argument("--tags", nargs="+", metavar="TAG", help="list only these")
    parser.add_argument("--where", metavar="SQL", help="only tokens for which this is true; not of attribution")
    parser.add_argument(
        "--subword", choices=("last", "first", "all"), default="last", help="tokens of a word that count; not of attribution"
    )
    parser.add_argument(
        "--shift", type=int, default=0, metavar="K", help="label of the word K words later; not of attribution"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all of them: .json")
    add_scheduler(parser)
    parser.set_defaults(run=on_scheduler(_key_neurons))


def _key_neurons(options: argparse.Namespace) -> int:
    from neuronlake.analysis.key_neurons import ATTRIBUTION, check_method, choose_key_neurons, key_list

    check_method(options.method)
    _check_out(options.out)
    lake = open_for_question(options.lake, None if options.method == ATTRIBUTION else DEFAULT_SITE)
    chosen = choose_key_neurons(_scores(lake, options), k=options.k, per=options.per, fdr=options.fdr)
    listed = key_list(chosen, tags=options.tags)
    record = {
        "lake": lake.fingerprint,
        "method": options.method,
        "by": options.by,
        "k": options.k,
        "per": options.per,
        "fdr": options.fdr,
        "settings": {
            key: value for key, value in chosen.attrs.items() if isinstance(value, str | int | float | dict | list)
        },
        "tags": _tags(chosen, options.tags),
        "overlap": {
            str(tag): {
                str(other): None if np.isnan(value) else float(value)
                for other, value in zip(chosen["other"].to_numpy(), line, strict=True)
            }
            for tag, line in zip(chosen["tag"].to_numpy(), chosen["jaccard"].to_numpy(), strict=True)
        },
        "neurons": listed,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if options.json:
        print_json(record)
        return 0
    _print(record)
    if options.out is not None:
        output().print(f"written to {options.out}", markup=False)
    return 0


def _scores(lake: Lake, options: argparse.Namespace) -> "xr.Dataset":
    from neuronlake.analysis.key_neurons import ATTRIBUTION, SURROGATE, ranker_scores, scores_of

    of_tokens = {"where": options.where, "subword": options.subword, "shift": options.shift}
    if options.method == ATTRIBUTION:
        if options.scheduler is not None:
            raise InputError(f"--scheduler is of rankers such as auroc, the method is {ATTRIBUTION}")
        if given := [
            name for name, plain in (("where", None), ("subword", "last"), ("shift", 0)) if of_tokens[name] != plain
        ]:
            raise InputError(f"--{given[0]} is not of attribution: it was chosen when `neuronlake attribute` ran")
        return scores_of(lake, options.by, ATTRIBUTION, name=options.name)
    if options.name is not None:
        raise InputError(f"--name chooses among attributions, the method is {options.method}")
    if options.method == SURROGATE:
        if options.scheduler is not None:
            raise InputError(f"--scheduler is of rankers such as auroc, the method is {SURROGATE}")
        with progress_bar("activations") as progress:
            return scores_of(lake, options.by, SURROGATE, progress=progress, **of_tokens)
    from neuronlake.analysis.rankers import get_ranker

    found = statistics(lake, options, also=get_ranker(options.method).also)
    exact = refined(lake, found, options.method, top=options.k, scheduler=options.scheduler)
    return ranker_scores(exact, options.method)


def _tags(chosen: "xr.Dataset", tags: list[str] | None) -> list[dict[str, Any]]:
    layers = chosen["layer"].to_numpy()
    found = []
    for place, tag in enumerate(chosen["tag"].to_numpy()):
        if tags is None or str(tag) in tags:
            counts = chosen["by_layer"].to_numpy()[place]
            found.append(
                {
                    "tag": str(tag),
                    "count": int(chosen["count"].to_numpy()[place]),
                    "selected": int(counts.sum()),
                    "by_layer": {str(layer): int(count) for layer, count in zip(layers, counts, strict=True)},
                }
            )
    return found


def _print(record: dict[str, Any]) -> None:
    """One line per tag: how many, where, the first ones, and the tag that shares most of them."""
    grid = table("tag", ">samples", ">neurons", "most in layers", "first", "most shared with", ">Jaccard", ">largest q")
    for entry in record["tags"]:
        tag = entry["tag"]
        mine = [neuron for neuron in record["neurons"] if neuron["tag"] == tag]
        best = sorted(entry["by_layer"].items(), key=lambda item: (-item[1], int(item[0])))[:3]
        others = {other: value for other, value in record["overlap"][tag].items() if other != tag and value is not None}
        nearest = max(others, key=lambda other: others[other]) if others else None
        grid.add_row(
            escape(tag),
            f"{entry['count']:,}",
            f"{entry['selected']:,}",
            ", ".join(f"{layer} ({count})" for layer, count in best if count) or "–",
            ", ".join(f"{neuron['name']} {number(neuron['score'], 2)}" for neuron in mine[:3]) or "–",
            "–" if nearest is None else escape(nearest),
            number(None if nearest is None else others[nearest]),
            p_value(max((neuron["q"] for neuron in mine if "q" in neuron), default=None)),
        )
    output().print(grid)


def _check_out(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix != ".json":
        raise InputError(f"--out writes .json: expected a name ending so, got {path}")
    if path.exists():
        raise InputError(f"{path} exists: choose another name")
    if not path.absolute().parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} in")
