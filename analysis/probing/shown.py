"""Probe results as text and as tables for notebooks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuronlake.analysis.probing.result import layers_text
from neuronlake.store.markup import Markup, folded, notebook, number, table, text_table

if TYPE_CHECKING:
    from neuronlake.analysis.probing.result import Interval, ProbeResult

_MOST_TAGS = 10
_COLUMNS = ["classifier", "layers", ">neurons", ">shift", ">accuracy", ">95 %", ">macro F1", ">word type", ">control task",
            ">selectivity"]  # fmt: skip


def result_text(result: "ProbeResult") -> str:
    """Return one result in a few lines."""
    lines = [[what, value, between] for what, value, _, between in _scores(result)]
    return f"<ProbeResult {_about(result)}>\n" + text_table(["what", ">accuracy", "95 %"], lines)


def results_text(results: Sequence["ProbeResult"]) -> str:
    """Return several results, one line each."""
    lines = text_table(_COLUMNS, [_line(result) for result in results])
    return f"<ProbeResults: {len(results):,}>" + (f"\n{lines}" if results else "")


def result_html(result: "ProbeResult") -> str:
    """Return one result beside what it must be compared with, and its tags."""
    tags = [
        [
            tag,
            scores["support"],
            _share(scores["f1"]),
            _between(scores["f1_interval"]),
            _share(scores["precision"]),
            _share(scores["recall"]),
        ]
        for tag, scores in sorted(result.per_tag.items(), key=lambda item: -int(item[1]["support"]))
    ]
    columns = ["tag", ">test tokens", ">F1", ">95 %", ">precision", ">recall"]
    shown = table("per tag, the most frequent first", columns, tags[:_MOST_TAGS])
    if rest := tags[_MOST_TAGS:]:
        shown = Markup(shown + folded(f"{len(rest):,} more", table("the other tags", columns, rest)))
    scores = table(_about(result), ["what", ">accuracy", ">macro F1", ">95 % of accuracy"], _scores(result))
    return notebook(scores, shown)


def results_html(results: Sequence["ProbeResult"]) -> str:
    """Return several results, one line each."""
    return notebook(table(f"probes: {len(results):,}", _COLUMNS, [_line(result) for result in results]))


def _scores(result: "ProbeResult") -> list[list[Any]]:
    """Name, accuracy, macro F1 and interval of the probe, its baselines, its controls and its selectivity."""
    lines: list[list[Any]] = [
        ["probe", _share(result.accuracy), _share(result.macro_f1), _between(result.intervals["accuracy"])]
    ]
    for name, scores in {**result.baselines, **result.controls}.items():
        lines.append([name.replace("_", " "), _share(scores["accuracy"]), _share(scores["macro_f1"]), ""])
    if result.selectivity is not None:
        lines.append(["selectivity", _share(result.selectivity), "–", _between(result.intervals["selectivity"])])
    return lines


def _about(result: "ProbeResult") -> str:
    settings, counts = result.settings, result.counts
    return (
        f"{settings['classifier']} probe of {settings['by']}, layers {layers_text(settings['layers'])}, "
        f"{counts['n_features']:,} neurons, {counts['n_test']:,} test tokens of {counts['n_test_documents']:,} documents"
    )


def _line(result: "ProbeResult") -> list[Any]:
    settings = result.settings
    about = [settings["classifier"], layers_text(settings["layers"]), result.counts["n_features"], settings["shift"]]
    scores = [_share(result.accuracy), _between(result.intervals["accuracy"]), _share(result.macro_f1)]
    word = result.baselines.get("most_frequent_tag_per_word", {}).get("accuracy")
    control = result.controls.get("control_task", {}).get("accuracy")
    return [*about, *scores, *map(_share, (word, control, result.selectivity))]


def _between(interval: "Interval") -> str:
    return "–" if interval is None else f"{_share(interval[0])} to {_share(interval[1])}"


def _share(value: float | None) -> str:
    """Return an accuracy or the like with as many decimals as any other: they are compared by eye."""
    return number(None) if value is None else f"{value:.3f}".replace("-", "−")
