"""Data to HTML. Every template escapes what it is given; a name that a template misspells is an error."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
STATIC = HERE / "static"


def render(template: str, **data: Any) -> str:
    """Fill a template of the folder ``templates``."""
    return _environment().get_template(template).render(**data)


def number(value: float | None, digits: int = 3) -> str:
    """Format a statistic, with a real minus; an absent one is a dash."""
    if value is None or math.isnan(value):
        return "–"
    return (f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3g}").replace("-", "−")


def p_value(value: float | None) -> str:
    """Format a p or q value; what underflows is said to be small, not zero."""
    if value is None:
        return "–"
    return "<1e−300" if value < 1e-300 else f"{value:.1e}".replace("-", "−")


def count(value: int) -> str:
    """Format a count."""
    return f"{value:,}"


def visible(text: str) -> str:
    """Show a token by itself: spaces at its ends and control characters can be seen."""
    return "".join(
        "␣" if character == " " else character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "p_value": p_value, "count": count, "visible": visible}
    return environment
