"""HTML for notebooks: text is text whatever it holds, tables are whole, colours are readable on any page."""

import re

import pytest
from html_reading import NASTY, Reader
from hypothesis import given
from hypothesis import strategies as st

from neuronlake.store.markup import (
    Markup,
    escaped,
    facts,
    folded,
    marked,
    notebook,
    number,
    size,
    table,
    text_table,
    visible,
)

CATEGORIES = ("Cc", "Cs", "Zl", "Zp", "Cf")
plain_text = st.text(st.characters(exclude_categories=CATEGORIES))


@pytest.mark.parametrize("text", NASTY)
def test_text_is_shown_as_it_is(text):
    page = Reader(
        notebook(
            table(text, [text, f">{text}"], [[text, text], [text, 1]]),
            facts(text, {text: text}),
            folded(text, table("t", ["a"], [[text]])),
            marked(text, text, text, 0.5),
        )
    )
    first, second, third = page.tables
    assert (first.caption, first.head, first.rows) == (text, [text, text], [[text, text], [text, "1"]])
    assert (second.caption, second.rows) == (text, [[text, text]])
    assert third.rows == [[text]]
    assert [mark for mark, _ in page.marks] == [text]
    assert page.text.count(text) >= 12
    assert page.styles == 1


@given(st.lists(st.tuples(plain_text, plain_text), max_size=4), plain_text)
def test_tables_hold_their_data(rows, caption):
    read = Reader(notebook(table(caption, ["a", ">b"], rows))).tables[0]
    assert read.rows == [list(row) for row in rows]
    assert read.caption == caption


@given(st.text())
def test_nothing_hides_or_turns_around(text):
    html = notebook(table("t", ["a"], [[text]]), marked(text, text, text))
    assert html.encode()  # no lone surrogate
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", html)
    assert len(Reader(html).tables[0].rows) == 1


def test_hidden_characters_are_named():
    assert visible("a\nb\tc\x00\x1b[31m") == "a\\nb\\tc\\x00\\x1b[31m"
    assert visible("\u202egpj.exe \ud800 \x85") == "\\u202egpj.exe \\ud800 \\x85"
    assert visible("a\u00a0b\u200cc\u3000") == "a\u00a0b\u200cc\u3000"
    assert str(escaped("<\u202e>")) == "&lt;\\u202e&gt;"


def test_only_markup_is_taken_as_html():
    cells = Reader(table("t", ["a", "b"], [[Markup("<bdi>x</bdi>"), "<bdi>x</bdi>"]])).tables[0].rows[0]
    assert cells == ["x", "<bdi>x</bdi>"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (1234567, "1,234,567"),
        (-12, "−12"),
        (0.87, "0.870"),
        (123.4, "123"),
        (-0.0123456, "−0.0123"),
        (123456.7, "123,457"),
        (1e-300, "1.00e−300"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown
    assert Reader(table("t", [">n"], [[value]])).tables[0].rows == [[shown]]


def test_truth_is_no_number():
    assert Reader(table("t", ["a"], [[True]])).tables[0].rows == [["True"]]


def test_sizes():
    assert [size(count) for count in (0, 999, 1000, 6.9e9, 7.7e13)] == ["0 B", "999 B", "1.0 kB", "6.9 GB", "77.00 TB"]


def luminance(colour):
    """Relative luminance of WCAG 2."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.6, 1.0, 40.0, float("nan"), float("-inf")])
@pytest.mark.parametrize(("page", "ink"), [((255, 255, 255), (33, 33, 33)), ((17, 17, 17), (224, 224, 224))])
def test_shades_leave_text_readable(page, ink, strength):
    style = Reader(marked("a ", "b", " c", strength)).marks[0][1]
    assert "underline" in style
    assert "color:inherit" in style  # no colour alone, and the page's own ink
    *colour, opacity = map(float, re.search(r"rgba\(([^)]*)\)", style)[1].split(","))
    behind = [opacity * shade + (1 - opacity) * paper for shade, paper in zip(colour, page, strict=True)]
    light, dark = sorted((luminance(ink), luminance(behind)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_text_tables_are_aligned():
    lines = text_table(["tag", ">n"], [["NOUN", 5], ["X\n", 12345]]).splitlines()
    assert lines == ["tag        n", "NOUN       5", "X\\n   12,345"]
