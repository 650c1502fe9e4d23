"""A report's blocks as one self-contained HTML page, and as Markdown."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$])")
_STYLE = """
:root { color-scheme: light dark; --ink: #1f1f1f; --soft: #5c5c5c; --line: #d9d9d9; --page: #fff; --band: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a8a8a8; --line: #3d3d3d; --page: #17181a; --band: #202225; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; } .table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
th.left, td.left { text-align: left; }
table.wide { font-size: .78rem; } .wide th, .wide td { padding: .25rem .3rem; }
td.long { white-space: normal; overflow-wrap: anywhere; max-width: 36rem; }
tbody tr:nth-child(even) { background: var(--band); }
figure { margin: 1.5rem 0; } figcaption { color: var(--soft); font-size: .85rem; max-width: 46rem; }
img { max-width: 100%; background: #fff; padding: .5rem; border-radius: 4px; box-sizing: border-box; }
@media print { body { max-width: none; margin: 0; } table, table.wide { font-size: .55rem; } .table { overflow: visible; } }
"""
_WIDE = 12  # columns: with more, a table is set closer, so that the widest of a study fits a screen of 1,024 pixels


@dataclass(frozen=True)
class Heading:
    """A heading."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table; a column whose name starts with ``>`` is right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure."""

    path: str
    """Relative to the report."""
    caption: str


Block = Heading | Text | Points | Grid | Picture


def to_html(blocks: Sequence[Block], images: Mapping[str, bytes]) -> str:
    """Write a page that needs no other file.

    Parameters
    ----------
    images
        PNG files by the pictures' paths.
    """
    title = next((block.text for block in blocks if isinstance(block, Heading)), "report")
    body = "\n".join(_html(block, images) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def to_markdown(blocks: Sequence[Block]) -> str:
    """Write Markdown; pictures are links to their files."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _html(block: Block, images: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Points(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case Picture(path, caption):
            data = base64.b64encode(images[path]).decode()
            text = html.escape(caption, quote=True)
            return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        case Grid(columns, rows):
            kinds = ["" if column.startswith(">") else ' class="left"' for column in columns]
            head = "".join(
                f'<th scope="col"{kind}>{html.escape(column.removeprefix(">"))}</th>'
                for kind, column in zip(kinds, columns, strict=True)
            )
            lines = "".join(
                "<tr>" + "".join(_cell(kind, cell) for kind, cell in zip(kinds, row, strict=True)) + "</tr>\n"
                for row in rows
            )
            # what is still wider than the screen scrolls, by keyboard too
            wide = ' class="wide"' if len(columns) > _WIDE else ""
            start = f'<div class="table" tabindex="0"><table{wide}>'
            return f"{start}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>"


def _cell(kind: str, text: str) -> str:
    wide = ' class="left long"' if kind and len(text) > 60 else kind
    return f"<td{wide}>{html.escape(text)}</td>"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Points(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Picture(path, caption):
            return f"![{_plain(caption)}]({path})"
        case Grid(columns, rows):
            head = [_plain(column.removeprefix(">")) for column in columns]
            rule = ["---:" if column.startswith(">") else "---" for column in columns]
            lines = [head, rule, *([_plain(cell) for cell in row] for row in rows)]
            return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown takes literally, in one line."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")
