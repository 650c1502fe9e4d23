"""SQL expressions over the tokens of a lake, evaluated by DuckDB, which reaches nothing but one table in memory.

The table has one line per committed row that is not padding. Its columns are those of the token table (`TOKEN_COLUMNS`) and
the lake's label columns. An expression is parsed alone first, so that its text can neither leave the parentheses that it is
put into nor add a statement, and bound to an empty table before any token is read.
"""

import json
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronlake.store.errors import InputError
from neuronlake.store.tables import PADDING, PLAN_SCHEMA

if TYPE_CHECKING:
    import duckdb

TOKEN_COLUMNS = tuple(PLAN_SCHEMA.names)

# Names with a leading blank meet no column of a lake.
_TABLE, _LINE = " tokens", " line"
_HEAD, _TAIL = f'SELECT "{_LINE}", (', f'\n) AS value FROM "{_TABLE}"'  # the line break ends a comment of the expression
_CONFINED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "temp_directory": "",
}
_SESSION = (
    "SET errors_as_json = true",
    "SET enable_progress_bar = false",
    "SET lock_configuration = true",
)
_REFUSED = {
    "SUBQUERY": "a subquery",
    "STAR": "* or COLUMNS(…)",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a column by its number",
}
_CLOCKS = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"})
_ONE = "expected one SQL expression over the columns of a token, e.g. upos = 'VERB'"


@dataclass(frozen=True, kw_only=True)
class Expression:
    """An expression that DuckDB has parsed and bound."""

    argument: str
    """``by`` or ``where``, for messages."""
    text: str
    known: tuple[str, ...] = field(repr=False)
    """Columns that there are."""
    columns: tuple[str, ...]
    """Columns that it uses, as the lake spells them."""
    predicate: bool
    """It is true, false or null; else its value is taken as text."""

    def error(self, reason: str, at: int | None = None) -> InputError:
        """Return an error that shows the expression, with a caret under character `at`."""
        shown = self.text.strip("\n").split("\n")
        if at is not None:
            start = self.text.rfind("\n", 0, at) + 1
            shown = [self.text[start:].split("\n")[0], " " * (at - start) + "^"]
        return InputError("\n  ".join([f"{self.argument}: {reason}", *(line.replace("\t", " ") for line in shown)]))


def read_expression(text: str, *, argument: str, label_columns: Sequence[str], predicate: bool = False) -> Expression:
    """Parse and bind an expression without reading a token.

    Parameters
    ----------
    text
        One expression. A column is meant by its exact spelling, or by any other case of it if that is unambiguous.
        Window functions see all tokens; subqueries and functions that answer differently each time are refused.
    argument
        Its name, for messages.
    label_columns
        Columns besides `TOKEN_COLUMNS`; text.
    predicate
        It must be true or false.

    Raises
    ------
    InputError
        When it is no such expression; the message shows the place.
    """
    known = (*label_columns, *(name for name in TOKEN_COLUMNS if name not in label_columns))
    unread = Expression(argument=argument, text=text, known=known, columns=(), predicate=predicate)
    if not text.strip():
        raise InputError(f"{argument} is empty: {_ONE}")
    if "\0" in text or text != text.encode(errors="replace").decode():
        raise InputError(f"{argument} holds characters that no text has: {text!r}")
    with _connection() as connection:
        nodes = list(_nodes(_parse(connection, unread)))
        _check_nodes(unread, nodes)
        expression = replace(unread, columns=_used_columns(unread, nodes))
        kinds = {name: PLAN_SCHEMA.field(name).type for name in TOKEN_COLUMNS if name not in label_columns}
        empty = {name: pa.array([], kinds.get(name, pa.string())) for name in expression.columns}
        connection.register(_TABLE, pa.table({**empty, _LINE: pa.array([], pa.int64())}))
        before = f"DESCRIBE {_HEAD}"
        with _refusals(expression, before):
            kind = connection.execute(f"{before}{text}{_TAIL}").fetchall()[1][1]
        if predicate and kind != "BOOLEAN":
            raise expression.error(f"gives {kind}, expected true or false, as in upos = 'VERB'")
    return expression


def evaluate(expression: Expression, table: Any) -> tuple[NDArray[np.int64], Any]:
    """Evaluate an expression for every row that is not padding.

    Parameters
    ----------
    table : pyarrow.Table
        Token table of a lake with the expression's `columns`.

    Returns
    -------
    rows : int64 (lines,)
        Lines of `table`, in any order.
    values : pyarrow.ChunkedArray of string, or of bool if it is a predicate (lines,)
        Null where the expression is.

    Raises
    ------
    InputError
        When a value cannot be computed, or there is not exactly one per token.
    """
    inside = (table.column("flags").to_numpy() & PADDING) == 0
    lines = np.flatnonzero(inside)
    mask = None if lines.size == inside.size else pa.array(inside)
    columns = {name: table.column(name) if mask is None else table.column(name).filter(mask) for name in expression.columns}
    with _connection() as connection:
        connection.register(_TABLE, pa.table({**columns, _LINE: pa.array(lines)}))
        value = "value" if expression.predicate else "CAST(value AS VARCHAR) AS value"
        before = f'SELECT "{_LINE}", {value} FROM ({_HEAD}'
        with _refusals(expression, before):  # nothing but a value can be refused now
            found = connection.sql(f"{before}{expression.text}{_TAIL})").to_arrow_table()
    rows: NDArray[np.int64] = found.column(_LINE).to_numpy()
    seen = np.zeros(inside.size, dtype=np.bool_)
    seen[rows] = True
    if rows.size != lines.size or np.count_nonzero(seen) != lines.size:
        raise expression.error("gives several values, or none, for one token; expected exactly one (no unnest)")
    return rows, found.column("value")


def unknown_column(name: str, known: Sequence[str], *, what: str = "column") -> str:
    """Say that there is no such column, which ones there are, and which one may be meant."""
    spelt = {column.casefold(): column for column in reversed(known)}
    nearest = get_close_matches(name.casefold(), spelt, n=1)
    meant = f" (did you mean {spelt[nearest[0]]!r}?)" if nearest else ""
    return f"no {what} {name!r}: known are {', '.join(known)}{meant}"


@contextmanager
def _connection() -> "Iterator[duckdb.DuckDBPyConnection]":
    """Open a database in memory that reads and writes no file, loads no extension and keeps these settings."""
    import duckdb

    with duckdb.connect(":memory:", config=dict(_CONFINED)) as connection:
        for setting in _SESSION:
            connection.execute(setting)
        yield connection


@contextmanager
def _refusals(expression: Expression, before: str) -> Iterator[None]:
    """Say what DuckDB refuses of a query as being of the expression, which stands after `before` in it."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        _, brace, record = str(error).partition("{")
        try:
            told = json.loads(brace + record)
        except ValueError:
            told = {"exception_message": str(error)}
        raise _refusal(expression, told["exception_message"], told, before) from None


def _refusal(expression: Expression, message: str, told: dict[str, Any], before: str) -> InputError:
    at = _place(expression.text, told.get("position"), before)
    if told.get("error_subtype") == "COLUMN_NOT_FOUND" and "name" in told:
        reason = unknown_column(told["name"], expression.known)
        if at is not None and expression.text[at : at + 1] == '"':
            reason += "; text stands in single quotes"
    elif f'"{_LINE}"' in message and "GROUP BY" in message:
        reason = "an aggregate has one value for all tokens; say of which, as in count(*) OVER (PARTITION BY form)"
    else:
        reason = textwrap.shorten(message, 300, placeholder=" …")
    return expression.error(reason, at)


def _place(text: str, position: Any, before: str) -> int | None:
    """Character of the expression at a byte of the query, None where that is elsewhere."""
    if position is None:
        return None
    offset, encoded = int(position) - len(before.encode()), text.encode()
    return len(encoded[:offset].decode(errors="ignore")) if 0 <= offset <= len(encoded) else None


def _parse(connection: "duckdb.DuckDBPyConnection", expression: Expression) -> dict[str, Any]:
    """Return the syntax tree of the expression, having made sure that it is one: alone, and in its parentheses."""
    alone = _statement(connection, expression, "SELECT ", "")
    if alone is None or len(alone["select_list"]) != 1:
        raise expression.error(f"not one expression; {_ONE}")
    wrapped = _statement(connection, expression, _HEAD, _TAIL)
    if wrapped is None or len(wrapped["select_list"]) != 2:
        raise expression.error(f"not one expression; {_ONE}")
    tree: dict[str, Any] = wrapped["select_list"][1]
    return tree


def _statement(
    connection: "duckdb.DuckDBPyConnection", expression: Expression, before: str, after: str
) -> dict[str, Any] | None:
    """Parse a query with the expression in it: its node, None where it is not exactly one SELECT."""
    query = before + expression.text + after
    [(serialised,)] = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    tree = json.loads(serialised)
    if tree.get("error"):
        if tree["error_type"] != "parser":  # a statement of another kind
            return None
        raise _refusal(expression, tree["error_message"], tree, before)
    nodes = [statement["node"] for statement in tree["statements"]]
    return nodes[0] if len(nodes) == 1 and "select_list" in nodes[0] else None


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every expression in a syntax tree, outer ones first."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)


def _at(expression: Expression, node: dict[str, Any]) -> int | None:
    return _place(expression.text, node.get("query_location"), _HEAD)


@cache
def _unsteady() -> frozenset[str]:
    """Functions that may answer differently each time, or that do something."""
    query = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    with _connection() as connection:
        found = connection.execute(query).fetchall()
    return frozenset(name for (name,) in found) | {"ago"}  # a macro of the clock


def _check_nodes(expression: Expression, nodes: Sequence[dict[str, Any]]) -> None:
    """Refuse what looks beyond a token, and what gives another answer each time: results are kept."""
    known = {column.lower() for column in expression.known}
    for node in nodes:
        at = _at(expression, node)
        if what := _REFUSED.get(node["class"]):
            raise expression.error(f"{what} cannot be used here; {_ONE}", at)
        name = str(node.get("function_name", "")).lower()
        clock = ".".join(node.get("column_names", ())).lower()
        if name in _unsteady() or (clock in _CLOCKS and clock not in known):
            raise expression.error(f"{name or clock} may answer differently each time, and results are kept", at)


def _used_columns(expression: Expression, nodes: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Columns that the tree names, as the lake spells them; unknown names are left for DuckDB to judge."""
    used: dict[bytes, str] = {}
    for node in nodes:
        if node["class"] != "COLUMN_REF":
            continue
        name, at = ".".join(node["column_names"]), _at(expression, node)
        if len(node["column_names"]) > 1:
            advice = f'; write "{name}"' if name in expression.known else ""
            raise expression.error(unknown_column(name, expression.known) + advice, at)
        # DuckDB's names differ by more than the case of ASCII letters; the lake's may differ by case alone.
        alike = [column for column in expression.known if column.encode().lower() == name.encode().lower()]
        if name.lower() in (_TABLE, _LINE):
            raise expression.error(unknown_column(name, expression.known), at)
        if not alike:
            continue
        if name not in alike and len(alike) > 1:
            raise expression.error(f"{name!r} may be any of {', '.join(alike)}: write one as it is spelt", at)
        chosen = name if name in alike else alike[0]
        other = used.setdefault(chosen.encode().lower(), chosen)
        if other != chosen:
            raise expression.error(f"{chosen!r} and {other!r} differ by case alone: use one of them per expression", at)
    return tuple(used.values())
