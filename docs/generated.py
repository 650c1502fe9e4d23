"""Pages of the documentation that are made from the code: every command with its options, every public name."""

import argparse
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from neuronlake.cli.main import build_parser

_SKLEARN_ROUTING = (
    "set_fit_request",
    "set_partial_fit_request",
    "set_predict_request",
    "set_predict_log_proba_request",
    "set_predict_proba_request",
    "set_score_request",
    "set_transform_request",
)


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command, in the order of `neuronlake --help`."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def cli_page() -> str:
    """Return the reference of the command line as Markdown."""
    return "\n".join(line for name, parser in command_parsers().items() for line in _command(name, parser))


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from (f"## {name}", "", parser.description or "", "")
    arguments = " ".join(
        _metavar(action) + (" …" if action.nargs == "+" else "") for action in parser._actions if not action.option_strings
    )
    yield from ("```sh", f"neuronlake {name} {arguments} [OPTION …]".replace("  ", " "), "```", "")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest not in ("help", "json", "debug")]
        if not actions:
            continue
        title = {"positional arguments": "arguments"}.get(group.title or "", group.title or "")
        yield from (f"| {_text(title)} | {_text(group.description or '')} |", "|---|---|")
        yield from (f"| {_usage(action)} | {_text(_expanded(parser, action))} |" for action in actions)
        yield ""
    examples = inspect.cleandoc((parser.epilog or "").removeprefix("examples:\n"))
    yield from ("```sh", examples, "```", "")


def _usage(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_metavar(action)}`"
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    more = " …" if action.nargs in ("+", "*") else ""
    return f"`{action.option_strings[-1]}{value}{more}`".replace("|", "\\|") + (" (required)" if action.required else "")


def _metavar(action: argparse.Action) -> str:
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _expanded(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of an option with its default filled in."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _text(text: str) -> str:
    """Plain text as Markdown: what would be taken for markup is escaped, code in backticks stays, options become code."""
    text = re.sub(r"(?<![\w`-])--[a-z][\w-]*(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"`\g<0>`", text)
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part.replace("|", "\\|") if place % 2 else re.sub(r"([\\*_\[\]<>|#~])", r"\\\1", part)
        for place, part in enumerate(parts)
    )


def public_names(package: str) -> dict[ModuleType, list[str]]:
    """Return the public names of a package by the module that defines them, both in alphabetical order."""
    surface = import_module(package)
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for name in surface.__all__:
        item = getattr(surface, name)
        homes[getattr(item, "__module__", None) or _home_of_value(surface, name)].append(name)
    return {import_module(home): sorted(homes[home]) for home in sorted(homes)}


def _home_of_value(surface: ModuleType, name: str) -> str:
    """Constants do not know their module: find the one of the package that assigns them."""
    pattern = re.compile(rf"^\s*from (\S+) import .*\b{name}\b", re.MULTILINE)
    match = pattern.search(inspect.getsource(surface))
    return match.group(1) if match else surface.__name__


def api_page(package: str, *, first: Sequence[str] = (), under: str = "", apart: str = "") -> str:
    """Return the reference of a package as Markdown, with autodoc's directives for Sphinx to fill.

    Parameters
    ----------
    package
        Whose ``__all__`` is documented.
    first
        Modules to begin with; the others follow in alphabetical order.
    under, apart
        Only, or not, what is defined in modules below this one.
    """
    lines = []
    by_module = public_names(package)
    places = {f"{package}.{name}": place for place, name in enumerate(first)}
    for module in sorted(by_module, key=lambda module: places.get(module.__name__, len(places))):
        names = by_module[module]
        if not module.__name__.startswith(under) or (apart and module.__name__.startswith(apart)):
            continue
        summary = (module.__doc__ or "").strip().splitlines()[0].replace("``", "`")
        lines += [f"## {module.__name__.removeprefix(package + '.')}", "", summary, "", "```{eval-rst}"]
        lines += [line for name in names for line in _directive(package, name)]
        lines += ["```", ""]
    return "\n".join(lines)


def _directive(package: str, name: str) -> Iterator[str]:
    item = getattr(import_module(package), name)
    if not callable(item):  # a constant; its docstring would be that of its type
        value = repr(item) if isinstance(item, str) else "{" + ", ".join(f"{key!r}: …" for key in item) + "}"
        yield from (f".. py:data:: {package}.{name}", f"   :value: {value}", "")
        return
    kind = "autoclass" if inspect.isclass(item) else "autofunction"
    yield f".. {kind}:: {package}.{name}"
    if kind == "autoclass":
        yield "   :members:"
        yield f"   :exclude-members: {', '.join(_SKLEARN_ROUTING)}"
    yield ""


def linked(docstring: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText: `name` is a link where it is public, and code elsewhere.

    A bar is a magnitude, |x|, and a word that ends in an underscore is an attribute of scikit-learn: neither is markup.
    """
    return [
        "".join(
            part if part.startswith("``") else _reference(part[1:-1]) if part.startswith("`") else _plain(part)
            for part in re.split(r"(``.+?``|(?<![:`])`[^`]+`)", line)
        )
        for line in docstring
    ]


def _reference(name: str) -> str:
    if match := re.match(r"[\w.]+", name):
        for package in ("neuronlake.store", "neuronlake.extractor", "neuronlake.analysis"):
            if match.group() in import_module(package).__all__:
                return f":py:obj:`~{package}.{match.group()}`"
    return f"``{name}``"


def _plain(text: str) -> str:
    return re.sub(r"(?<=\w)_(?!\w)", r"\_", text.replace("|", "\\|"))


def rankers_table() -> str:
    """Return the rankers with their formulas and sources, as the registry has them."""
    from neuronlake.analysis import RANKERS

    lines = ["| method | what, and formula | source, and p |", "|---|---|---|"]
    for ranker in RANKERS.values():
        what, formula, test, source = map(_text, (ranker.description, ranker.formula, ranker.test, ranker.source))
        lines.append(f"| `{ranker.name}` | {what}<br>{formula} | {source}<br>p: {test} |")
    return "\n".join(lines)


def _record(name: str) -> Any:
    path = Path(__file__).parent.parent / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["result"]


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fidelity_table() -> str:
    """Return what int8a changes, from its benchmark."""
    found = _record("encodings")["int8a"]
    rows = [
        ("bytes per value", f"{found['bytes_per_value']:.3f}"),
        ("relative error (ℓ2), worst layer", f"{found['relative_l2']:.1%}, {found['relative_l2_worst_layer']:.1%}"),
        ("rank correlation per neuron: median, 1st percentile, least",
         f"{found['rho_median']:.4f}, {found['rho_1st_percentile']:.4f}, {found['rho_min']:.4f}"),
        ("top 100 tokens of a neuron that stay", f"{found['top_100_recall']:.1%}"),
        ("top 50 neurons of a tag that stay, worst tag", f"{found['overlap_50']:.1%}, {found['overlap_50_worst']:.0%}"),
        ("accuracy of probes: change, worst", f"{found['probe_change']:+.4f}, {found['probe_change_worst']:+.4f}"),
    ]  # fmt: skip
    return _table(("int8a", ""), rows)


def peers_table() -> str:
    """Return measured comparisons with other ways of doing the same, from the benchmarks' records."""
    speed, tools = _record("extraction")["of_bare"], _record("peers")["tools"]
    rows = [
        ("extraction, indexed and committed", "the bare forward pass of the same batches", f"{speed['neuronlake']:.2f} ×"),
        ("hooks and a float16 memory map, without neuronlake", "the same forward pass", f"{speed['hooks']:.2f} ×"),
        *(
            ("extraction of all layers to disk", name, _of(tools["neuronlake, int8a"], tools[name], "of_bare"))
            for name in ("TransformerLens", "nnsight")
        ),
    ]
    formats = _record("storage")["formats"]
    rows += [
        (what, peer, _of(formats["neuronlake int8a"], formats[peer], key))
        for what, key in (("writing activations (int8a, indexed)", "write"), ("scanning them", "scan"))
        for peer in ("zarr-python, its defaults", "h5py, a data set per sentence (NeuroX)", "npy, memory map")
    ]
    found = {(row["task"], row["tool"]): row for row in _record("analysis")["rows"]}
    for task, tool in found:
        if "all_layers_seconds" in found[task, tool] and not tool.startswith("neuronlake"):
            ours = next(row for (of, name), row in found.items() if of == task and name.startswith("neuronlake"))
            rows.append((task, tool, _of(found[task, tool], ours, "all_layers_seconds")))
    return _table(("what", "against", "speed"), rows)


def _of(one: dict[str, Any], other: dict[str, Any], key: str) -> str:
    return f"{one[key] / other[key]:.2g} ×" if key in one and key in other else "not run"


PAGES: dict[str, Callable[[], str]] = {
    "concepts/encodings": fidelity_table,
    "concepts/statistics": rankers_table,
    "peers": peers_table,
    "reference/cli": cli_page,
    "reference/store": lambda: api_page("neuronlake.store", first=("lake", "scan", "compose", "verify", "repair")),
    "reference/extractor": lambda: api_page("neuronlake.extractor", first=("extract", "settings", "source")),
    "reference/analysis": lambda: api_page(
        "neuronlake.analysis",
        first=("statistics", "ranking", "refinement", "rankers", "queries", "describe"),
        apart="neuronlake.analysis.probing",
    ),
    "reference/probing": lambda: api_page(
        "neuronlake.analysis", first=("probing.probes",), under="neuronlake.analysis.probing"
    ),
}
