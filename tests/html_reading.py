"""Read HTML as a browser does, far enough to compare tables with data and to see what would run."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

ALLOWED = {"div", "style", "table", "caption", "thead", "tbody", "tr", "th", "td", "bdi", "mark", "details", "summary", "p"}
ATTRIBUTES = {"class", "scope", "style"}


@dataclass
class Table:
    """Text of a table."""

    caption: str = ""
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


class Reader(HTMLParser):
    """Tables of a page, in order, and its marked texts with their styles."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tables: list[Table] = []
        self.marks: list[tuple[str, str]] = []
        self.text = ""
        self.styles = 0
        self._open: list[str] = []
        self._scopes: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        assert tag in ALLOWED, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES, attrs
        self._open.append(tag)
        values = dict(attrs)
        if tag == "table":
            self.tables.append(Table())
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("th", "td"):
            if tag == "th":
                assert values["scope"] == ("col" if "thead" in self._open else "row")
            self.tables[-1].rows[-1].append("")
        elif tag == "mark":
            self.marks.append(("", values["style"]))
        elif tag == "style":
            self.styles += 1

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "thead":
            self.tables[-1].head = self.tables[-1].rows.pop()

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self.tables[-1].caption += data
        elif "th" in self._open or "td" in self._open:
            self.tables[-1].rows[-1][-1] += data
        if "mark" in self._open:
            text, style = self.marks[-1]
            self.marks[-1] = (text + data, style)

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</td></tr></table><h1>gone",
    "&lt;b&gt; &amp;amp; &#60;i&#62;",
    "<!-- comment",
    "]]><![CDATA[x",
    "<style>*{display:none}</style>",
    "</style><script>1</script>",
    "<a href=javascript:alert(1)>x</a>",
    "<svg/onload=alert(1)>",
    "{{7*7}} ${7*7} `1`",
    "$x_1$ costs $5",
    "größer–č",
    "名詞",
    "नमस्ते می‌خواهم",
    "🏳️‍🌈",
]
