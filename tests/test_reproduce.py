"""`neuronlake reproduce`: both reports, what is reused, escaped and refused."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model
from tiny_world import SETTINGS, World, make_world

from neuronlake.analysis.figure_key_neurons import intersections
from neuronlake.analysis.labels import token_labels
from neuronlake.analysis.report_render import Grid, Heading, Picture, Points, Text, to_html, to_markdown
from neuronlake.cli.main import main
from neuronlake.cli.reproduce_steps import StudySettings, begin
from neuronlake.extractor import ConlluCorpus, ExtractSettings, extract
from neuronlake.extractor.attributing import AttributionModel
from neuronlake.extractor.lesion_model import LesionModel
from neuronlake.store import open_lake

Run = Callable[..., tuple[int, str, str]]
EVIL = "<script>alert(1)</script>|`x`"
QUICK = ("--classes", "NOUN,VERB,DET", "-k", 8, "--lesion-k", 6, "--fdr", 1, "--tokens", 60, "--least", 5, "--random", 3,
         "--random-draws", 1, "--draws", 50, "--per-tag", 20)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(world: World, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object, lake: Path = world.lake) -> tuple[int, str, str]:
        given_arguments = ["reproduce", str(lake), *map(str, arguments)]
        if "--model" not in given_arguments:
            given_arguments += ["--model", str(world.source.folder)]
        capsys.readouterr()  # what transformers said while a test's model was saved
        try:
            code = main(given_arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("other") / "other.lake"
    world.extract(root, context="document", on_long="split")
    return root


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def no_pass(*_arguments: Any, **_settings: Any) -> Any:
    raise AssertionError("a model was loaded")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def line_of(markdown: str, *cells: str) -> list[str]:
    """Cells of the first table line that begins so."""
    for line in markdown.splitlines():
        found = [cell.strip() for cell in line.strip("|").split("|")]
        if found[: len(cells)] == list(cells):
            return found
    raise AssertionError(f"no line {cells}")


def test_both_reports_and_nothing_done_twice(
    run: Run, world: World, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    arguments = (*QUICK, "--shift", 0, "--test", other, "--out", out)
    code, table, err = run(*arguments)
    assert code == 0, err
    assert "lesions of key neurons hurt their own tag more" in table
    result = json.loads((out / "reproduce.json").read_text())
    markdown, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    # the tables show what the JSON holds
    for probe in result["probes"]:
        if probe["task"] == "classes" and probe["shift"] == 0:
            where = f"layer {probe['layer']}" if probe["layer"] is not None else probe["where"]
            cells = line_of(markdown, where, probe["classifier"], f"{probe['n_features']:,}")
            assert cells[3] == f"{probe['accuracy']:.3f}"
            assert cells[5] == "0.91"
            assert cells[7] == f"{probe['baselines']['most_frequent_tag_per_word']['accuracy']:.3f}"
            assert cells[9] == f"{probe['controls']['random_neurons']['accuracy']:.3f}"
            assert cells[11] == f"{probe['selectivity']:.3f}"
    for effect in result["lesions"]["lesions"]:
        cells = line_of(markdown, effect["tag"], f"{effect['targets']:,}", f"{effect['neurons']:,}")
        assert cells[3] == f"{effect['own']['value']:.3f}"
        assert cells[7] == f"{max(effect['random']):.3f}"  # of three random sets
        assert cells[-1] == ("yes" if effect["selectivity"]["value"] > 0 and effect["exceeded"] == 1 else "no")
    for tag in ("NOUN", "VERB", "DET"):
        mine = [each for each in result["concepts"] if each["concept"] == tag]
        assert [(each["layer"], each["classifier"]) for each in mine] == [(0, "cav"), (0, "car"), (1, "cav"), (1, "car")]
        assert {each["n_features"] for each in mine} <= set(range(1, 9))
        cav, car = ([each["balanced_accuracy"] for each in mine[start::2]] for start in (0, 1))
        cells = line_of(markdown, tag, "2", f"{max(cav):.3f}")
        assert cells[3:7] == [
            str(cav.index(max(cav))), f"{max(car):.3f}", str(car.index(max(car))),
            f"{sum(region > direction for region, direction in zip(car, cav, strict=True))} of 2",
        ]  # fmt: skip
        best = result["key_neurons"]["best"][tag]
        assert len(best) == 6
        assert best[0]["name"] in line_of(markdown, tag, "20")
        assert all(len(neurons) <= 8 for neurons in result["key_neurons"]["per_layer"][tag].values())
    assert open_lake(world.lake).fingerprint in markdown
    assert world.source.sha256 in markdown
    # every figure of the Markdown is there, and the page needs none of them
    pictures = re.findall(r"\]\((.+?)\)", markdown)
    assert len(pictures) >= 6
    assert all((out / name).is_file() for name in pictures)
    parsed = Page(page)
    assert len(parsed.links) == len(pictures)
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert "script" not in parsed.tags
    # neurons were chosen on none of the documents that they are tested on
    study = begin(open_lake(world.lake), StudySettings(classes=("NOUN", "VERB"), k=8, lesion_k=6), test=None, on=None)
    assert result["documents"] == {"train": len(study.split.train), "held_out": len(study.split.test)}
    assert not set(study.split.train) & set(study.split.test)
    assert result["probes"][0]["n_test_documents"] == len(study.split.test)
    assert result["transfer"][0]["n_test_documents"] > len(study.split.test)
    # again: no model is loaded, and the files are the same
    before = files(out)
    for model in (AttributionModel, LesionModel):
        monkeypatch.setattr(model, "load", no_pass)
    shutil.rmtree(out / "figures")
    code, again, err = run(*arguments)
    assert (code, again) == (0, table), err
    assert files(out) == before
    # a damaged step is done again; with others kept, classifiers need no model
    step = next((out / "steps").glob("svm-best-*.json"))
    kept = json.loads(step.read_text())["result"]["accuracy"]
    step.write_text("{}")
    assert run(*arguments)[0] == 0
    assert json.loads(step.read_text())["result"]["accuracy"] == kept
    # fewer neurons of the same attribution: explained once, lesioned once
    assert run(*QUICK, "--shift", 0, "-k", 5, "--layers", 0, "--classes-only", "--out", out)[0] == 0
    with pytest.raises(AssertionError, match="a model was loaded"):
        run(*arguments, "--tokens", 61)
    attributions = [json.loads(path.read_text())["result"] for path in (out / "steps").glob("attribution-*.json")]
    assert [each["timed"] for each in attributions] == [True]


@pytest.mark.parametrize("method", ["ig", "auroc"])
def test_other_methods_and_another_text(run: Run, world: World, other: Path, tmp_path: Path, method: str) -> None:
    lake = Path(shutil.copytree(world.lake, tmp_path / "a.lake"))
    code, text, err = run(*QUICK, "--classes-only", "--shift", 0, "--method", method, "--on", other, "--out",
                          tmp_path / "out", "--json", lake=lake)  # fmt: skip
    assert code == 0, err
    result = json.loads(text)
    assert (result["attribution"] is None) == (method == "auroc")
    assert result["on"]["fingerprint"] == open_lake(other).fingerprint
    assert {probe["task"] for probe in result["probes"]} == {"classes"}
    # everything is measured there, and nothing is held out here
    here, there = (token_labels(open_lake(each), "upos", subword="last") for each in (lake, other))
    assert result["documents"] == {"train": len(np.unique(here.documents[here.codes >= 0])), "held_out": 0}
    assert {probe["n_test_documents"] for probe in result["probes"]} == {len(np.unique(there.documents[there.codes >= 0]))}
    assert {probe["n_test"] for probe in result["probes"]} == {there.counts.sum()}
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert ("Completeness: sums miss" in markdown) == (method == "ig")


def test_classifiers_learn_on_documents_that_hold_enough_tokens(world: World) -> None:
    lake = open_lake(world.lake)
    few = {"classes": ("NOUN", "VERB"), "k": 8, "lesion_k": 6}
    words = token_labels(lake, "upos", subword="last")
    held = Counter(words.documents[words.codes >= 0].tolist())
    chosen: list[set[int]] = []
    for tokens in (1, 30, 60, 10**6, None):
        study = begin(lake, StudySettings(**few, train_tokens=tokens), test=None, on=None)  # type: ignore[arg-type]
        found = set(map(int, re.findall(r"\d+", study.learn_where)))
        assert found <= set(study.split.train.tolist())
        assert sum(held[document] for document in found) >= min(
            tokens or 10**6, sum(held[d] for d in study.split.train.tolist())
        )
        chosen.append(found)
    assert len(chosen[0]) == 2  # a classifier needs as many
    assert all(fewer <= more for fewer, more in pairwise(chosen))
    assert sum(held[document] for document in chosen[1]) < 30 + max(held.values()) or len(chosen[1]) == 2
    assert chosen[-1] == chosen[-2] == set(study.split.train.tolist())


def test_text_of_the_corpus_is_text(world: World, tmp_path: Path, run: Run) -> None:
    treebank = tmp_path / "evil.conllu"
    treebank.write_text(world.treebank.read_text().replace("\tNOUN\t", f"\t{EVIL}\t"))
    lake = tmp_path / "evil.lake"
    extract(lake, ConlluCorpus(paths=(treebank,)), world.source, ExtractSettings(**SETTINGS))  # type: ignore[arg-type]
    out = tmp_path / "out"
    code, _, err = run(*QUICK, "--classes", f"{EVIL},VERB", "--classes-only", "--layers", 0, "--shift", 0, "--out", out,
                       lake=lake)  # fmt: skip
    assert code == 0, err
    page = Page((out / "report.html").read_text())
    assert "script" not in page.tags
    assert EVIL in page.text
    markdown = (out / "report.md").read_text()
    assert "<script" not in markdown.replace("\\<script", "")
    rows = [line for line in markdown.splitlines() if line.startswith("| \\<script")]
    assert rows
    assert all(r"\|\`x\`" in row for row in rows)


def test_what_cannot_be_done_is_refused(run: Run, world: World, tmp_path: Path) -> None:
    stranger = make_model(tmp_path / "stranger", seed=1, num_hidden_layers=2)
    foreign = tmp_path / "foreign.lake"
    from neuronlake.extractor import resolve_model

    extract(foreign, ConlluCorpus(paths=(world.treebank,)), resolve_model(str(stranger)), ExtractSettings(**SETTINGS))  # type: ignore[arg-type]
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.tex").write_text("mine")
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("--model", stranger), "was made by model"),
        (("--classes", "NOUN,FOO"), "has upos 'FOO': known are DET, NOUN, VERB"),
        (("--classes", "NOUN"), "needs two different tags"),
        (("-k", 89), "a layer of this model has 88 neurons, choose 1 to 88"),
        (("--lesion-k", 177), "the lake has 176 neurons"),
        (("--test", foreign), "another model"),
        (("--on", foreign), "another model"),
        (("--test", world.lake), "holds the same tokens"),
        (("--layers", 7), "no layer 7: stored are 0 to 1"),
        (("--method", "guess"), "known are gradient, ig, activation_share, auroc"),
        (("--method", "activation_share"), "weights"),
        (("--test-share", 1.5), "test_share"),
        (("--test-share", 0.1, "--on", world.lake), "give one of the two"),
        (("--on", world.lake), "holds the same tokens"),
        (("--per-tag", 0), "--per-tag must be at least 1"),
        (("--train-tokens", 0), "--train-tokens must be at least 1"),
        (("--per-tag", "some"), "expected a number or all"),
        (("--tokens", 0), "--tokens must be at least 1"),
        (("--fdr", 0), "--fdr must be above 0"),
        (("--by", "nonsense"), "nonsense"),
        (("--out", used), "holds other files"),
        (("--out", used / "thesis.tex"), "is a file"),
        (("--out", tmp_path / "no" / "out"), "no folder"),
        (("--test", tmp_path / "nowhere.lake"), "nowhere.lake"),
    ]
    for number, (arguments, message) in enumerate(cases):
        out = () if "--out" in arguments else ("--out", tmp_path / f"out{number}")
        classes = () if "--classes" in arguments else ("--classes", "NOUN,VERB")
        small = [each for name in ("-k", "--lesion-k") if name not in arguments for each in (name, 3)]
        code, _, err = run(*arguments, *small, *out, *classes)
        lines = [line for line in err.splitlines() if not line.endswith("…")]
        assert (code, len(lines)) == (2, 1), (arguments, err)
        assert message in lines[0], (arguments, lines)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("ABCDE"), st.sets(st.tuples(st.integers(0, 2), st.integers(0, 5))), min_size=2))
def test_intersections_hold_every_member_once(sets: dict[str, set[tuple[int, int]]]) -> None:
    expected: dict[tuple[str, ...], int] = {}
    for member in set().union(*sets.values()):
        names = tuple(name for name in sets if member in sets[name])
        expected[names] = expected.get(names, 0) + 1
    assert dict(intersections(sets)) == expected


def test_blocks_are_escaped_in_both_forms() -> None:
    blocks = [Heading(EVIL, 1), Text("a & b"), Points([EVIL]), Grid(["x", ">y|"], [[EVIL, "1"]]), Picture("a.png", '"<b>')]
    page = Page(to_html(blocks, {"a.png": b"\x89PNG"}))
    assert not {"script", "b"} & set(page.tags)
    assert page.text.count(EVIL) == 4  # title, heading, point, cell
    lines = to_markdown(blocks).splitlines()
    assert [line for line in lines if "|" in line and "---" in line] == ["| --- | ---: |"]
    assert all(re.search(r"(?<!\\)<", line) is None for line in lines)
    assert "a &amp; b" in lines


@pytest.mark.parametrize(("columns", "wide"), [(12, False), (18, True)])
def test_tables_of_many_columns_are_set_closer(columns: int, wide: bool) -> None:
    html = to_html([Grid([f">{at}" for at in range(columns)], [["1"] * columns])], {})
    assert ('<table class="wide">' in html) == wide
    assert html.count('<th scope="col">') == columns
    assert '<div class="table" tabindex="0">' in html
