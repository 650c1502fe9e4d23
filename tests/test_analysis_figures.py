"""Heatmaps: drawn without a display, readable at full size, the same bytes every time."""

import matplotlib.image
import pytest
from memory_lake import MemoryLake

from neuronlake.analysis import compute_statistics, layer_tag_heatmap
from neuronlake.store.errors import InputError

UPOS = ["ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ"]
UPOS += ["SYM", "VERB", "X"]


@pytest.fixture(scope="module")
def dataset():
    return compute_statistics(MemoryLake(layers=range(30), documents=20, words=12, tags=UPOS))


def test_png_is_large_enough(dataset, tmp_path):
    path = layer_tag_heatmap(dataset, "auroc", tmp_path / "map.png")
    height, width = matplotlib.image.imread(path).shape[:2]
    assert width >= len(UPOS) * 50
    assert height >= 30 * 25


def test_svg_names_tags_with_counts(dataset, tmp_path):
    layer_tag_heatmap(dataset, "cohen_d", tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    for tag, count in zip(dataset["tag"].to_numpy(), dataset["count"].to_numpy(), strict=True):
        assert f"{tag} ({count:,})" in text
    assert "cohen_d" in text
    assert "layer" in text


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_statistics_give_the_same_file(dataset, tmp_path, suffix):
    first, second = (layer_tag_heatmap(dataset, "welch_t", tmp_path / f"{name}.{suffix}") for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_small_and_wrong_requests(dataset, tmp_path):
    layer_tag_heatmap(dataset.isel(layer=[0], tag=[0, 1]), "auroc", str(tmp_path / "small.png"))
    with pytest.raises(InputError, match=r"known suffixes are \.png, \.svg, \.pdf"):
        layer_tag_heatmap(dataset, "auroc", tmp_path / "map.bmp")
    with pytest.raises(InputError, match="known are mean_difference"):
        layer_tag_heatmap(dataset, "magic", tmp_path / "map.png")


def test_too_many_tags(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("neuronlake.analysis.figures._MAX_TAGS", 5)
    with pytest.raises(InputError, match="17 tags"):
        layer_tag_heatmap(dataset, "auroc", tmp_path / "map.png")
