"""Pictures of probes: what the table says is what is drawn, nothing cut off, and errors say which rows are needed."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest

from neuronlake.analysis.figure_style import plain
from neuronlake.analysis.probing.figure_table import COLUMNS, select
from neuronlake.analysis.probing.figures import (
    accuracy_by_features,
    accuracy_by_layer,
    accuracy_by_shift,
    confusion_figure,
    selectivity_figure,
    tag_f1_heatmap,
)
from neuronlake.store.errors import InputError, StorageError

SVG = "{http://www.w3.org/2000/svg}"
ODD = ["PRP$", "$x_1^2$", "<b>&amp;", "[red]", "a\nb", "", "größer–č", "名詞", "A" * 90, "%s {0} \\alpha"]
UPOS = ["ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ"]
UPOS += ["SYM", "VERB", "X"]
MANY = [f"{name} {i}" for i in range(3) for name in ODD]
Rows = list[dict[str, Any]]


def row(**values: Any) -> dict[str, Any]:
    """A row of a probe on layer 0, but for what is given."""
    usual = ("layer 0", "lda", "0", 0, 64, 0, "upos", "probe", None, None, "accuracy", 0.5, None, None, 3911, 64)
    return {**dict(zip(COLUMNS, usual, strict=True)), **values}


def group(rng: np.random.Generator, level: float, draws: int, **place: Any) -> Rows:
    """Everything that is known about one probe."""
    rows = []
    for metric in ("accuracy", "macro_f1"):
        control = level * rng.uniform(0.5, 0.7)
        scores = {"probe": level, "control_task": control, "selectivity": level - control, "shuffled_labels": 0.11}
        scores |= {"majority": 0.161, "most_frequent_tag_per_word": 0.861}
        rows += [
            row(what=what, metric=metric, value=value, low=value - 0.02, high=value + 0.01, **place)
            for what, value in scores.items()
        ]
        rows += [
            row(what="random_neurons", metric=metric, draw=draw, value=level - 0.1 - rng.uniform(0, 0.1), **place)
            for draw in range(draws)
        ]
    return rows


def make_table(layers: Sequence[int] = range(8), tags: Sequence[str] = UPOS[:4], draws: int = 3) -> Rows:
    rng = np.random.default_rng(4)
    rows = []
    for layer in layers:
        place = {"layer": layer, "layers": str(layer)}
        rows += group(rng, rng.uniform(0.75, 0.97), draws, **place)
        rows += [row(tag=tag, metric="f1", value=rng.uniform(0.3, 1), **place) for tag in tags]
    for k in (1, 3, 17, 200):
        rows += group(rng, rng.uniform(0.4, 0.9), draws, features=k, layer=None, layers="0–7")
    for shift in (-2, -1, 1):
        rows += group(rng, rng.uniform(0.4, 0.9), draws, shift=shift, layer=layers[0], layers=str(layers[0]))
    return rows


TABLE = make_table()
CONFUSION = np.array([[90, 9, 1, 0], [0, 5, 0, 0], [0, 1, 700, 0], [0, 0, 0, 0]])
DRAW: dict[str, Callable[[Any, Path], Path]] = {
    "layer": accuracy_by_layer,
    "features": accuracy_by_features,
    "shift": accuracy_by_shift,
    "selectivity": selectivity_figure,
    "f1": tag_f1_heatmap,
    "confusion": lambda _, path: confusion_figure(CONFUSION, UPOS[:4], path),
}


def texts(path: Path) -> list[str]:
    """All text of an SVG file, as a reader sees it."""
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter(f"{SVG}text")]


def drawn_heights(path: Path, what: str) -> np.ndarray:
    """Ordinates of a line's points, (points,); up is negative."""
    found = [element for element in ElementTree.parse(path).iter(f"{SVG}g") if element.get("id") == what]
    assert len(found) == 1
    line = found[0].find(f"{SVG}path")
    assert line is not None
    return np.array([float(y) for y in re.findall(r"[ML] \S+ (\S+)", line.get("d", ""))])


def drawn_values(path: Path, what: str, references: tuple[tuple[str, float], tuple[str, float]]) -> np.ndarray:
    """Values of a line's points, by the heights of two lines of known values."""
    (low, low_value), (high, high_value) = ((drawn_heights(path, name)[0], value) for name, value in references)
    return low_value + (drawn_heights(path, what) - low) / (high - low) * (high_value - low_value)


FLAT = (("majority", 0.161), ("most_frequent_tag_per_word", 0.861))


def values(table: Rows, what: str, x: str, **fixed: Any) -> dict[float, float]:
    """Mean value at every place, plainly."""
    fixed = {"metric": "accuracy", "tag": None, "what": what, **fixed}
    mine = [line for line in table if line[x] is not None and all(line[name] == value for name, value in fixed.items())]
    return {
        place: float(np.mean([line["value"] for line in mine if line[x] == place])) for place in sorted({m[x] for m in mine})
    }


CURVES = [
    ("layer", "layer", {"shift": 0, "features": 64}),
    ("features", "features", {"layers": "0–7"}),
    ("shift", "shift", {"layers": "0"}),
]


@pytest.mark.parametrize(("kind", "x", "fixed"), CURVES)
def test_lines_legend_and_best_point_are_of_the_table(tmp_path: Path, kind: str, x: str, fixed: dict[str, Any]) -> None:
    path = DRAW[kind](TABLE, tmp_path / "a.svg")
    for what in ("probe", "control_task", "random_neurons", "shuffled_labels"):
        expected = values(TABLE, what, x, **fixed)
        assert len(expected) > 3
        np.testing.assert_allclose(drawn_values(path, what, FLAT), list(expected.values()), atol=1e-5)
    shown = texts(path)
    legend = ["probe", "control task: a random tag per word", "random neurons (mean of 3 draws)", "shuffled labels"]
    legend += ["most frequent tag per word: 0.861", "majority tag: 0.161"]
    assert [text for text in shown if text in legend] == legend
    probe = values(TABLE, "probe", x, **fixed)
    best = max(probe, key=probe.__getitem__)
    name = {"layer": f"layer {best}", "features": f"{best} neurons", "shift": f"shift {best}".replace("-", "−")}[x]
    assert f"{probe[best]:.3f} ({name})" in shown
    assert "label upos · classifier lda · 3,911 test tokens of 64 documents" in shown
    assert "Bands: 95 % intervals, by drawing the test documents again with replacement." in shown
    assert "Small marks: single draws." in shown


def test_an_arrow_table_is_the_same_table(tmp_path: Path) -> None:
    rows = accuracy_by_layer(TABLE, tmp_path / "a.svg").read_bytes()
    assert accuracy_by_layer(pa.Table.from_pylist(TABLE), tmp_path / "b.svg").read_bytes() == rows


@pytest.mark.parametrize(("kind", "suffix"), [*((kind, "svg") for kind in DRAW), ("layer", "png"), ("selectivity", "pdf")])
def test_the_same_table_gives_the_same_file(tmp_path: Path, kind: str, suffix: str) -> None:
    first, second = (DRAW[kind](TABLE, tmp_path / f"{name}.{suffix}") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


@pytest.mark.parametrize(
    ("draw", "least"),
    [
        (lambda path: accuracy_by_layer(make_table([5]), path), 500),
        (lambda path: selectivity_figure(make_table(range(48)), path), 700),
        (lambda path: accuracy_by_features(make_table(), path), 500),
        (lambda path: tag_f1_heatmap(make_table([0], UPOS[:2]), path), 250),
        (lambda path: tag_f1_heatmap(make_table(range(40), MANY), path), 1000),
        (lambda path: confusion_figure(np.eye(2, dtype=int), ["a", "b"], path), 400),
        (lambda path: confusion_figure(np.full((20, 20), 12345), ODD * 2, path, title="long " * 40, notes=["n " * 90]), 900),
        (lambda path: confusion_figure(np.full((50, 50), 12345), ODD * 5, path), 1500),
    ],
)
def test_nothing_is_cut_off(tmp_path: Path, draw: Callable[[Path], Path], least: int) -> None:
    pixels = matplotlib.image.imread(draw(tmp_path / "a.png"))[..., :3]
    height, width = pixels.shape[:2]
    assert 600 < width < 4000
    assert least < height < 4000
    border = np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, :2].ravel(), pixels[:, -2:].ravel()])
    assert border.min() == 1.0
    assert pixels.min() < 0.2


def test_intervals_are_drawn_where_there_are_some() -> None:
    table = [row(layer=0, value=0.5, low=0.4, high=0.7), row(layer=1, value=0.6), row(layer=2, value=0.7, low=0.7, high=0.8)]
    series = select(table, "layer", "accuracy", by=None, classifier=None).series("probe")
    assert series is not None
    np.testing.assert_array_equal(series.low, [0.4, np.nan, 0.7])
    np.testing.assert_array_equal(series.high, [0.7, np.nan, 0.8])


def test_a_row_without_a_draw_is_the_mean(tmp_path: Path) -> None:
    """It may be of more draws than the table has, and have an interval."""
    table = [row(), row(what="random_neurons", value=0.3, low=0.2, high=0.4)]
    table += [row(what="random_neurons", draw=draw, value=value) for draw, value in enumerate((0.1, 0.2))]
    table += [row(what="majority", value=0.0), row(what="most_frequent_tag_per_word", value=1.0)]
    path = accuracy_by_layer(table, tmp_path / "a.svg")
    assert drawn_values(path, "random_neurons", (("majority", 0.0), ("most_frequent_tag_per_word", 1.0))) == pytest.approx(
        [0.3], abs=1e-5
    )
    assert "random neurons (mean of 2 draws)" in texts(path)


def test_without_intervals_no_band_is_explained(tmp_path: Path) -> None:
    shown = texts(accuracy_by_layer([row(), row(layer=1, value=0.6)], tmp_path / "a.svg"))
    assert not any("intervals" in text or "draws" in text for text in shown)
    shown = texts(accuracy_by_layer([row(test_documents=1)], tmp_path / "a.svg"))
    assert "No intervals: all test tokens are of one document." in shown
    assert "label upos · classifier lda · 3,911 test tokens of 1 document" in shown


def test_baselines_follow_the_shift(tmp_path: Path) -> None:
    table = [row(shift=shift, value=0.9 - 0.1 * shift, test_tokens=3911 - shift) for shift in (0, 1, 2)]
    table += [row(shift=shift, what="majority", value=0.1 + 0.01 * shift) for shift in (0, 1, 2)]
    path = accuracy_by_shift(table, tmp_path / "a.svg")
    np.testing.assert_allclose(
        np.diff(drawn_heights(path, "majority")) / np.diff(drawn_heights(path, "probe")), -0.1, rtol=1e-3
    )
    assert "majority tag" in texts(path)
    assert "label upos · classifier lda · 3,909–3,911 test tokens of 64 documents" in texts(path)


def test_selectivity_is_the_difference(tmp_path: Path) -> None:
    table = make_table(range(4))
    path = selectivity_figure(table, tmp_path / "a.svg", metric="macro_f1")
    found = {
        what: values(table, what, "layer", metric="macro_f1", shift=0) for what in ("probe", "control_task", "selectivity")
    }
    best = max(found["selectivity"], key=found["selectivity"].__getitem__)
    assert f"{found['selectivity'][best]:.3f} (layer {best})" in texts(path)
    bare = selectivity_figure(
        [line for line in table if line["what"] != "selectivity"], tmp_path / "b.svg", metric="macro_f1"
    )
    gap = [found["probe"][layer] - found["control_task"][layer] for layer in range(4)]
    for one in (path, bare):
        heights = drawn_heights(one, "selectivity")
        assert np.polyfit(gap, heights, 1, full=True)[1][0] < 1e-6  # in line with the differences
        assert heights.argmin() == int(np.argmax(gap))


def test_confusion_shares_and_margins(tmp_path: Path) -> None:
    tree = ElementTree.parse(confusion_figure(CONFUSION, UPOS[:4], tmp_path / "a.svg", title="T", subtitle="S", notes=["N"]))
    shown = texts(tmp_path / "a.svg")
    assert {"T", "S", "N", "Grey: no test token has the tag."} <= set(shown)
    for tag, true, predicted in zip(UPOS, CONFUSION.sum(axis=1), CONFUSION.sum(axis=0), strict=False):
        assert shown.count(f"{tag} ({true})") == 1 + (true == predicted)
        assert shown.count(f"{tag} ({predicted})") == 1 + (true == predicted)
    cells = {}
    for element in tree.iter(f"{SVG}text"):
        text = "".join(element.itertext())
        if "6.5px" in element.get("style", ""):
            cells[float(element.get("y", "nan")), float(element.get("x", "nan"))] = text
    # by row, then by column
    assert [cells[place] for place in sorted(cells)] == ["90", "9", "1", "100", "<1", ">99"]


def test_confusion_of_many_tags_has_no_numbers(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (21, 21))
    shown = texts(confusion_figure(counts, [f"T{i}" for i in range(21)], tmp_path / "a.svg"))
    scale = ["0", "1", "5", "10", "25", "50", "75", "100"]
    assert sorted(text for text in shown if re.fullmatch(r"[<>]?\d+", text)) == sorted(scale)
    assert f"T20 ({counts[20].sum()})" in shown


def test_heatmap_gives_f1(tmp_path: Path) -> None:
    table = make_table(range(8), UPOS)
    scores = {(line["layer"], line["tag"]): line["value"] for line in table if line["metric"] == "f1"}
    shown = texts(tag_f1_heatmap(table, tmp_path / "a.svg"))
    for number in {f"{value:.2f}" for value in scores.values()}:
        assert shown.count(number) == sum(f"{value:.2f}" == number for value in scores.values())
    assert [text for text in shown if text in UPOS] == UPOS

    many = make_table(range(13), UPOS)
    shown = texts(tag_f1_heatmap(many, tmp_path / "a.svg"))
    best = [max(line["value"] for line in many if line["tag"] == tag) for tag in UPOS]
    assert sorted(text for text in shown if re.fullmatch(r"0\.\d\d|1\.00", text)) == sorted(f"{value:.2f}" for value in best)
    assert "Number: F1 in the tag's best layer." in shown


def test_heatmap_says_what_is_missing_and_takes_tags_literally(tmp_path: Path) -> None:
    table = make_table(range(3), ODD)
    table.remove(next(line for line in table if line["tag"] == "[red]" and line["layer"] == 1))
    shown = texts(tag_f1_heatmap(table, tmp_path / "a.svg"))
    assert "Grey: not in the table." in shown
    assert {plain(tag) for tag in ODD} <= set(shown)


def test_the_settings_choose_rows(tmp_path: Path) -> None:
    svm = [{**line, "classifier": "svm", "value": line["value"] / 2} for line in TABLE]
    with pytest.raises(InputError, match="probes of 2 classifier: lda, svm; choose one by classifier="):
        accuracy_by_layer(TABLE + svm, tmp_path / "a.svg")
    alone = accuracy_by_layer(TABLE, tmp_path / "a.svg").read_bytes()
    assert (
        accuracy_by_layer(TABLE + TABLE[:0], tmp_path / "b.svg", classifier="lda", by="upos", shift=0).read_bytes() == alone
    )
    with pytest.raises(InputError, match="no probes of by 'xpos': there are upos"):
        accuracy_by_layer(TABLE, tmp_path / "c.svg", by="xpos")
    shifted = texts(accuracy_by_layer(TABLE, tmp_path / "c.svg", shift=-2))
    assert any("label of the word 2 earlier" in text for text in shifted)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda p: accuracy_by_layer([], p / "a.png"),
            "needs rows with what='probe', metric='accuracy', no tag, a value and",
        ),
        (lambda p: accuracy_by_layer([row(layer=None)], p / "a.png"), "a number in 'layer'"),
        (lambda p: accuracy_by_layer([row(value=None)], p / "a.png"), "nothing to draw"),
        (lambda p: accuracy_by_layer([row(value=float("nan"))], p / "a.png"), "nothing to draw"),
        (lambda p: accuracy_by_layer([{"value": 1}], p / "a.png"), "the table lacks probe, classifier, layers"),
        (lambda p: accuracy_by_layer(TABLE, p / "a.png", metric="f1"), "unknown metric 'f1': known are accuracy, macro_f1"),
        (
            lambda p: accuracy_by_layer([row(), row(features=9, probe="top 9")], p / "a.png"),
            r"2 rows of what='probe' at layer 0 \(probe top 9, layer 0, features 9, 64\): pass only one of them",
        ),
        (lambda p: accuracy_by_layer([row(), row()], p / "a.png"), "all alike"),
        (
            lambda p: accuracy_by_layer([row(), row(what="majority"), row(what="majority", value=0.1)], p / "a.png"),
            "majority has 2 values at layer 0: pass only rows of the same test tokens",
        ),
        (lambda p: accuracy_by_features([row(features=0)], p / "a.png"), "features must be at least 1"),
        (
            lambda p: accuracy_by_features([row(features=k, layers=at) for k in (1, 2) for at in "01"], p / "a.png"),
            "probes of 2 layers: 0, 1; choose one by layers=",
        ),
        (lambda p: selectivity_figure([row()], p / "a.png"), "and with what='control_task' for the same layers"),
        (
            lambda p: selectivity_figure([row(), row(layer=1, what="control_task")], p / "a.png"),
            "for the same layers",
        ),
        (lambda p: tag_f1_heatmap([row()], p / "a.png"), "metric='f1', a tag, a value and a number in 'layer'"),
        (
            lambda p: tag_f1_heatmap([row(metric="f1", tag=f"t{i}") for i in range(121)], p / "a.png"),
            "121 tags: 1 to 120 can be drawn",
        ),
        (lambda p: confusion_figure(CONFUSION, UPOS, p / "a.png"), r"shape \(4, 4\): expected \(17, 17\) for 17 tags"),
        (
            lambda p: confusion_figure(np.zeros((2, 2), int), ["a", "b"], p / "a.png"),
            "nothing to draw: confusion needs counts",
        ),
        (lambda p: confusion_figure(-CONFUSION, UPOS[:4], p / "a.png"), "got -700 at least"),
        (lambda p: confusion_figure(np.empty((0, 0)), [], p / "a.png"), "0 tags: 1 to 120"),
        (lambda p: confusion_figure(CONFUSION, UPOS[:4], p / "a.bmp"), r"known suffixes are \.png, \.svg, \.pdf"),
        (lambda p: tag_f1_heatmap(TABLE, p / "none" / "a.png"), "create it first"),
    ],
)
def test_wrong_requests_leave_no_file(tmp_path: Path, draw: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(StorageError, match=r"cannot write the picture .*a\.png"):
        accuracy_by_layer(TABLE, tmp_path / "a.png")
