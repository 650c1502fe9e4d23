"""CoNLL-U: the gold treebanks, hand-made cases, malformed files, and a round trip of random sentences."""

import gzip
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronlake.extractor.corpora import ConlluCorpus, Sentence
from neuronlake.store.errors import InputError

GOLD = Path(__file__).parents[2] / "shared" / "corpora"


def gold(name: str) -> Path:
    path = GOLD / name
    if not path.exists():
        pytest.skip(f"the gold corpus {name} is not on this machine")
    return path


def read(path: Path, **settings: int) -> list[Sentence]:
    return list(ConlluCorpus(paths=(path,), **settings).sentences())


def write(folder: Path, text: str, name: str = "a.conllu") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def line(number: str, form: str, *, lemma="_", upos="X", feats="_", head="_", misc="_") -> str:
    return "\t".join([number, form, lemma, upos, "_", feats, head, "_", "_", misc])


def conllu(*lines: str) -> str:
    return "\n".join(lines) + "\n\n"


@dataclass(frozen=True, kw_only=True)
class Treebank:
    id: str
    sentences: int
    words: int
    documents: int
    ranges: int
    sharing: int
    """Words of a range whose forms do not add up to its surface form."""


# Sentences, words, ranges and newdoc comments were counted with awk.
TREEBANKS = [
    Treebank(id="en_ewt-ud-train", sentences=12_544, words=204_577, documents=540, ranges=2_614, sharing=0),
    Treebank(id="en_ewt-ud-dev", sentences=2_001, words=25_147, documents=318, ranges=359, sharing=0),
    Treebank(id="en_pud-ud-test", sentences=1_000, words=21_180, documents=397, ranges=129, sharing=0),
    Treebank(id="fr_pud-ud-test", sentences=1_000, words=24_726, documents=397, ranges=595, sharing=1_190),
    Treebank(id="de_pud-ud-test", sentences=1_000, words=21_332, documents=397, ranges=331, sharing=662),
    Treebank(id="es_pud-ud-test", sentences=1_000, words=23_283, documents=397, ranges=467, sharing=834),
]


def raw_sentences(path: Path) -> Iterator[tuple[list[list[str]], dict[str, str]]]:
    """Read a treebank in the simplest way: word lines and range lines of each sentence, and its comments."""
    for block in gzip.decompress(path.read_bytes()).decode().split("\n\n"):
        lines = block.split("\n")
        comments = dict(re.findall(r"^# (\S+) = (.*)$", block, re.MULTILINE))
        rows = [row.split("\t") for row in lines if row and not row.startswith("#")]
        if rows:
            yield [row for row in rows if "." not in row[0]], comments


@pytest.mark.parametrize("bank", TREEBANKS, ids=lambda bank: bank.id)
def test_a_treebank_is_read_word_for_word(bank: Treebank) -> None:
    path = gold(f"{bank.id}.conllu.gz")
    sentences = words = ranges = sharing = 0
    documents = set()
    for sentence, (rows, comments) in zip(ConlluCorpus(paths=(path,)).sentences(), raw_sentences(path), strict=True):
        sentences += 1
        documents.add(sentence.document)
        assert sentence.name == comments["sent_id"]
        assert sentence.text == comments["text"]
        assert sentence.metadata.get("text_en") == comments.get("text_en")
        plain = [row for row in rows if "-" not in row[0]]
        words += len(plain)
        assert [word.form for word in sentence.words] == [row[1] for row in plain]
        for word, row in zip(sentence.words, plain, strict=True):
            feats = dict(pair.split("=") for pair in row[5].split("|")) if row[5] != "_" else {}
            given_labels = {"lemma": row[2], "upos": row[3], "xpos": row[4], "head": row[6], "deprel": row[7]}
            expected = {key: value for key, value in given_labels.items() if value != "_" or row[1] == "_"} | feats
            assert word.labels == expected
        surfaces = {}
        for row in rows:
            if "-" in row[0]:
                ranges += 1
                first, last = map(int, row[0].split("-"))
                if "".join(plain[i - 1][1] for i in range(first, last + 1)) != row[1]:
                    surfaces |= dict.fromkeys(range(first - 1, last), row[1])
        sharing += len(surfaces)
        for index, word in enumerate(sentence.words):
            assert sentence.text[word.start : word.end] == surfaces.get(index, word.form)
            if index and index not in surfaces:
                assert word.start >= sentence.words[index - 1].end
    assert (sentences, words, len(documents), ranges, sharing) == (
        bank.sentences,
        bank.words,
        bank.documents,
        bank.ranges,
        bank.sharing,
    )


def test_documents_are_contiguous_and_paragraphs_are_kept() -> None:
    previous, seen = None, set()
    paragraphs = 0
    for sentence in read(gold("en_ewt-ud-dev.conllu.gz")):
        assert sentence.name.startswith(sentence.document)
        if sentence.document != previous:
            assert sentence.document not in seen
            seen.add(previous := sentence.document)
        paragraphs += "newpar" in sentence.metadata
    assert paragraphs == 750


def test_parallel_treebanks_agree_on_sentence_ids() -> None:
    names = [[s.name for s in read(gold(f"{code}_pud-ud-test.conllu.gz"))] for code in ("en", "fr")]
    assert names[0] == names[1]


def test_the_limit_counts_over_files(tmp_path: Path) -> None:
    paths = (
        write(tmp_path, conllu(line("1", "a")) * 2, "1.conllu"),
        write(tmp_path, conllu(line("1", "b")) * 2, "2.conllu"),
    )
    corpus = ConlluCorpus(paths=paths, limit_sentences=3)
    assert [s.text for s in corpus.sentences()] == ["a", "a", "b"]
    assert [s.text for s in corpus.sentences()] == ["a", "a", "b"]  # iterated again


def spans(sentence: Sentence) -> list[tuple[str, int, int]]:
    return [(word.form, word.start, word.end) for word in sentence.words]


def test_words_of_a_range_split_its_span_or_share_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        conllu(
            line("1-2", "don't", misc="SpaceAfter=No"),
            line("1", "do"),
            line("2", "n't"),
            line("3-4", "du"),
            line("3", "de"),
            line("4", "le"),
            line("4.1", "ghost"),
            line("5-6", "Don't"),
            line("5", "do"),
            line("6", "n't"),
        ),
    )
    [sentence] = read(path)
    assert sentence.text == "don'tdu Don't"
    assert spans(sentence) == [("do", 0, 2), ("n't", 2, 5), ("de", 5, 7), ("le", 5, 7), ("do", 8, 13), ("n't", 8, 13)]


def test_code_points_not_bytes_or_normal_forms(tmp_path: Path) -> None:
    text = "e\u0301t\u00e9 \U0001f600\u2028\u3000x"
    path = write(tmp_path, conllu(f"# text = {text}", line("1", "e\u0301t\u00e9"), line("2", "\U0001f600"), line("3", "x")))
    [sentence] = read(path)
    assert sentence.text == text
    assert spans(sentence) == [("e\u0301t\u00e9", 0, 4), ("\U0001f600", 5, 6), ("x", 8, 9)]


def test_comments_documents_and_names(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "# a licence\n\n"
        + conllu("# note = first", line("1", "a"))
        + conllu("# newdoc", "# newpar", "# sent_id = s2", line("1", "b"))
        + conllu("# newdoc id = d", "# newpar id = p1", "# rest", "# k = 1", "# k = 2 = 2", line("1", "c"))
        + conllu(line("1", "d")),
        "bank.conllu",
    )
    sentences = read(path)
    assert [s.name for s in sentences] == ["bank:1", "s2", "bank:3", "bank:4"]
    assert [s.document for s in sentences] == ["bank", "bank:1", "d", "d"]
    assert [s.metadata for s in sentences] == [{"note": "first"}, {"newpar": "yes"}, {"newpar": "p1", "k": "1; 2 = 2"}, {}]
    assert [s.place for s in sentences] == ["bank.conllu:4", "bank.conllu:9", "bank.conllu:16", "bank.conllu:18"]
    assert {s.source for s in sentences} == {"bank.conllu"}


def test_underscores_and_absent_values(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        conllu(
            line("1", "_", lemma="_", upos="PUNCT"),
            line("2", "a", lemma="_", upos="_"),
            line("3", "b", upos="NOUN", feats="Number[psor]=Sing|Case=Acc,Dat", head="0"),
        ),
    )
    assert [word.labels for word in read(path)[0].words] == [
        {"lemma": "_", "upos": "PUNCT"},
        {},
        {"upos": "NOUN", "head": "0", "Number[psor]": "Sing", "Case": "Acc,Dat"},
    ]


@pytest.mark.parametrize("ending", ["\r\n\r\n", "\r\n", "\n", ""])
def test_line_ends_byte_order_mark_and_missing_last_line(tmp_path: Path, ending: str) -> None:
    newline = "\r\n" if "\r" in ending else "\n"
    path = write(tmp_path, "\ufeff# text = a b" + newline + line("1", "a") + newline + line("2", "b") + ending)
    assert [(s.text, spans(s)) for s in read(path)] == [("a b", [("a", 0, 1), ("b", 2, 3)])]


OK = line("1", "a")


@dataclass(frozen=True, kw_only=True)
class Malformed:
    id: str
    text: str
    message: str


MALFORMED = [
    Malformed(id="columns", text=OK + "\n2\tb\n", message="a.conllu:2: expected 10 tab-separated columns, got 2"),
    Malformed(id="spaces", text=OK.replace("\t", "  "), message="a.conllu:1: expected 10 .* got 1"),
    Malformed(id="eleven", text=OK + "\tx", message="a.conllu:1: expected 10 .* got 11"),
    Malformed(id="tabs-only", text=OK + "\n" + "\t" * 9, message="a.conllu:2: bad ID ''"),
    Malformed(id="bad-id", text=line("x", "a"), message="a.conllu:1: bad ID 'x'"),
    Malformed(id="zero-id", text=line("0", "a"), message="a.conllu:1: bad ID '0'"),
    Malformed(id="starts-at-2", text=line("2", "a"), message="a.conllu:1: ID out of order .* expected 1, got 2"),
    Malformed(id="gap", text=OK + "\n" + line("3", "b"), message="a.conllu:2: ID out of order .* expected 2, got 3"),
    Malformed(id="twice", text=OK + "\n" + OK, message="a.conllu:2: ID out of order or given twice: expected 2, got 1"),
    Malformed(
        id="empty-node", text=OK + "\n" + line("2.1", "b"), message="a.conllu:2: ID out of order: expected 1.1, got 2.1"
    ),
    Malformed(id="empty-form", text=line("1", ""), message="a.conllu:1: the form of word 1 is empty"),
    Malformed(id="no-form", text=line("1", "_", upos="_"), message="a.conllu:1: word 1 has no form"),
    Malformed(id="head", text=line("1", "a", head="one"), message="a.conllu:1: HEAD must be .* got 'one'"),
    Malformed(id="negative-head", text=line("1", "a", head="-1"), message="a.conllu:1: HEAD must be .* got '-1'"),
    Malformed(id="feats", text=line("1", "a", feats="Case"), message="a.conllu:1: FEATS 'Case': expected Name=Value"),
    Malformed(id="feats-twice", text=line("1", "a", feats="A=1|A=2"), message="a.conllu:1: FEATS .* A is given twice"),
    Malformed(id="feats-clash", text=line("1", "a", feats="upos=1"), message="'upos' cannot be the name of a feature"),
    Malformed(
        id="range-twice",
        text=line("1-2", "ab") + "\n" + line("1-2", "ab"),
        message="a.conllu:2: ID out of order or given twice: expected word 1, got 1-2",
    ),
    Malformed(
        id="range-overlap",
        text="\n".join([line("1-2", "ab"), line("1", "a"), line("2-3", "bc")]),
        message="a.conllu:3: .* expected word 2, got 2-3",
    ),
    Malformed(id="range-late", text=OK + "\n" + line("1-2", "ab"), message="a.conllu:2: .* expected 2, got 1-2"),
    Malformed(id="range-backward", text=OK + "\n" + line("2-1", "ab"), message="a.conllu:2: bad ID '2-1'"),
    Malformed(
        id="range-not-covered",
        text=line("1-3", "abc") + "\n" + OK,
        message="a.conllu:1: the range of 'abc' ends at word 3, but the sentence ends at word 1",
    ),
    Malformed(id="comment-inside", text=OK + "\n# text = b\n" + OK, message="a.conllu:2: a comment inside a sentence"),
    Malformed(id="no-words", text="# text = b\n\n" + OK, message="a.conllu:1: a sentence without words"),
    Malformed(
        id="text-differs",
        text="# sent_id = s1\n# text = a c\n" + OK + "\n" + line("2", "b"),
        message="a.conllu:4: sentence s1: .* expected 'b' at character 2, got 'c'",
    ),
    Malformed(
        id="text-short",
        text="# text = a\n" + OK + "\n" + line("2", "b"),
        message="a.conllu:3: sentence a:1: .* expected 'b' at character 1, got the end",
    ),
    Malformed(id="text-long", text="# text = a b\n" + OK, message="a.conllu:2: .* expected the end at character 1, got 'b'"),
]


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.id)
def test_malformed_files_are_refused_with_file_and_line(tmp_path: Path, case: Malformed) -> None:
    with pytest.raises(InputError, match=case.message) as caught:
        read(write(tmp_path, case.text))
    assert "\n" not in str(caught.value)


def test_invalid_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    good = conllu(OK).encode()
    path.write_bytes(good + OK.encode().replace(b"a", b"\xe9t"))
    with pytest.raises(InputError, match=f"a.conllu:3: not UTF-8: byte 0xe9 at offset {len(good) + 2}"):
        read(path)


def test_truncated_and_fake_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu.gz"
    whole = gzip.compress(
        b"".join(conllu(f"# sent_id = {hashlib.sha256(b'%d' % i).hexdigest()}", OK).encode() for i in range(999))
    )
    for damaged, message in (
        (whole[: len(whole) // 2], "damaged or truncated gzip"),
        (b"not gzip at all", "damaged or truncated gzip"),
        (whole[:100] + bytes([whole[100] ^ 255]) + whole[101:], "damaged or truncated gzip|not UTF-8|columns"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"a.conllu.gz:?.*({message})"):
            read(path)


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.conllu: no such file or folder"):
        ConlluCorpus(paths=(tmp_path / "nowhere.conllu",)).sentences()
    with pytest.raises(InputError, match=r"no corpus files in this folder; expected files named \*.conllu or \*.conllu.gz"):
        ConlluCorpus(paths=(tmp_path,)).sentences()
    with pytest.raises(InputError, match="no corpus files: got an empty list"):
        ConlluCorpus(paths=())
    with pytest.raises(InputError, match="limit_sentences must be at least 1, got 0"):
        ConlluCorpus(paths=(tmp_path,), limit_sentences=0)


def test_folders_are_read_whole_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b" / "c" / "z.conllu.gz").write_bytes(gzip.compress(conllu(line("1", "second")).encode()))
    write(tmp_path / "b", conllu(line("1", "third")), "x.conllu")
    write(tmp_path, conllu(line("1", "last")), "x.conllu")
    write(tmp_path, conllu(line("1", "first")), "a.conllu")
    write(tmp_path, "not read", "a.txt")
    write(tmp_path / ".hidden", "not read", "a.conllu")
    sentences = read(tmp_path)
    assert [s.text for s in sentences] == ["first", "second", "third", "last"]
    # Two files of one name stay two documents.
    assert [s.source for s in sentences] == ["a.conllu", "z.conllu.gz", "b/x.conllu", f"{tmp_path.name}/x.conllu"]
    assert len({(s.source, s.document) for s in sentences}) == 4
    with pytest.raises(InputError, match="given 2 times"):
        ConlluCorpus(paths=(tmp_path, tmp_path / "a.conllu")).sentences()


def test_identity_is_of_content_and_settings_not_of_place(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, conllu(OK))
    here, there = (ConlluCorpus(paths=(tmp_path / folder,)).identity() for folder in ("here", "there"))
    digest = hashlib.sha256(conllu(OK).encode()).hexdigest()
    assert here == there == {"kind": "conllu", "files": [{"name": "a.conllu", "sha256": digest}], "limit_sentences": None}
    assert ConlluCorpus(paths=(tmp_path / "here",), limit_sentences=1).identity() != here


# White space, line separators and tabs cannot stand in a form; the surrogates cannot be written.
FORMS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6).filter(
    # Literal underscores and comment signs have tests of their own.
    lambda form: form.strip() and form != "_"
)
LABELS = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=4)
TOKENS = st.lists(
    st.tuples(FORMS, st.booleans(), st.none() | LABELS, st.dictionaries(LABELS.map("F{}".format), LABELS, max_size=3)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(tokens=TOKENS, with_text=st.booleans())
def test_random_sentences_come_back(tmp_path_factory: pytest.TempPathFactory, tokens, with_text) -> None:
    text, expected, lines = "", [], []
    for number, (form, space, lemma, feats) in enumerate(tokens, start=1):
        expected.append(
            (form, len(text), len(text) + len(form), {"upos": "X"} | ({"lemma": lemma} if lemma else {}) | feats)
        )
        text += form + " " * (space and number < len(tokens))
        joined = "|".join(f"{key}={value}" for key, value in feats.items()) or "_"
        lines.append(line(str(number), form, lemma=lemma or "_", feats=joined, misc="_" if space else "Foo=1|SpaceAfter=No"))
    path = tmp_path_factory.getbasetemp() / "random.conllu"
    path.write_text(conllu(*([f"# text = {text}"] * with_text), *lines), encoding="utf-8", newline="")
    [sentence] = read(path)
    assert sentence.text == text
    assert [(word.form, word.start, word.end, dict(word.labels)) for word in sentence.words] == expected
