"""Addresses of the pages, and of the same places in a report."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode


class Links:
    """Addresses of a lake's pages in the server.

    Parameters
    ----------
    lake
        Its name in addresses.
    kept
        Choices that go from page to page where a page does not say otherwise, such as the site and the label.
    """

    def __init__(self, lake: str, kept: Mapping[str, Any] | None = None):
        self._base = f"/{quote(lake, safe='')}/"
        self._kept = dict(kept or {})

    def to(self, page: str = "", **query: Any) -> str | None:
        """Return the address of a page."""
        # 0 is a layer, a neuron and a sentence
        chosen = {name: value for name, value in {**self._kept, **query}.items() if value is not None and value != ""}
        return self._base + page + (f"?{urlencode(chosen)}" if chosen else "")

    def neuron(self, name: str, **query: Any) -> str | None:
        """Return the address of a neuron's page."""
        return self.to("neuron", neuron=name, **query)

    def tag(self, tag: str, **query: Any) -> str | None:
        """Return the address of a tag's page."""
        return self.to("tag", tag=tag, **query)

    def sentence(self, sentence: int, **query: Any) -> str | None:
        """Return the address of a sentence's page."""
        return self.to("sentence", sentence=sentence, **query)
