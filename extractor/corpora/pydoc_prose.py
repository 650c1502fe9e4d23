"""English prose that comes with Python: the topics of ``help()``, cleaned into plain paragraphs."""

import re
from collections.abc import Iterator
from pathlib import Path

from neuronlake.store.errors import InputError

_MIN_WORDS = 8
_MAX_SEMICOLONS = 3  # more of them make a run-on list of attributes
_MIN_PLAIN = 0.8  # share of the tokens that are plain words; code and signatures have less

# Start of a list item, a numbered item or a footnote.
_MARKER = re.compile(r"(?:[*•-]|[IVX]+\.|\d+\.|\[\d+\]|\(\d+\))\s+")
_NOT_PROSE = re.compile(r">>>|::=|\.\.\.$|[-=]{4}|^[|+#@]|\|$|\s\|\s|^Traceback|  #|^\s*\w[\w.]*\s=\s")
_EDITORIAL = re.compile(
    r"(?:(?:New|Added|Changed) in version|Deprecated since|Availability|Source code|See also|Also see)\b"
)
_LABEL = re.compile(r"(?:Note|Warning|Caution|Hint|Tip|(?:CPython i|I)mplementation detail|Programmer’s note):\s+")
_FOOTNOTE = re.compile(r"(?<=\S) \[\d+\]")
_STRONG = re.compile(r"\*\*(\"[^\"*]+\"|(?=\w)[^*\"]+?(?<=[\w:.!?)]))\*\*")
_EMPHASIS = re.compile(r"(?<![\w*\"'/])\*(?=\w)([^*\"]+?)(?<=\w)\*(?![\w*])")
_LITERAL = re.compile(r"``([^`]+)``")
_ROLE = re.compile(r":[a-z:]+:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`")
_TWICE_QUOTED = re.compile(r"“\"([^\"]+)\"”")
_PLAIN = re.compile(r"[\"“‘(\[]*[A-Za-z]+(?:[’'/-][A-Za-z]+)*[\"”’)\].,;:!?]*")
_SENTENCE = re.compile(r"[\"“‘(]*[A-Z“\"].*[.!?][\"”’)]*", re.DOTALL)


def write_pydoc_prose(folder: Path, *, max_words: int | None) -> list[Path]:
    """Write the prose of Python's own documentation topics, one ``.txt`` file (document) a topic.

    Headings, examples, grammar, tables, version notes and markup are dropped, and of the rest what does not read as
    prose. A paragraph that stands in several topics is kept in the first, so that no document repeats another. The text
    depends on the running Python's version.

    Parameters
    ----------
    folder
        Where the files go; made if missing.
    max_words
        Stop before the paragraph that would pass this many words separated by white space; None writes everything.

    Returns
    -------
    list of Path
        The files, sorted by topic.

    Raises
    ------
    InputError
        If this Python was installed without its documentation topics, or the limit lets nothing through.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(f"this Python has no documentation topics ({error}); give a text of your own") from error
    seen: set[str] = set()
    words = 0
    documents: dict[str, list[str]] = {}
    for topic in sorted(topics):
        for paragraph in clean(topics[topic]):
            if paragraph in seen:
                continue
            seen.add(paragraph)
            words += len(paragraph.split())
            if max_words is not None and words > max_words:
                return _write(folder, documents)
            documents.setdefault(topic, []).append(paragraph)
    return _write(folder, documents)


def _write(folder: Path, documents: dict[str, list[str]]) -> list[Path]:
    if not documents:
        raise InputError("max_words is too small for a single paragraph; raise it (100 is enough)")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for topic, paragraphs in documents.items():
        path = folder / f"{topic}.txt"
        path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
        files.append(path)
    return files


def clean(text: str) -> Iterator[str]:
    """Yield the paragraphs of one topic that read as English prose, each on one line without markup."""
    for lines in _blocks(text):
        if any(_NOT_PROSE.search(line) for line in lines):
            continue
        paragraph = _unmark(_join(lines))
        if not _EDITORIAL.match(paragraph) and _is_prose(paragraph):
            yield paragraph


def _blocks(text: str) -> Iterator[list[str]]:
    """Split at blank lines, list markers and changes of indent (a term over its definition, a label over its note)."""
    block: list[str] = []
    indent = 0
    for raw in [*text.splitlines(), ""]:
        line = raw.strip()
        marker = _MARKER.match(line)
        # Text that hangs under its marker belongs to it.
        left = len(raw) - len(raw.lstrip()) + (marker.end() if marker else 0)
        if block and (not line or left != indent or (marker and not line.startswith("- "))):
            yield block
            block = []
        if line:
            block.append(line[marker.end() :] if marker and not block else line)
            indent = left


def _join(lines: list[str]) -> str:
    joined = lines[0]
    for line in lines[1:]:
        # A word broken at its own hyphen ("post-" / "mortem") keeps the hyphen and takes no space.
        joined += line if re.search(r"\w-$", joined) else f" {line}"
    return " ".join(joined.split())


def _unmark(paragraph: str) -> str:
    paragraph = _ROLE.sub(r"\1", paragraph)
    paragraph = _LITERAL.sub(r'"\1"', paragraph)
    paragraph = _STRONG.sub(r"\1", paragraph)
    paragraph = _EMPHASIS.sub(r"\1", paragraph)
    paragraph = _FOOTNOTE.sub("", paragraph)
    paragraph = _TWICE_QUOTED.sub(r"“\1”", paragraph)
    return _LABEL.sub("", paragraph, count=1) if _LABEL.match(paragraph) else paragraph


def _is_prose(paragraph: str) -> bool:
    tokens = paragraph.split()
    plain = sum(_PLAIN.fullmatch(token) is not None for token in tokens)
    return (
        len(tokens) >= _MIN_WORDS
        and plain >= _MIN_PLAIN * len(tokens)
        and _SENTENCE.fullmatch(paragraph) is not None
        and paragraph.count(";") <= _MAX_SEMICOLONS
        and "auditing event" not in paragraph
        and '""' not in paragraph
        and paragraph.count("(") == paragraph.count(")")
        and paragraph.count('"') % 2 == 0
    )
