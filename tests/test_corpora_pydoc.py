"""The demo text: prose out of Python's own documentation, whichever version runs."""

import re
from pathlib import Path

import pytest

from neuronlake.extractor.corpora.pydoc_prose import clean, write_pydoc_prose
from neuronlake.store.errors import InputError

PAGE = """\
The "with" statement
********************

The **"with"** statement wraps a *block* of code in methods of a
context manager (see section *Context Managers*). It never hides post-
mortem errors from the caller. [1]

   with_stmt ::= "with" with_item ("," with_item)* ":" suite and some more words here.

* Every item of a list is a paragraph of its own in the text.
* The marker in front of an item is taken away, of course.

1. Numbered items are handled in the very same simple way.

   Note:

     The text of a note is kept when it reads as prose.

   >>> print("An example is code, even when it ends as prose does.")

   value = compute(first, second)  # This comment looks a bit like prose.

object.__enter__(self)

   Called on entry ("as" binds the result to a name, if given).

Changed in version 3.1: Support for multiple context expressions was added.

**CPython implementation detail:** The order is fixed in the present
implementation of the language.

Too short to keep.

A paragraph that only leads up to an example ends like this:

  **PEP 343** - The "with" statement
     The specification, background, and examples for the statement.

Role markup such as :func:`len` and ``literal`` text is also unwrapped here.
"""


def test_clean_keeps_prose_and_drops_the_rest() -> None:
    assert list(clean(PAGE)) == [
        'The "with" statement wraps a block of code in methods of a context manager (see section Context Managers).'
        " It never hides post-mortem errors from the caller.",
        "Every item of a list is a paragraph of its own in the text.",
        "The marker in front of an item is taken away, of course.",
        "Numbered items are handled in the very same simple way.",
        "The text of a note is kept when it reads as prose.",
        'Called on entry ("as" binds the result to a name, if given).',
        "The order is fixed in the present implementation of the language.",
        "The specification, background, and examples for the statement.",
        'Role markup such as len and "literal" text is also unwrapped here.',
    ]


def reads_as_prose(character: str) -> bool:
    return character.isalpha() or character == " "


def test_this_python_gives_clean_documents(tmp_path: Path) -> None:
    files = write_pydoc_prose(tmp_path / "prose", max_words=None)
    assert files == sorted((tmp_path / "prose").iterdir())
    assert len(files) >= 50
    paragraphs = [p for file in files for p in file.read_text(encoding="utf-8").rstrip("\n").split("\n\n")]
    assert sum(len(p.split()) for p in paragraphs) >= 20_000
    assert len(set(paragraphs)) == len(paragraphs)
    for paragraph in paragraphs:
        assert not re.search(r">>>|::=|``|\n|  |\*\*[A-Z]", paragraph)
        assert re.search(r"[.!?][\"”’)]*$", paragraph)
        assert sum(map(reads_as_prose, paragraph)) > 0.6 * len(paragraph)
    text = "".join(paragraphs)
    assert sum(map(reads_as_prose, text)) > 0.93 * len(text)


def test_the_limit_stops_before_a_paragraph(tmp_path: Path) -> None:
    def words(files: list[Path]) -> list[str]:
        return [word for file in files for word in file.read_text(encoding="utf-8").split()]

    everything = words(write_pydoc_prose(tmp_path / "all", max_words=None))
    some = words(write_pydoc_prose(tmp_path / "some", max_words=1_000))
    assert 700 < len(some) <= 1_000
    assert some == everything[: len(some)]
    with pytest.raises(InputError, match="max_words is too small"):
        write_pydoc_prose(tmp_path / "none", max_words=3)
