"""Labels and filters in SQL: against plain Python over the token table, and what must be refused."""

import re
from collections import Counter
from dataclasses import dataclass

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lakes import synthetic_lake
from memory_lake import PADDING, MemoryLake

from neuronlake.analysis import sql, token_labels
from neuronlake.store import open_lake, write_lake
from neuronlake.store.errors import InputError


def as_tags(labels):
    return [None if code < 0 else labels.tags[code] for code in labels.codes]


def token_rows(lake):
    labels = [label for label in lake.label_columns if label != "source" or not isinstance(lake, MemoryLake)]
    return lake.tokens(labels=labels).to_pylist()  # a lake in memory names the column only


def counted(row, subword):
    return row["word"] >= 0 and {"all": True, "first": row["subword"] == 0, "last": row["is_last_subword"]}[subword]


def expected_labels(lake, *, label, true=lambda row: True, subword="last", shift=0, rows=None):
    """One label or None per row, by loops over the token table; `label` and `true` take a row."""
    rows = token_rows(lake) if rows is None else rows
    last = {row["word"]: row for row in rows if row["word"] >= 0}
    found = []
    for row in rows:
        target = row if shift == 0 else last.get(row["word"] + shift) if row["word"] >= 0 else None
        same = target is not None and target["sentence"] == row["sentence"]
        found.append(label(target) if same and counted(row, subword) and true(row) is True else None)
    return found


@dataclass(frozen=True)
class Derived:
    """An expression and the same in Python."""

    id: str
    text: str
    value: object


DERIVED = [
    Derived("case", "CASE WHEN form='w1' THEN 'one' ELSE 'no' END", lambda row: "one" if row["form"] == "w1" else "no"),
    Derived("null", "CASE WHEN form LIKE 'w1%' THEN upos END", lambda row: row["upos"] if row["form"][:2] == "w1" else None),
    Derived("sentence", "split_part(document_name, 'd', 2)", lambda row: row["document_name"][1:]),
    Derived("number", "char_end % 3", lambda row: str(row["char_end"] % 3)),
    Derived("float", "char_end * CAST(0.5 AS DOUBLE)", lambda row: str(row["char_end"] * 0.5)),
    Derived("truth", "subword = 0", lambda row: str(row["subword"] == 0).lower()),
    Derived("comment", "upos -- the whole of it)", lambda row: row["upos"]),
    Derived("lines", "\n upos ||\n '!' ", lambda row: row["upos"] and row["upos"] + "!"),
    Derived("case of names", "UPOS || \"Upos\"", lambda row: row["upos"] and row["upos"] * 2),
    Derived("not ASCII", "'×é是' || upos", lambda row: row["upos"] and "×é是" + row["upos"]),
]  # fmt: skip


@pytest.mark.parametrize(("subword", "shift"), [("last", 0), ("all", 0), ("all", 1), ("first", -2)])
@pytest.mark.parametrize("case", DERIVED, ids=lambda case: case.id)
def test_derived_labels(case, subword, shift):
    lake = MemoryLake()
    labels = token_labels(lake, case.text, subword=subword, shift=shift, min_tokens=1)
    assert as_tags(labels) == expected_labels(lake, label=case.value, subword=subword, shift=shift)
    assert labels.by == case.text
    assert labels.where is None


@pytest.mark.parametrize("shift", [0, 1])
def test_the_filter_speaks_of_the_token_itself(shift):
    lake = MemoryLake()
    labels = token_labels(lake, "upos", where="upos='NOUN' AND char_start > 5", shift=shift, subword="all")
    assert as_tags(labels) == expected_labels(
        lake,
        label=lambda row: row["upos"],
        true=lambda row: row["upos"] == "NOUN" and row["char_start"] > 5,
        subword="all",
        shift=shift,
    )
    assert labels.where == "upos='NOUN' AND char_start > 5"


def test_windows_see_all_tokens_but_padding():
    lake = MemoryLake()
    rows = token_rows(lake)
    assert any(row["flags"] & PADDING for row in rows)
    of_form = Counter(row["form"] for row in rows)
    labels = token_labels(lake, "upos", where="count(*) OVER (PARTITION BY form) > 12")
    assert as_tags(labels) == expected_labels(
        lake, label=lambda row: row["upos"], true=lambda row: of_form[row["form"]] > 12
    )
    everything = sum(not row["flags"] & PADDING for row in rows)
    assert token_labels(lake, "count(*) OVER ()").tags == (str(everything),)


def test_a_lake_on_disk(tmp_path):
    synthetic_lake(tmp_path / "a.lake", tokens=300)
    lake = open_lake(tmp_path / "a.lake")
    for shift in (0, 1, -1):
        labels = token_labels(lake, "upos || source", where="upos <> 'ADJ' AND document_name = 'd1'", shift=shift)
        assert as_tags(labels) == expected_labels(
            lake,
            label=lambda row: row["upos"] + row["source"],
            true=lambda row: row["upos"] != "ADJ" and row["document_name"] == "d1",
            shift=shift,
        )


# ---- random predicates ---------------------------------------------------------------------------------------------


def either(left, right):
    return True if left is True or right is True else None if left is None or right is None else False


def negated(value):
    return None if value is None else not value


def lifted(function):
    """SQL's comparisons are null where their operand is."""
    return lambda value: None if value is None else function(value)


def on(column, test):
    return lambda row: test(row[column])


def text_atoms():
    column = st.sampled_from(["upos", "form", "document_name", '"form"', "UPOS"])
    value = st.sampled_from(["NOUN", "VERB", "w3", "w12", "d0", "d1", "it's"])

    def build(column, value, kind):
        name, quoted = column.strip('"').lower(), "'" + value.replace("'", "''") + "'"
        return {
            "equal": (f"{column} = {quoted}", on(name, lifted(lambda found: found == value))),
            "less": (f"{column}<{quoted}", on(name, lifted(lambda found: found < value))),
            "in": (f"{column} IN ({quoted}, 'w7')", on(name, lifted(lambda found: found in (value, "w7")))),
            "prefix": (f"starts_with({column}, 'w1')", on(name, lifted(lambda found: found.startswith("w1")))),
            "null": (f"{column} IS NULL", on(name, lambda found: found is None)),
        }[kind]

    return st.builds(build, column, value, st.sampled_from(["equal", "less", "in", "prefix", "null"]))


def number_atoms():
    def build(column, low, width):
        return f"{column} BETWEEN {low} AND {low + width}", lambda row: low <= row[column] <= low + width

    column = st.sampled_from(["row", "document", "sentence", "word", "subword", "char_end", "flags"])
    return st.builds(build, column, st.integers(-1, 150), st.integers(0, 100))


def combine(inner):
    both = st.builds(
        lambda left, right, word: (
            (f"{left[0]}\nOR {right[0]}", lambda row: either(left[1](row), right[1](row)))
            if word == "OR"
            else (
                f"({left[0]}) AND ({right[0]})",
                lambda row: negated(either(negated(left[1](row)), negated(right[1](row)))),
            )
        ),
        inner,
        inner,
        st.sampled_from(["AND", "OR"]),
    )
    return both | st.builds(lambda part: (f"NOT ({part[0]}) ", lambda row: negated(part[1](row))), inner)


TRUTHS = st.just(("is_last_subword", lambda row: row["is_last_subword"]))
LAKE = MemoryLake(documents=2)
ROWS = token_rows(LAKE)


@settings(max_examples=40, deadline=None)
@given(st.recursive(text_atoms() | number_atoms() | TRUTHS, combine, max_leaves=6))
def test_random_predicates(predicate):
    text, true = predicate
    expected = expected_labels(LAKE, label=lambda row: row["form"], true=true, subword="all", rows=ROWS)
    if all(tag is None for tag in expected):
        with pytest.raises(InputError, match=r"is true of none of the \d+ tokens"):
            token_labels(LAKE, "form", where=text, subword="all", min_tokens=1)
    else:
        assert as_tags(token_labels(LAKE, "form", where=text, subword="all", min_tokens=1)) == expected


# ---- what is read --------------------------------------------------------------------------------------------------


class WatchedLake(MemoryLake):
    """Remembers which labels were loaded."""

    loaded = ()

    def tokens(self, labels=(), blocks=None):
        self.loaded = tuple(labels)
        return super().tokens(labels, blocks)


def test_only_the_columns_used_are_loaded():
    lake = WatchedLake()
    token_labels(lake, "upos", where="position >= 0 AND 'form' <> 'source'")
    assert lake.loaded == ("upos",)
    token_labels(lake, "upper(Document_Name)", where="upos='NOUN' OR document_name='d1'", shift=1)
    assert lake.loaded == ("document_name", "upos")
    token_labels(lake, "upos", where="true", shift=1)
    assert lake.loaded == ()


def test_nothing_is_read_for_what_is_refused():
    lake = WatchedLake()
    for settings_ in ({"where": "nope = 1"}, {"where": "form"}, {"by": "upos ||"}):
        with pytest.raises(InputError):
            token_labels(lake, **{"by": "form", **settings_})
    assert lake.loaded == ()


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory):
    """A lake of 40 rows whose label columns need quotes, or differ by case alone."""
    labels = {
        name: [f"{name}{row % 3}" for row in range(40)] for name in ("Number", "Number[psor]", "a.b", "my-tag", "select")
    }
    labels["number"] = [f"small{row % 2}" for row in range(40)]
    labels["Flags"] = [f"mine{row % 2}" for row in range(40)]
    return write_lake(
        tmp_path_factory.mktemp("odd") / "a.lake", np.ones((40, 3), dtype=np.float32), tokens=labels, name="odd"
    )


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ('"Number[psor]"', "Number[psor]"),
        ("\"a.b\" || ''", "a.b"),
        ('concat("my-tag")', "my-tag"),
        ('("select")', "select"),
        ("concat(Number)", "Number"),
        ('("number")', "number"),
        ("(Flags)", "Flags"),
    ],
)
def test_columns_with_odd_names(odd_names, text, column):
    expected = odd_names.tokens(labels=[column]).column(column).to_pylist()
    assert as_tags(token_labels(odd_names, text)) == expected
    assert sum(tag is not None for tag in expected) == 40


def test_names_that_differ_by_case(odd_names):
    with pytest.raises(InputError, match="'NUMBER' may be any of Number, number: write one as it is spelt"):
        token_labels(odd_names, "concat(NUMBER)")
    with pytest.raises(InputError, match="differ by case alone: use one of them per expression"):
        token_labels(odd_names, "concat(Number, number)")
    labels = token_labels(odd_names, "concat(Number)", where="number = 'small1' AND flags = 0")
    assert as_tags(labels)[:40] == [f"Number{row % 3}" if row % 2 else None for row in range(40)]


# ---- refusals ------------------------------------------------------------------------------------------------------

INJECTIONS = [
    "COPY (SELECT 1) TO 'made.csv'",
    "1=1; COPY (SELECT 1) TO 'made.csv'",
    "true; DROP TABLE x",
    "true;",
    "1; SELECT 2",
    "true) FROM (COPY (SELECT 1) TO 'made.csv'",
    "1) OR (1=1",
    "true) AS value FROM read_csv('secret.csv') --",
    "upos = 'NOUN' /* no end",
    "ATTACH 'made.db'",
    "true; ATTACH 'made.db' AS made",
    "PRAGMA database_list",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "read_csv('secret.csv')",
    "read_text('secret.csv') IS NULL",
    "(SELECT count(*) FROM read_csv('secret.csv')) > 0",
    "(FROM 'secret.csv') IS NULL",
    "upos IN (SELECT column0 FROM 'secret.csv')",
    "EXISTS (SELECT 1 FROM duckdb_settings())",
    "query('SELECT 1')",
    "glob('*')",
    "upos, form",
    "upos = 'NOUN' AS x",
    "x: true",
    "DISTINCT true",
    "ALL true",
    "true FROM x",
    "true WHERE true",
    "true ORDER BY 1",
    "true LIMIT 1",
    "true USING SAMPLE 1",
    "true UNION SELECT false",
    "true WINDOW w AS ()",
    "VALUES (true)",
    "*",
    "COLUMNS('upos') = 'NOUN'",
    "? = upos",
    "$name = upos",
    "#1 = 3",
    '" line" = 3',
    '" tokens" IS NULL',
    "random() < 0.5",
    "nextval('x') > 0",
    "setseed(0.5) IS NULL",
    "now() > '2000-01-01'",
    "Current_Timestamp IS NULL",
    "ago(INTERVAL 1 DAY) IS NULL",
    "current_setting('threads') IS NULL",
    "unnest([true, false])",
    "bool_or(upos = 'NOUN')",
    "bool_or(upos = 'NOUN') AND form = 'w1'",
    "",
    " \n",
    "-- nothing",
    "upos = '\0'",
    "upos = '\ud800'",
]


@pytest.mark.parametrize(
    ("argument", "text"), [*(("where", text) for text in INJECTIONS), *(("by", text) for text in INJECTIONS[::4])]
)
def test_only_one_harmless_expression(tmp_path, monkeypatch, text, argument):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.csv").write_text("NOUN\nVERB\n")
    with pytest.raises(InputError) as caught:
        token_labels(MemoryLake(documents=1), **{"by": "upos", argument: text})
    assert "secret.csv" not in str(caught.value).replace(text, "")
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert (tmp_path / "secret.csv").read_text() == "NOUN\nVERB\n"


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO 'made.csv'",
        "ATTACH 'made.db'",
        "SELECT * FROM read_csv('secret.csv')",
        "SELECT * FROM 'secret.csv'",
        "SELECT * FROM glob('*')",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET autoload_known_extensions = true",
        "SELECT * FROM local",
    ],
)
def test_the_database_reaches_nothing_even_if_a_statement_got_through(tmp_path, monkeypatch, statement):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.csv").write_text("NOUN\nVERB\n")
    local = MemoryLake(documents=1).tokens()
    assert local.num_rows  # a variable that DuckDB could find by its name
    with sql._connection() as connection:
        assert connection.execute("SELECT current_setting('temp_directory')").fetchall() == [("",)]
    with sql._connection() as connection, pytest.raises(duckdb.Error):
        connection.execute(statement).fetchall()
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


@dataclass(frozen=True)
class Place:
    """A wrong expression, the line it is shown on and the text that the caret stands under."""

    id: str
    text: str
    under: str
    message: str
    line: int = 0


PLACES = [
    Place("column", "upos = 'A' AND nubmer = 'B'", "nubmer", r"no column 'nubmer': known are upos, form, source, .*, flags"),
    Place("nearest", "uppos = 'A'", "uppos", r"\(did you mean 'upos'\?\)"),
    Place("first", "nope", "nope", "no column 'nope'"),
    Place("double quotes", 'upos = "VERB"', '"VERB"', "no column 'VERB': .*; text stands in single quotes"),
    Place("table", "upos = tokens.form", "tokens.form", "no column 'tokens.form'"),
    Place("not ASCII", "form = 'é是' OR nope", "nope", "no column 'nope'"),
    Place("second line", "upos = 'é'\n\tAND nope = 1\nAND true", "nope", "no column 'nope'", line=1),
    Place("function", "upos = foo(form)", "foo", "foo does not exist"),
    Place("parenthesis", "upos = 'A') OR (true", ") OR", "syntax error"),
    Place("string", "upos = 'A", "'A", "unterminated"),
    Place("value", "document >= 0 AND CAST(upos AS INT) > 3", "CAST", r"Could not convert string '\w+' to INT32"),
    Place("literal", "row = 'abc'", "'abc'", "Could not convert string 'abc' to INT64"),
    Place("subquery", "true AND (SELECT true)", "(SELECT", "a subquery cannot be used here"),
    Place("random", "true AND random() < 1", "random", "random may answer differently each time"),
]


@pytest.mark.parametrize(
    ("argument", "case"),
    [
        *(pytest.param("where", case, id=case.id) for case in PLACES),
        *(pytest.param("by", case, id=f"by-{case.id}") for case in PLACES[::3]),
    ],
)
def test_errors_show_the_place(case, argument):
    text = case.text if case.text != "nope" or argument == "where" else "(nope)"  # a name alone is no SQL for `by`
    with pytest.raises(InputError, match=f"^{argument}: .*{case.message}") as caught:
        token_labels(MemoryLake(documents=2), **{"by": "upos", argument: text})
    reason, line, caret = str(caught.value).split("\n")
    assert line == "  " + text.split("\n")[case.line].replace("\t", " ")
    assert caret == " " * line.index(case.under) + "^"
    assert " line" not in reason
    assert " tokens" not in reason


def test_a_predicate_is_true_or_false():
    for text, kind in (("upos", "VARCHAR"), ("row + 1", "BIGINT"), ("length(form)", "BIGINT")):
        with pytest.raises(InputError, match=f"^where: gives {kind}, expected true or false"):
            token_labels(MemoryLake(), "upos", where=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("upos, form", "by: not one expression; expected one SQL expression over the columns of a token"),
        ("1; SELECT 2", "by: not one expression"),
        ("unnest([upos, form])", "by: gives several values, or none, for one token"),
        ("unnest([upos][2:])", "by: gives several values, or none, for one token"),
        ("max(upos)", r"by: an aggregate has one value for all tokens; say of which, as in count\(\*\) OVER"),
        ("upos FROM x", 'by: syntax error at or near "FROM"'),
    ],
)
def test_one_value_for_every_token(text, message):
    with pytest.raises(InputError, match=message):
        token_labels(MemoryLake(documents=1), text)


def test_null_is_not_true():
    lake = MemoryLake()
    labels = token_labels(lake, "form", where="upos <> 'NOUN'", min_tokens=1)
    assert as_tags(labels) == expected_labels(
        lake, label=lambda row: row["form"], true=lambda row: row["upos"] not in (None, "NOUN")
    )
    assert any(row["upos"] is None and counted(row, "last") for row in token_rows(lake))


def test_a_filter_that_nothing_passes():
    lake = MemoryLake()
    tokens = sum(counted(row, "last") for row in token_rows(lake))
    with pytest.raises(
        InputError, match=re.escape(f"where=\"upos='X'\" is true of none of the {tokens} tokens (subword='last'")
    ):
        token_labels(lake, "upos", where="upos='X'")
    with pytest.raises(InputError, match=r"among the 0 labelled ones \(subword='last', shift=0, where='upos IS NULL'\)"):
        token_labels(lake, "upos", where="upos IS NULL")


def test_rare_derived_tags_are_dropped():
    lake = MemoryLake()
    row = next(row["row"] for row in token_rows(lake) if counted(row, "last"))
    labels = token_labels(lake, f"CASE WHEN row = {row} THEN 'one' ELSE 'rest' END")
    assert labels.tags == ("rest",)
    assert labels.dropped == {"one": 1}
    with pytest.raises(InputError, match=r"no value of 'row \+ 0' has 2 or more tokens"):
        token_labels(lake, "row + 0")
    with pytest.raises(InputError, match="among the 0 labelled ones"):
        token_labels(lake, "nullif(form, form)")


def test_too_many_derived_tags(monkeypatch):
    monkeypatch.setattr("neuronlake.analysis.labels._MAX_TAGS", 5)
    with pytest.raises(InputError, match=r"'document \+ 1' has 6 different values, at most 5 can be compared"):
        token_labels(MemoryLake(), "document + 1")
