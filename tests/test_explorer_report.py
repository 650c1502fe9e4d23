"""The report: one file that needs nothing else, with the numbers of the statistics, whatever the corpus holds."""

import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from lakes import assign_documents, make_sentence, make_spec, plan_lake, write_blocks

pytest.importorskip("jinja2")

from neuronlake.analysis import compute_statistics, rank
from neuronlake.analysis.explorer.report import write_report
from neuronlake.cli.main import main
from neuronlake.store import InputError, Lake, open_lake

TAGS = ("NOUN", "VERB", "<b>ADJ</b>'\"")
NASTY = '<script>alert(1)</script>"><img src=x onerror=alert(1)>{{123*457}}'


class Page(HTMLParser):
    """Elements, addresses and text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "action", "data-address"):
                self.addresses.append(value or "")
            assert not name.startswith("on")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1] == "script":
            self.scripts.append(data)
        elif not self._inside or self._inside[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Ten neurons in two layers; the first three of layer 0 follow a tag each. Words and tags hold markup."""
    root = tmp_path_factory.mktemp("report") / "reported.lake"
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 3, size=(60, 6))
    sentences = [
        make_sentence(
            [NASTY if word == 2 else f"word{word}" for word in words],
            [{"upos": TAGS[word]} for word in words],
            name=f"s{number}",
            document="?",
        )
        for number, words in enumerate(drawn)
    ]
    spec = make_spec(layers=2, neurons=10, block_rows=128, chunk_neurons=8, encoding="float16")
    record, rows = plan_lake(root, spec, assign_documents(sentences, 4))
    values = rng.normal(size=(2, drawn.size, 10)).astype(np.float32)
    values[0, np.arange(drawn.size), drawn.ravel()] += 3
    write_blocks(root, spec, record, rows, values)
    found = open_lake(root)
    compute_statistics(found, "upos")
    return found


@pytest.fixture(scope="module")
def html(lake: Lake) -> str:
    return write_report(lake, lake.path.parent / "report.html", shown=1, ranked=4, contexts=3).read_text(encoding="utf-8")


def test_it_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert page.addresses
    for address in page.addresses:
        assert address.startswith("#")
        assert address[1:] in page.ids
    assert not {"link", "img", "iframe", "object"} & {*page.tags}
    (script,) = page.scripts
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; ")
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_what_the_corpus_holds_is_text(html: str) -> None:
    page = Page(html)
    assert NASTY in page.text
    assert page.tags.count("script") == 1
    assert "56211" not in page.text


def test_its_numbers_are_those_of_the_statistics(html: str, lake: Lake) -> None:
    statistics = compute_statistics(lake, "upos")
    text = " ".join(Page(html).text.split())
    for tag in TAGS:
        first, *others = rank(statistics, "auroc", top=4, tags=[tag])
        assert first["name"] == f"L0.N{TAGS.index(tag)}"
        assert f"{first['name']} Higher on {tag} than on other words: AUROC {first['auroc']:.3f}." in text
        for place, entry in enumerate([first, *others], start=1):
            mean, rest = (f"{entry[name]:.3f}".replace("-", "−") for name in ("mean", "mean_rest"))
            side = "higher" if entry["sign"] > 0 else "lower"
            assert f"{place} {entry['name']} {entry['auroc']:.3f} {side} {mean} {rest}" in text
    values = lake.read(layer=0, neurons=[0])[: 6 * 60, 0]
    for value in [*np.sort(values)[::-1][:3], *np.sort(values)[:3]]:
        assert f"{value:.3f}".replace("-", "−") in text


def test_the_command_writes_it_and_refuses_what_it_cannot(
    lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    command = ["report", str(lake.path), "--out", str(out)]
    assert main([*command, "--tags", "NOUN", "--shown", "0", "--neurons", "l1.n9", "--json"]) == 0
    assert f'"bytes": {out.stat().st_size}' in capsys.readouterr().out
    page = Page(out.read_text(encoding="utf-8"))
    assert "L1.N9" in page.ids
    assert "L0.N0" not in page.ids
    for more, said in (
        ([], f"{out} exists already"),
        (["--out", str(tmp_path / "no" / "r.html")], "no folder"),
        (["--out", str(tmp_path / "b.html"), "--tags", "NOPE"], "unknown tag 'NOPE': known are"),
        (["--out", str(tmp_path / "b.html"), "--method", "nope"], "unknown ranking 'nope': known here are"),
        (["--out", str(tmp_path / "b.html"), "--by", "lemma"], "no label column 'lemma'"),
        (["--out", str(tmp_path / "b.html"), "--neurons", "L7.N1"], "no neuron L7.N1 in this lake"),
        (["--out", str(tmp_path / "b.html"), "-k", "0"], "contexts can be shown, got 0"),
        (["--out", str(tmp_path / "b.html"), "--ranked", "0"], "ranks at least 1 neuron"),
    ):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [out]


def test_without_kept_statistics_it_says_what_keeps_them(lake: Lake, tmp_path: Path) -> None:
    shutil.copytree(lake.path, tmp_path / "bare.lake", ignore=shutil.ignore_patterns("statistics"))
    with pytest.raises(InputError, match=r"no statistics are kept in this lake yet: run `neuronlake rank .* --by LABEL`"):
        write_report(open_lake(tmp_path / "bare.lake"), tmp_path / "r.html")
