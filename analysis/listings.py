"""Answers that show themselves: lists and dictionaries as ever, which a notebook draws as tables."""

from abc import abstractmethod
from typing import Any, ClassVar, Self, SupportsIndex, overload

from neuronlake.store.markup import Markup, escaped, facts, folded, marked, notebook, number, table, text_table, visible

_MOST_LINES = 60
_AROUND, _AROUND_PRINTED = 120, 40  # characters of context on either side of a token
_MOST_PRINTED = 20
_FURTHER = ("p", "q", "mean", "mean_rest", "count")
_PROFILE = 8  # tags shown of a neuron's profile
_LISTS = ("top", "bottom", "top_per_document", "bottom_per_document")
Entry = dict[str, Any]


class Records(list[Entry]):
    """A list of dictionaries that a notebook shows as a table; in everything else it is a list."""

    needs: ClassVar[frozenset[str]]
    """Keys without which an entry cannot be shown: with one that lacks them, it looks like any list."""

    @overload
    def __getitem__(self, place: SupportsIndex) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: Any) -> Any:
        kind: Any = type(self)  # the first ones are still a table
        return kind(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)

    @abstractmethod
    def caption(self) -> str:
        """What the table is of."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the table's columns; that of a right-aligned one starts with ``>``."""

    @abstractmethod
    def rows(self, *, html: bool) -> list[list[Any]]:
        """Cells of every entry."""

    def as_html(self, caption: str | None = None) -> Markup:
        """Return the table, without a notebook's frame."""
        if not self:
            return Markup(f"<p>{escaped(caption or 'an empty list')}: none</p>")
        shown = table(caption or self.caption(), self.columns(), self[:_MOST_LINES].rows(html=True))
        return Markup(f"{shown}<p>… and {more:,} more</p>") if (more := len(self) - _MOST_LINES) > 0 else shown

    def _repr_html_(self) -> str | None:
        return notebook(self.as_html()) if self._whole() else None

    def __repr__(self) -> str:
        if not self or not self._whole():
            return super().__repr__()
        lines = text_table(self.columns(), self[:_MOST_PRINTED].rows(html=False))
        return f"{lines}\n… and {more:,} more" if (more := len(self) - _MOST_PRINTED) > 0 else lines

    def _whole(self) -> bool:
        return all(isinstance(entry, dict) and self.needs <= entry.keys() for entry in self)


class Ranking(Records):
    """The strongest neurons of every tag, see `rank`."""

    needs = frozenset(("tag", "rank", "name", "score", "sign"))

    def caption(self) -> str:
        """How many neurons of how many tags, and by which method."""
        tags = len({entry["tag"] for entry in self})
        return f"{_count(len(self), 'neuron')} of {_count(tags, 'tag')}, by {self._method()}"

    def columns(self) -> list[str]:
        """Tag and neuron, how strong and in which direction, p and q where defined."""
        return ["tag", ">rank", "neuron", f">{self._method()}", "tag's tokens", *(f">{name}" for name in self._further())]

    def rows(self, *, html: bool) -> list[list[Any]]:  # noqa: ARG002 - the same either way
        """Cells of every neuron."""
        method, further = self._method(), self._further()
        direction = {1: "▲ higher", -1: "▼ lower"}
        return [
            [
                *(entry["tag"], entry["rank"], entry["name"], entry.get(method), direction.get(entry["sign"], "–")),
                *(_small(entry.get(name)) if name in ("p", "q") else entry.get(name) for name in further),
            ]
            for entry in self
        ]

    def _method(self) -> str:
        # its statistic has its name, and stands after the sign
        names = list(self[0])
        return next((name for name in names[names.index("sign") + 1 :] if name not in _FURTHER), "score")

    def _further(self) -> list[str]:
        return [name for name in _FURTHER if name in self[0]]


class TokenList(Records):
    """Tokens with their values, in context: see `top_tokens`."""

    needs = frozenset(("rank", "token", "start", "context", "sentence"))

    def caption(self) -> str:
        """How many tokens."""
        return f"{_count(len(self), 'token')} in context"

    def columns(self) -> list[str]:
        """Value, labels and context."""
        return [">rank", f">{self._value()}", *self[0].get("labels", {}), ">sentence", "token in context"]

    def rows(self, *, html: bool) -> list[list[Any]]:
        """Cells of every token; its shade is its value, as a share of the largest magnitude among them."""
        name, labels = self._value(), list(self[0].get("labels", {}))
        values = [float(entry.get(name) or 0.0) for entry in self]
        largest = max(map(abs, values)) or 1.0
        rows = []
        for entry, value in zip(self, values, strict=True):
            before, token, after = _context(entry, _AROUND if html else _AROUND_PRINTED)
            context = marked(before, token, after, value / largest) if html else f"{before}«{token}»{after}"
            tags = (entry.get("labels", {}).get(label) or "–" for label in labels)
            rows.append([entry["rank"], entry.get(name), *tags, entry["sentence"], context])
        return rows

    def _value(self) -> str:
        return "value" if "value" in self[0] else "similarity"


class NeuronDescription(dict[str, Any]):
    """Everything about one neuron, see `describe_neuron`: a dictionary that a notebook shows as tables."""

    def _repr_html_(self) -> str | None:
        if not self._whole():
            return None
        parts = [facts(f"neuron {self['name']}", self._facts())]
        if self["tags"] is not None:
            parts.append(self._profile())
        for end, name in (("top", "highest"), ("bottom", "lowest")):
            parts.append(TokenList(self[end]).as_html(f"{name} tokens"))
            parts.append(
                folded(
                    f"{name} tokens, one per document",
                    TokenList(self[f"{end}_per_document"]).as_html(f"{name} tokens, at most one of a document"),
                )
            )
        if (weights := self["weights"]) is not None:
            words = [
                [repr(up["token"]), up["cosine"], repr(down["token"]), down["cosine"]]  # spaces are part of a token
                for up, down in zip(weights["vocabulary"]["top"], weights["vocabulary"]["bottom"], strict=True)
            ]
            columns = ["raises when positive", ">cosine", "lowers when positive", ">cosine"]
            parts.append(table("what it writes: vocabulary", columns, words))
        return notebook(*parts)

    def __repr__(self) -> str:
        if not self._whole():
            return super().__repr__()
        lines = [visible(f"{name}: {value}") for name, value in self._facts().items()]
        return "\n".join([f"<NeuronDescription {self['name']}>", *lines, f"keys: {', '.join(self)}"])

    def _whole(self) -> bool:
        return self.keys() >= {"name", "site", "model", "moments", "strongest_tag", "tags", "weights", *_LISTS}

    def _facts(self) -> dict[str, str]:
        moments = self["moments"]
        lines = {"at": f"{self['site']} of {self['model'] or 'a lake in memory'}"}
        if (strongest := self["strongest_tag"]) is not None:
            lines["strongest tag"] = f"{strongest['sentence']}, {strongest['count']:,} tokens"
        shares = moments["quantiles"]
        ends = [("smallest", moments["minimum"]), *((f"{float(share):.0%}", x) for share, x in shares.items())]
        lines |= {
            "tokens": f"{moments['count']:,} ({moments['tokens']})",
            "mean ± deviation": f"{number(moments['mean'])} ± {number(moments['standard_deviation'])}",
            "shape": f"skewness {number(moments['skewness'])}, excess kurtosis {number(moments['excess_kurtosis'])}",
            "above 0": f"{moments['fraction_active']:.1%}; exactly 0: {moments['fraction_zero']:.1%}",
            "quantiles": ", ".join(f"{name} {number(x)}" for name, x in [*ends, ("largest", moments["maximum"])]),
        }
        return lines

    def _profile(self) -> Markup:
        tags = self["tags"]
        rows = [
            [entry["tag"], entry["count"], entry["mean"], f"{entry['fraction_active']:.1%}", entry["auroc"],
             entry["cohen_d"]]
            for entry in tags["profile"]
        ]  # fmt: skip
        columns = [tags["by"], ">tokens", ">mean", ">above 0", ">AUROC", ">Cohen d"]
        shown = table(f"tags, {tags['labelled']:,} labelled tokens", columns, rows[:_PROFILE])
        if not (rest := rows[_PROFILE:]):
            return shown
        return Markup(shown + folded(f"{_count(len(rest), 'tag')} more", table("the other tags", columns, rest)))


def _context(entry: Entry, around: int) -> tuple[str, str, str]:
    """Return what stands before a token, the token and what stands after it, cropped."""
    context: str = entry["context"]
    if entry["start"] is None:
        return "", "(special token)", f" {_start_of(context, around)}"
    start, token = entry["start"], entry["token"]
    before, after = context[:start], context[start + len(token) + 2 :]
    if len(before) > around:
        before = f"…{before[-around:]}"
    return before, token, _start_of(after, around)


def _start_of(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _small(p: float | None) -> str | float | None:
    """Say of a p or q value that underflows that it is small, not that it is zero."""
    return "<1e−300" if p is not None and p < 1e-300 else p
