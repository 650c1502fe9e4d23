"""Tables and marked text as HTML, for notebooks and pages: whatever a corpus holds is shown as text, never run."""

import html
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Okabe & Ito's blue and vermilion as red, green, blue: told apart with every kind of colour vision.
_ABOVE, _BELOW = "0, 114, 178", "213, 94, 0"
_DEEPEST = 0.35  # opacity: text keeps a contrast of 4.5 on white and on black pages
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # turn what follows around
_HIDDEN = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of surrogate pairs, line and paragraph separators
# Colours are the page's own: dark and light themes stay readable.
_STYLE = (
    "<style>div.neuronlake table{border-collapse:collapse;margin:.4em 0;font-variant-numeric:tabular-nums}"
    "div.neuronlake caption{caption-side:top;text-align:left;font-weight:600;padding:.2em 0;color:inherit}"
    "div.neuronlake th,div.neuronlake td{text-align:left;vertical-align:top;padding:.15em .7em .15em 0;color:inherit;"
    "border:0;border-bottom:1px solid rgba(128,128,128,.4);max-width:46em;overflow-wrap:break-word}"
    "div.neuronlake th{font-weight:600}div.neuronlake .n{text-align:right;white-space:nowrap}"
    "div.neuronlake summary{cursor:pointer}</style>"
)


class Markup(str):
    """HTML that is complete: it is not escaped again."""

    __slots__ = ()


def visible(text: object) -> str:
    """Return text in which nothing hides or turns around: control characters are written as Python escapes.

    Letters of every script, and the joiners that some need between them, stay as they are.
    """
    return "".join(_escape(c) if c in _OVERRIDES or unicodedata.category(c) in _HIDDEN else c for c in str(text))


def escaped(text: object) -> Markup:
    """Return any text as HTML that shows it, in element content and in quoted attributes."""
    return Markup(html.escape(visible(text), quote=True))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text: whole ones with separators, others with some significant digits, none as a dash."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return str(value).replace("-", "−")
    text = "0" if value == 0 else f"{value:#.{digits}g}".removesuffix(".") if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


def size(count: float) -> str:
    """Format bytes in decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """Return a table whose first column names its rows.

    Parameters
    ----------
    caption
        What the table is of, for those who do not see it too.
    columns
        Names; a column whose name starts with ``>`` is right-aligned.
    rows
        Cells: `Markup` as it is, numbers as `number` has them, anything else as text.
    """
    kinds = [' class="n"' if column.startswith(">") else "" for column in columns]
    head = "".join(
        f'<th scope="col"{kind}>{escaped(column.removeprefix(">"))}</th>'
        for kind, column in zip(kinds, columns, strict=True)
    )
    lines = []
    for row in rows:
        first, *others = (f"{kind}>{cell(value)}" for kind, value in zip(kinds, row, strict=True))
        lines.append(f'<tr><th scope="row"{first}</th>' + "".join(f"<td{other}</td>" for other in others) + "</tr>")
    return Markup(
        f"<table><caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def facts(caption: str, lines: Mapping[str, Any]) -> Markup:
    """Return a table of names and what they are."""
    body = "".join(f'<tr><th scope="row">{escaped(name)}</th><td>{cell(value)}</td></tr>' for name, value in lines.items())
    return Markup(f"<table><caption>{escaped(caption)}</caption><tbody>{body}</tbody></table>")


def cell(value: Any) -> Markup:
    """Return the content of a cell; text is kept apart from the writing direction around it."""
    if isinstance(value, Markup):
        return value
    if _is_number(value):
        return escaped(number(value))
    return Markup(f"<bdi>{escaped(value)}</bdi>")


def marked(before: str, token: str, after: str, strength: float = 0.0) -> Markup:
    """Return a token in its context: bold and underlined, and shaded by its strength.

    Parameters
    ----------
    strength
        In [−1, 1]: blue above 0, orange below. The number itself belongs beside it.
    """
    opacity = min(abs(strength), 1.0) * _DEEPEST if math.isfinite(strength) else 0.0
    shade = f"rgba({_BELOW if strength < 0 else _ABOVE}, {opacity:.3f})"
    style = f"background:{shade};color:inherit;font-weight:700;text-decoration:underline"
    return Markup(f'<bdi>{escaped(before)}<mark style="{style}">{escaped(token)}</mark>{escaped(after)}</bdi>')


def folded(summary: str, *parts: str) -> Markup:
    """Return parts that are shown when their summary is chosen."""
    return Markup(f"<details><summary>{escaped(summary)}</summary>{''.join(parts)}</details>")


def notebook(*parts: str) -> str:
    """Return parts as one output of a notebook, with their style."""
    # Jupyter would set what stands between two dollar signs as a formula, prices in a sentence too
    return f'<div class="neuronlake tex2jax_ignore mathjax_ignore">{_STYLE}{"".join(parts)}</div>'


def text_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as lines of plain text, in aligned columns.

    Parameters
    ----------
    columns
        As for `table`.
    """
    names = [column.removeprefix(">") for column in columns]
    shown = [[_plain(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
    lines = []
    for cells in [names, *shown]:
        padded = (
            text.rjust(width) if column.startswith(">") else text.ljust(width)
            for text, width, column in zip(cells, widths, columns, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return number(value) if _is_number(value) else visible(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _escape(character: str) -> str:
    return repr(character)[1:-1] if ord(character) < 128 else character.encode("ascii", "backslashreplace").decode()
