"""Pictures: drawn without a display, nothing cut off, text taken literally, numbers right, the same bytes every time."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import xarray as xr
from memory_lake import MemoryLake
from scipy import stats

from neuronlake.analysis import layer_tag_heatmap, rank, score
from neuronlake.analysis.figure_histogram import _Axis, neuron_histogram
from neuronlake.analysis.figure_style import describe, figure_bytes, plain, robust_limit
from neuronlake.analysis.figure_volcano import _spread, volcano
from neuronlake.analysis.figures import layer_class_counts, tag_bars
from neuronlake.store.errors import InputError, StorageError

UPOS = ["ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ"]
UPOS += ["SYM", "VERB", "X"]
ODD = ["PRP$", "$x_1^2$", "<b>&amp;", "[red]", "a\nb", "", "größer–č", "名詞", "A" * 90, "%s {0} \\alpha"]


def make_dataset(tags: list[str] = UPOS, layers: int = 30, neurons: int = 40) -> xr.Dataset:
    """Statistics of no activations in particular, AUROC and moments unrelated."""
    rng = np.random.default_rng(3)
    shape = (len(tags), layers, neurons)
    return xr.Dataset(
        {
            "count": ("tag", rng.integers(200, 3000, len(tags))),
            **{
                name: (("tag", "layer", "neuron"), values)
                for name, values in {
                    "mean": rng.normal(scale=0.05, size=shape),
                    "variance": rng.uniform(0.5, 2, shape),
                    "auroc": np.clip(rng.normal(0.5, 0.12, shape), 0, 1),
                    "auroc_error": np.zeros(shape),
                }.items()
            },
        },
        coords={"tag": np.array(tags, dtype=str), "layer": np.arange(layers), "neuron": np.arange(neurons)},
        attrs={"by": "upos", "subword": "last", "shift": 0, "where": None},
    )


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    return make_dataset()


def class_counts() -> xr.DataArray:
    values = np.random.default_rng(0).multinomial(1536, [0.1, 0.3, 0.6], size=12)
    return xr.DataArray(
        values, dims=("layer", "class"), coords={"layer": range(12), "class": ["specific", "related", "agnostic"]}
    )


DRAW: dict[str, Callable[[xr.Dataset, Path], Path]] = {
    "heatmap": lambda dataset, path: layer_tag_heatmap(dataset, "auroc", path),
    "bars": lambda dataset, path: tag_bars(dataset, "cohen_d", path, top=2),
    "volcano": lambda dataset, path: volcano(dataset, path, str(dataset["tag"].to_numpy()[0])),
    "histogram": lambda dataset, path: neuron_histogram(
        MemoryLake(tags=[str(t) for t in dataset["tag"].to_numpy()]), 2, 3, path
    ),
    "classes": lambda dataset, path: layer_class_counts(class_counts(), path),
}


def texts(path: Path) -> list[str]:
    """All text of an SVG file, as a reader sees it."""
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(("kind", "suffix"), [*((kind, "svg") for kind in DRAW), ("histogram", "png"), ("volcano", "pdf")])
def test_the_same_statistics_give_the_same_file(tmp_path: Path, kind: str, suffix: str) -> None:
    dataset = make_dataset(UPOS[:3], 3, 5)
    first, second = (DRAW[kind](dataset, tmp_path / f"{name}.{suffix}") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


@pytest.mark.parametrize("kind", DRAW)
def test_bytes_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    dataset = make_dataset(UPOS[:3], 3, 5)
    for file_type in ("svg", "PNG") if kind == "heatmap" else ("svg",):
        path = DRAW[kind](dataset, tmp_path / f"a.{file_type.lower()}")
        assert figure_bytes(lambda path: DRAW[kind](dataset, path), file_type) == path.read_bytes()


@pytest.mark.parametrize("kind", DRAW)
def test_files_have_a_title(tmp_path: Path, kind: str) -> None:
    dataset = make_dataset(ODD[:3], 3, 5)
    path = DRAW[kind](dataset, tmp_path / "a.svg")
    title = ElementTree.parse(path).findtext("{http://www.w3.org/2000/svg}title")
    assert title in texts(path)
    if kind == "volcano":  # the tag is PRP$
        assert title == "PRP$ against the rest: cohen_d of 15 neurons"


def test_no_bytes_and_no_file_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(UPOS[:3], 3, 5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert figure_bytes(lambda path: volcano(dataset, path, "ADJ"), "pdf")[:5] == b"%PDF-"
    with pytest.raises(InputError, match="unknown type 'gif' of a picture: known are png, svg, pdf"):
        figure_bytes(lambda path: volcano(dataset, path, "ADJ"), "gif")
    with pytest.raises(InputError, match="unknown tag 'NOPE'"):
        figure_bytes(lambda path: volcano(dataset, path, "NOPE"))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="no folder for temporary files"):
        figure_bytes(lambda path: volcano(dataset, path, "ADJ"))


MANY = [f"{name} {i}" for i in range(3) for name in ODD]


@pytest.mark.parametrize(
    ("kind", "tags", "layers"),
    [
        ("heatmap", UPOS[:2], 1),
        ("heatmap", ODD, 30),
        ("heatmap", MANY, 3),
        ("bars", UPOS[:2], 1),
        ("bars", MANY, 3),
        ("volcano", ODD[-2:], 30),
        ("histogram", ODD[-3:], 1),
    ],
)
def test_nothing_is_cut_off(tmp_path: Path, kind: str, tags: list[str], layers: int) -> None:
    path = DRAW[kind](make_dataset(tags, layers, neurons=2), tmp_path / "a.png")
    pixels = matplotlib.image.imread(path)[..., :3]
    height, width = pixels.shape[:2]
    assert 600 < width < 4000
    assert 250 < height < 5500
    border = np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, :2].ravel(), pixels[:, -2:].ravel()])
    assert border.min() == 1.0
    assert pixels.min() < 0.2


def test_the_users_settings_neither_matter_nor_change(tmp_path: Path) -> None:
    dataset = make_dataset(UPOS[:3], 3, 5)
    plain_one = tag_bars(dataset, "auroc", tmp_path / "a.svg").read_bytes()
    mine = {"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "path", "text.parse_math": True}
    with matplotlib.rc_context(mine):
        assert tag_bars(dataset, "auroc", tmp_path / "b.svg").read_bytes() == plain_one
        assert {name: matplotlib.rcParams[name] for name in mine} == mine


def test_threads_draw_what_one_draws(tmp_path: Path) -> None:
    dataset = make_dataset(UPOS[:3], 3, 5)
    expected = tag_bars(dataset, "auroc", tmp_path / "a.svg").read_bytes()
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda i: tag_bars(dataset, "auroc", tmp_path / f"{i}.svg"), range(4)))
    assert all(path.read_bytes() == expected for path in paths)


def test_tags_are_never_formulas(tmp_path: Path) -> None:
    dataset = make_dataset(ODD, 3, 2)
    for kind in ("heatmap", "bars"):
        shown = texts(DRAW[kind](dataset, tmp_path / "a.svg"))
        for tag, count in zip(ODD, dataset["count"].to_numpy(), strict=True):
            assert f"{plain(tag)} ({count:,})" in shown
    assert "$x_1^2$ against the rest: cohen_d of 6 neurons" in texts(volcano(dataset, tmp_path / "v.svg", "$x_1^2$"))


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        ("PRP$", "PRP$"),
        ("größer–č", "größer–č"),
        ("a\nb\t\x00\\", "a\\nb\\t\\x00\\"),
        ("", "(empty)"),
        ("A" * 20 + "B" * 20, "A" * 14 + "…" + "B" * 13),
        ("\U000f0000", "\\U000f0000"),  # private use: no font has it
    ],
)
def test_plain_text(tag: str, shown: str) -> None:
    assert plain(tag) == shown


def test_the_subtitle_says_which_tokens() -> None:
    assert describe({"by": "upos", "subword": "all", "shift": -2, "where": "Number = 'Plur'"}, 12345) == (
        "label upos · 12,345 labelled tokens · all tokens of each word · label of the word 2 earlier · where Number = 'Plur'"
    )
    assert describe({"by": "Case", "subword": "last", "shift": 0, "where": None}, 3) == (
        "label Case · 3 labelled tokens · last token of each word"
    )


def test_heatmap_gives_the_best_of_every_tag(dataset: xr.Dataset, tmp_path: Path) -> None:
    shown = texts(layer_tag_heatmap(dataset, "auroc", tmp_path / "map.svg"))
    area = dataset["auroc"].to_numpy()
    best = np.maximum(area, 1 - area).max(axis=(1, 2))
    assert np.ptp(best) > 0.02
    assert all(f"{value:.3f}" in shown for value in best)
    assert f"label upos · {int(dataset['count'].sum()):,} labelled tokens · last token of each word" in shown
    assert "layer" in shown


def error_note(path: Path) -> list[str]:
    return [text for text in texts(path) if "histograms" in text]


def test_approximate_scores_say_so(tmp_path: Path) -> None:
    """The bound told is of what is shown: a wide bound far below the best does not count."""
    dataset = make_dataset(UPOS[:2], 1, 3)
    dataset["auroc"][:] = [[[0.9, 0.6, 0.2]], [[0.3, 0.6, 0.75]]]
    for draw in (layer_tag_heatmap, tag_bars):
        assert error_note(draw(dataset, "auroc", tmp_path / "a.svg")) == []
    dataset["auroc_error"][:] = [[[0.01, 0.2, 0.0]], [[0.0, 0.0, 0.02]]]
    for draw in (layer_tag_heatmap, tag_bars):
        note = "auroc comes from histograms: no score shown is off by more than 0.02."
        assert error_note(draw(dataset, "auroc", tmp_path / "a.svg")) == [note]
    dataset["auroc_error"][0, 0, 1] = 0.35  # the middle neuron could be the best: up to 0.95, against the 0.9 drawn
    assert "more than 0.05." in error_note(layer_tag_heatmap(dataset, "auroc", tmp_path / "a.svg"))[0]
    assert "more than 0.02." in error_note(tag_bars(dataset, "auroc", tmp_path / "a.svg"))[0]


def test_bars_name_the_ranking(dataset: xr.Dataset, tmp_path: Path) -> None:
    shown = texts(tag_bars(dataset, "auroc", tmp_path / "a.svg", top=2, tags=["X", "ADJ"]))
    ranking = rank(dataset, "auroc", top=2, tags=["X", "ADJ"])
    assert {entry["sign"] for entry in ranking} == {-1, 1}
    expected = [f"{'▲' if entry['sign'] > 0 else '▼'} {entry['name']}  {entry['score']:.3f}" for entry in ranking]
    assert [text for text in shown if re.match("[▲▼] L", text)] == expected


def test_bars_are_in_the_order_of_the_best_scores(dataset: xr.Dataset, tmp_path: Path) -> None:
    shown = texts(tag_bars(dataset, "auroc", tmp_path / "a.svg", top=3))
    area = dataset["auroc"].to_numpy()
    order = np.argsort(-np.maximum(area, 1 - area).max(axis=(1, 2)))
    labels = [text.split(" (")[0] for text in shown if re.fullmatch(r"[A-Z]+ \([\d,]+\)", text)]
    assert labels == [UPOS[place] for place in order]


def test_a_constant_neuron_does_not_flatten_the_others(tmp_path: Path) -> None:
    dataset = make_dataset(UPOS, 2, 10)
    dataset["variance"][:, 0, 4], dataset["mean"][:, 0, 4], dataset["mean"][3, 0, 4] = 0, 0, 1
    shown = texts(tag_bars(dataset, "cohen_d", tmp_path / "a.svg"))
    assert any(text.endswith("L0.N4  8,388,608 (bar cut)") for text in shown)
    assert "At the edge: 1 neuron with a larger effect." in texts(volcano(dataset, tmp_path / "b.svg", "AUX"))
    assert robust_limit(np.array([0.0, 0.0, 2.0, 3.0, 1e7])) == 3.0
    assert robust_limit(np.array([0.1, 14.0])) == 14.0
    assert robust_limit(np.zeros(3)) == 0.0


def with_normal_moments(dataset: xr.Dataset) -> xr.Dataset:
    """Without third and fourth moments, p is weak: see `tails.population`."""
    return dataset.assign(third_moment=0 * dataset["mean"], fourth_moment=3 * dataset["variance"] ** 2)


def expected_q(dataset: xr.Dataset) -> np.ndarray:
    """Benjamini–Hochberg by scipy, of the p that stands beside Welch's t; (tags, layers, neurons)."""
    p = score(dataset, "welch_t")["p"].to_numpy()
    return np.asarray(stats.false_discovery_control(p, axis=None)).reshape(p.shape)


def test_volcano_counts_what_scipy_finds(dataset: xr.Dataset, tmp_path: Path) -> None:
    dataset = with_normal_moments(dataset.assign(mean=3 * dataset["mean"]))
    shown = texts(volcano(dataset, tmp_path / "a.svg", "DET", top=5))
    found = expected_q(dataset)[UPOS.index("DET")] <= 0.05
    difference = (
        dataset["mean"].sel(tag="DET").to_numpy()
        - ((dataset["mean"] * dataset["count"]).sum("tag") / dataset["count"].sum()).to_numpy()
    )
    higher, lower = int((found & (difference > 0)).sum()), int((found & (difference < 0)).sum())
    assert min(higher, lower) > 10
    for line in (
        f"q > 0.05: {found.size - higher - lower:,}",
        f"the tag's tokens are higher: {higher:,}",
        f"the tag's tokens are lower: {lower:,}",
    ):
        assert line in shown
    named = [text for text in shown if re.fullmatch(r"L\d+\.N\d+", text)]
    assert sorted(named) == sorted(entry["name"] for entry in rank(dataset, "cohen_d", top=5, tags=["DET"]))


def test_volcano_says_where_q_ends(tmp_path: Path) -> None:
    dataset = make_dataset(["A", "B"], 1, 50)
    dataset["mean"][0, 0, :3] = 5.0
    dataset["count"][:] = 4000
    dataset = with_normal_moments(dataset)
    assert np.all(expected_q(dataset)[0, 0, :3] < 1e-300)
    shown = texts(volcano(dataset, tmp_path / "a.svg", "A"))
    assert "Triangles: 3 neurons with q below 1e-300, drawn on the top line." in shown
    assert "300+" in shown
    dataset["mean"][0, 0, :3] = 0.0
    assert not any("Triangles" in text or "300+" in text for text in texts(volcano(dataset, tmp_path / "a.svg", "A")))


def test_volcano_of_a_whole_model_is_small(tmp_path: Path) -> None:
    dataset = make_dataset(["A", "B"], 30, 1536)
    assert volcano(dataset, tmp_path / "a.svg", "A", "auroc").stat().st_size < 400_000
    images = list(ElementTree.parse(tmp_path / "a.svg").iter("{http://www.w3.org/2000/svg}image"))
    assert 1 <= len(images) <= 6  # at most one for each kind of point, whatever their number


def test_names_keep_their_distance() -> None:
    assert _spread([9.0, 5.0, 1.0], 1.0, 0.0, 10.0) == [9.0, 5.0, 1.0]
    crowded = _spread([9.9] * 4 + [0.1] * 5, 1.0, 0.0, 10.5)
    assert np.all(np.diff(crowded) <= -1.0 + 1e-12)
    assert min(crowded) >= 1.0
    assert max(crowded) <= 10.0


def test_histogram_rows_and_sizes(tmp_path: Path) -> None:
    lake = MemoryLake(tags=["PRP$", "NN", "VB"])
    shown = texts(neuron_histogram(lake, 2, 3, tmp_path / "a.svg", subword="all", tags=["VB", "PRP$"]))
    upos = lake.column("upos")
    sizes = {tag: int(np.sum(upos == tag)) for tag in ("PRP$", "NN", "VB")}
    rows = [text for text in shown if re.fullmatch(r"\S+ \([\d,]+\)", text)]
    assert rows == [f"VB ({sizes['VB']})", f"PRP$ ({sizes['PRP$']})"]
    assert f"label upos · {sum(sizes.values())} labelled tokens · all tokens of each word" in shown
    assert "2 of 3 tags are shown." in shown


def test_histogram_shows_the_largest_tags(tmp_path: Path) -> None:
    tags = [f"T{i}" for i in range(15)]
    lake = MemoryLake(tags=tags, documents=12)
    shown = texts(neuron_histogram(lake, 0, 1, tmp_path / "a.svg", subword="all"))
    upos = lake.column("upos")
    sizes = sorted((-int(np.sum(upos == tag)), tag) for tag in tags)[:12]
    drawn = [text for text in shown if re.fullmatch(r"T\d+ \([\d,]+\)", text)]
    assert [int(text.split("(")[1][:-1]) for text in drawn] == [-size for size, _ in sizes]
    assert "12 of 15 tags are shown, those with most tokens." in shown


def test_histogram_counts_zeros_apart(tmp_path: Path) -> None:
    lake = MemoryLake()
    rows = np.arange(len(lake.values[0]))
    lake.values[0][rows % 3 > 0, 1] = 0.0
    shown = texts(neuron_histogram(lake, 0, 1, tmp_path / "a.svg", subword="all"))
    labelled = np.array([tag is not None for tag in lake.column("upos")])
    zeros = lake.stored(0)[labelled, 1] == 0
    assert f"Drawn are values other than 0: {zeros.mean():.1%} of all labelled tokens are exactly 0." in shown
    of_verbs = lake.stored(0)[lake.column("upos") == "VERB", 1] == 0
    assert f"{of_verbs.mean():.0%} are 0" in shown
    lake.values[0][:, 1] = 0.0
    assert not any("are 0" in text for text in texts(neuron_histogram(lake, 0, 1, tmp_path / "a.svg")))


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(4096, 3, 5000),
        np.random.default_rng(0).standard_t(1, 5000),
        np.round(np.random.default_rng(0).normal(0, 10, 5000)),
        np.full(7, 2.5),
        np.zeros(1),
        np.array([1e-310, -3e38]),
    ],
    ids=["far from zero", "heavy tails", "few levels", "constant", "one zero", "extremes"],
)
def test_densities_hold_every_value(values: np.ndarray) -> None:
    axis = _Axis(values)
    assert np.all(np.diff(axis.edges) > 0)
    assert np.sum(axis.density(values) * np.diff(axis.edges)) == pytest.approx(1)
    ticks = np.array(axis.ticks())
    assert len(ticks) >= 2
    places = axis.place(ticks)
    assert np.all(np.diff(places) > 0)
    assert places.min() >= axis.edges[0] - 1e-9
    assert places.max() <= axis.edges[-1] + 1e-9


def test_bins_hold_whole_levels() -> None:
    levels = np.arange(-100, 101)
    axis = _Axis(np.repeat(levels, 50).astype(np.float64))  # uniform: the density must be flat but for the two ends
    assert axis.name == "linear scale"
    density = axis.density(np.repeat(levels, 50).astype(np.float64))
    assert density[1:-1].max() / density[1:-1].min() == pytest.approx(1)
    assert _Axis(np.random.default_rng(0).standard_t(1, 5000)).name.startswith("signed log scale")


def test_class_counts_are_totalled(tmp_path: Path) -> None:
    counts = class_counts()
    shown = texts(layer_class_counts(counts.transpose("class", "layer"), tmp_path / "a.svg", title="Neurons by $kind$"))
    total = int(counts.sum())
    for name in ("specific", "related", "agnostic"):
        mine = int(counts.sel({"class": name}).sum())
        assert f"{name}: {mine:,} ({mine / total:.1%})" in shown
    assert "Neurons by $kind$" in shown


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda d, p: layer_tag_heatmap(d, "auroc", p / "map.bmp"), r"known suffixes are \.png, \.svg, \.pdf"),
        (lambda d, p: tag_bars(d, "auroc", p / "none" / "map.png"), "create it first"),
        (lambda d, p: layer_tag_heatmap(d, "magic", p / "a.png"), "known are mean_difference"),
        (
            lambda d, p: layer_tag_heatmap(make_dataset([f"t{i}" for i in range(121)], 1, 1), "auroc", p / "a.png"),
            "121 tags",
        ),
        (lambda d, p: tag_bars(d, "auroc", p / "a.png", top=15), "17 tags × 15 neurons are 255 bars"),
        (lambda d, p: tag_bars(d, "auroc", p / "a.png", top=0), "0 bars"),
        (lambda d, p: tag_bars(d, "auroc", p / "a.png", tags=["NONE"]), "unknown tag 'NONE'"),
        (lambda d, p: volcano(d, p / "a.png", "NONE"), "unknown tag 'NONE'"),
        (lambda d, p: volcano(d, p / "a.png", "ADJ", top=25), "names 0 to 24 neurons, got top=25"),
        (lambda d, p: neuron_histogram(MemoryLake(), 2, 99, p / "a.png"), "no neuron L2.N99"),
        (lambda d, p: neuron_histogram(MemoryLake(), 2, 3, p / "a.png", tags=["NONE"]), "unknown tag 'NONE'"),
        (lambda d, p: neuron_histogram(MemoryLake(), 2, 3, p / "a.png", tags=["NOUN"] * 41), "got 41"),
        (lambda d, p: layer_class_counts(class_counts() - 2000, p / "a.png"), "must not be negative"),
        (lambda d, p: layer_class_counts(class_counts().rename(layer="depth"), p / "a.png"), "expected layer, class"),
    ],
)
def test_wrong_requests_leave_no_file(
    dataset: xr.Dataset, tmp_path: Path, draw: Callable[[xr.Dataset, Path], Path], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        draw(dataset, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(StorageError, match=r"cannot write the picture .*a\.png"):
        tag_bars(make_dataset(UPOS[:2], 1, 2), "auroc", tmp_path / "a.png")
