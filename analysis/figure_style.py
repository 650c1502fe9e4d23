"""How every picture looks and is saved: one style, text taken literally, the same bytes every time."""

import io
import tempfile
import textwrap
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError, StorageError
from neuronlake.store.layout import DEFAULT_SITE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
# Okabe & Ito's colours are told apart with every kind of colour vision; shape, hatching or position says the same again.
HIGHER, LOWER, NEUTRAL, INK = "#0072B2", "#D55E00", "#9A9A9A", "#262626"
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
CLASS_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "|||")
COLOURS = "cividis"  # reads the same with every kind of colour vision, and in grey
_TITLE, _SUBTITLE, _NOTE = 11.0, 8.5, 8.0  # points
_LINE = 1.3  # line height, in font sizes
_MARGIN_INCHES = 0.12
_UNUSUAL = 1000  # times the median; effects of real neurons stay far below, those of constant ones far above
_STYLE: Mapping[str, Any] = {
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 9,
    "hatch.linewidth": 0.7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # whole glyphs, so that text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "neuronlake",
    "text.color": INK,
    "text.parse_math": False,  # a tag such as PRP$ is not a formula
    "xtick.color": INK,
    "xtick.labelsize": 8,
    "ytick.color": INK,
    "ytick.labelsize": 8,
}
# DejaVu Sans comes with matplotlib; the others draw what it lacks, where they are installed.
_FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari", "Arial Unicode MS")
_SUBWORDS = {"last": "last token of each word", "first": "first token of each word", "all": "all tokens of each word"}
_settings = threading.RLock()


def check_path(path: str | Path) -> Path:
    """Return the path of a picture.

    Raises
    ------
    InputError
        When its suffix is none of `SUFFIXES`, or its folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot draw to {path.name!r}: known suffixes are {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"no folder {path.parent} to draw {path.name} in: create it first")
    return path


def figure_bytes(draw: Callable[[Path], object], file_type: str = "svg") -> bytes:
    """Return a picture as the bytes of its file, for a server or a notebook.

    Parameters
    ----------
    draw
        Draws to the path it is given.
    file_type
        ``png``, ``svg`` or ``pdf``.

    Raises
    ------
    InputError
        When the type is another, or `draw` raises it.
    StorageError
        When the folder for temporary files cannot be written.

    Examples
    --------
    >>> figure_bytes(lambda path: volcano(dataset, path, "NOUN"), "svg")  # doctest: +SKIP
    """
    suffix = f".{file_type.lower()}"
    if suffix not in SUFFIXES:
        raise InputError(f"unknown type {file_type!r} of a picture: known are {', '.join(known[1:] for known in SUFFIXES)}")
    # every figure draws to a path, and is a file of some 100 kB: a folder of its own spares them all a second way out
    try:
        folder = tempfile.TemporaryDirectory(prefix="neuronlake-")
    except OSError as error:
        raise StorageError(f"no folder for temporary files to draw in: {error.strerror or error}") from error
    with folder as name:
        path = Path(name) / f"picture{suffix}"
        draw(path)
        return path.read_bytes()


@contextmanager
def picture(
    path: Path, *, width: float, height: float, title: str, subtitle: str, notes: Sequence[str] = ()
) -> Iterator["Figure"]:
    """Give a figure to draw on, with its title above and notes below, and save it at the end.

    Parameters
    ----------
    path
        Of `check_path`.
    width, height
        Inches left for what is drawn; title and notes come on top.
    title, subtitle
        What is shown, and of which tokens.
    notes
        Remarks under the picture, one paragraph each.

    Raises
    ------
    StorageError
        When the file cannot be written. No half-written picture is left.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    room = width - 2 * _MARGIN_INCHES
    above = [(line, _TITLE, "bold") for line in wrap(title, _TITLE * 1.1, room)]
    above += [(line, _SUBTITLE, "normal") for line in wrap(subtitle, _SUBTITLE, room)]
    below = [line for note in notes for line in wrap(note, _NOTE, room)]
    head = sum(points for _, points, _ in above) * _LINE / 72 + 1.6 * _MARGIN_INCHES
    foot = len(below) * _NOTE * _LINE / 72 + (_MARGIN_INCHES if below else 0)
    total = head + height + foot
    # Settings are global to matplotlib: one picture at a time, from its defaults, whatever the user's own settings are.
    with _settings, style.context(["default", {**_STYLE, "font.family": [*_families(), "sans-serif"]}]):
        figure = Figure(figsize=(width, total), layout="constrained")
        FigureCanvasAgg(figure)
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, foot / total, 1, height / total))
        left, down = _MARGIN_INCHES / width, total - _MARGIN_INCHES
        for line, points, weight in above:
            figure.text(left, down / total, line, size=points, weight=weight, va="top").set_in_layout(False)
            down -= points * _LINE / 72
        down = foot
        for line in below:
            figure.text(left, down / total, line, size=_NOTE, va="top", color="#555555").set_in_layout(False)
            down -= _NOTE * _LINE / 72
        yield figure
        _save(figure, path, title)


def _save(figure: "Figure", path: Path, title: str) -> None:
    suffix = path.suffix.lower()
    # No date and no random identifiers: the same statistics give the same file.
    metadata = {"Title": title, **{".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})}
    # The layout solver keeps its variables by address, and what it finds differs in the last bits from run to run.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(side, 9) for side in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))
    drawn = io.BytesIO()
    figure.savefig(drawn, format=suffix[1:], metadata=metadata)
    try:
        path.write_bytes(drawn.getbuffer())
    except OSError as error:
        raise StorageError(f"cannot write the picture {path}: {error.strerror or error}") from error


def plain(text: object, width: int = 28) -> str:
    """Return a label's text in one line of at most `width` characters, the middle left out if it is longer.

    Control characters and those that no installed font has are written as Python escapes.
    """
    known = _characters()
    shown = "".join(c if c.isprintable() and ord(c) in known else _escape(c) for c in str(text)) or "(empty)"
    if len(shown) <= width:
        return shown
    tail = (width - 1) // 2
    return f"{shown[: width - 1 - tail]}…{shown[len(shown) - tail :]}"


def describe(attributes: Mapping[Hashable, Any], tokens: int) -> str:
    """Say in one line which label, which tokens and how many a picture is of."""
    parts = [f"label {plain(attributes.get('by', 'tag'), 100)}", f"{tokens:,} labelled tokens"]
    if (site := attributes.get("site", DEFAULT_SITE)) != DEFAULT_SITE:  # room is short, and MLPs need not be said
        parts.append(f"site {plain(site)}")
    if (subword := attributes.get("subword")) is not None:
        parts.append(_SUBWORDS.get(str(subword), str(subword)))
    if shift := int(attributes.get("shift") or 0):
        parts.append(f"label of the word {abs(shift)} {'later' if shift > 0 else 'earlier'}")
    if where := attributes.get("where"):
        parts.append(f"where {plain(where, 120)}")
    return " · ".join(parts)


def text_inches(texts: Sequence[str], points: float) -> float:
    """Inches that the longest of the texts takes, about."""
    return max(map(len, texts), default=0) * 0.6 * points / 72


def legend_columns(labels: Sequence[str], inches: float) -> int:
    """Return in how many columns a legend above axes of that width fits, about."""
    return max(1, min(len(labels), int((inches - 0.5) / (text_inches(labels, 8.5) + 0.45))))


def wrap(text: str, points: float, inches: float) -> list[str]:
    """Return the text in lines of at most that many inches, about; empty text has no line."""
    return textwrap.wrap(text, max(20, int(inches / (0.56 * points / 72))))


def robust_limit(values: NDArray[np.float64]) -> float:
    """Return the largest value, or a smaller one if few values are so large that all others would look alike.

    Neurons that are constant within a tag have standardised differences of millions (see `contrast.positive_variances`).
    """
    others = values[values > 0]
    usual = values[values <= _UNUSUAL * np.median(others)] if others.size else values
    return float(usual.max())


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else repr(character)[1:-1]


@lru_cache(maxsize=1)
def _families() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed)


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """Return the code points that some font can draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(
        code for name in _families() for code in get_font(findfont(FontProperties(family=[name]))).get_charmap()
    )
