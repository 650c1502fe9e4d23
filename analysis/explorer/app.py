"""The server: addresses to pages. Every page says in its address all that decides it, so that an address can be shared."""

import math
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, overload

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from neuronlake.analysis.explorer.compare import compare_lakes, compare_tags
from neuronlake.analysis.explorer.exports import (
    PICTURES,
    TYPES,
    contexts_csv,
    figure,
    heatmap_csv,
    profile_csv,
    ranking_csv,
)
from neuronlake.analysis.explorer.firing import firing
from neuronlake.analysis.explorer.guard import Guard
from neuronlake.analysis.explorer.links import Links
from neuronlake.analysis.explorer.neighbours import like, signatures
from neuronlake.analysis.explorer.neuron import SHOWN as CONTEXTS
from neuronlake.analysis.explorer.neuron import neuron_page, shaded
from neuronlake.analysis.explorer.overview import overview, overview_without
from neuronlake.analysis.explorer.render import STATIC, render
from neuronlake.analysis.explorer.search import search, unanswered
from neuronlake.analysis.explorer.sentence import sentence_page
from neuronlake.analysis.explorer.shelf import DEFAULT_METHOD, GoneError, NotKeptError, Opened, Shelf
from neuronlake.analysis.explorer.tag import SHOWN as NEURONS
from neuronlake.analysis.explorer.tag import tag_page
from neuronlake.analysis.neuron import parse_neuron
from neuronlake.store.errors import InputError, NeuronlakeError, StorageError

_Answer = Callable[["Asked"], Response]


def create_app(shelf: Shelf, hosts: Iterable[str] = ()) -> Guard:
    """Return the application that shows the lakes of a shelf.

    Parameters
    ----------
    hosts
        Names under which it may be addressed beside this machine's own, without ports.
    """
    pages: dict[str, _Answer] = {
        "": _overview,
        "tag": _tag,
        "neuron": _neuron,
        "contexts": _contexts,
        "neighbours": _neighbours,
        "sentence": _sentence,
        "compare": _compare,
        "search": _search,
        "firing": _firing,
        "state": _state,
        "heatmap.csv": _heatmap_csv,
        "tag.csv": _ranking_csv,
        "profile.csv": _profile_csv,
        "contexts.csv": _contexts_csv,
        **{f"{kind}.{file_type}": partial(_picture, kind, file_type) for kind in PICTURES for file_type in TYPES},
    }
    routes = [
        Route("/", partial(_first, shelf)),
        Mount("/static", StaticFiles(directory=STATIC)),
        *(Route(f"/{{lake}}/{page}", partial(_answered, shelf, answer)) for page, answer in pages.items()),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={404: _not_found, 500: _failed}), hosts)


class Asked:
    """A request to a page of a lake: its parameters, checked when they are asked for.

    Raises
    ------
    InputError
        When the lake or the site does not exist.
    GoneError
        When the lake is not there any more.
    """

    def __init__(self, shelf: Shelf, request: Request):
        self._query = request.query_params
        self.shelf = shelf
        self.site = self.text("site")
        self.opened: Opened = shelf.open(request.path_params["lake"], self.site)
        self.by = self.text("by")
        self.links = Links(self.opened.name, {"site": self.site, "by": self.by})

    def text(self, name: str) -> str | None:
        """Return a parameter; None where it is absent or empty."""
        return self._query.get(name, "").replace("\r\n", "\n") or None  # a form sends line breaks so

    def needed(self, name: str, example: str) -> str:
        """Return a parameter that must be there."""
        if (value := self.text(name)) is None:
            raise InputError(f"the address lacks {name}=…, for example {name}={example}")
        return value

    @overload
    def number(self, name: str) -> int | None: ...

    @overload
    def number(self, name: str, default: int) -> int: ...

    def number(self, name: str, default: int | None = None) -> int | None:
        """Return a whole number."""
        if (value := self.text(name)) is None:
            return default
        try:
            return int(value)
        except ValueError:
            raise InputError(f"{name} must be a whole number, got {value!r}") from None

    def magnitude(self, name: str, example: str) -> float:
        """Return a number that must be there, finite and not below zero."""
        value = self.needed(name, example)
        with suppress(ValueError):
            if math.isfinite(found := float(value)) and found >= 0:
                return found
        raise InputError(f"{name} must be a number that is not negative, got {value!r}")

    def numbers(self, name: str) -> list[int]:
        """Return whole numbers that are separated by commas."""
        values = self.needed(name, "1,2,3").split(",")
        try:
            return [int(value) for value in values]
        except ValueError:
            raise InputError(f"{name} must be whole numbers separated by commas, got {','.join(values)!r}") from None

    def names(self, name: str) -> list[str]:
        """Return what is separated by commas."""
        return [part.strip() for part in (self.text(name) or "").split(",") if part.strip()]

    def page(self, template: str, status: int = 200, **data: Any) -> Response:
        """Return a page."""
        common = {"lakes": list(self.shelf.paths), "opened": self.opened, "link": self.links, "state": state_of(self.opened)}
        return HTMLResponse(render(template, **common, **data), status, headers={"cache-control": "no-cache"})


def state_of(opened: Opened) -> str:
    """Return what changes when pages of a lake would: a page that stays open asks for it."""
    return f"{opened.lake.fingerprint[:16]}-{len(opened.lake.blocks)}-{','.join(opened.labels)}"


def _first(shelf: Shelf, _: Request) -> Response:
    names = list(shelf.paths)
    if len(names) == 1:
        return RedirectResponse(str(Links(names[0]).to()))
    return HTMLResponse(
        render("lakes.html", lakes=[(name, Links(name).to(), str(path)) for name, path in shelf.paths.items()])
    )


def _answered(shelf: Shelf, answer: _Answer, request: Request) -> Response:
    """Answer, or say on a page what was wrong with the question or with the lake."""
    try:
        return answer(Asked(shelf, request))
    except (NeuronlakeError, OSError) as found:
        error = shelf.missing(request.path_params["lake"]) or found  # moved away while it was read
        if not isinstance(error, NeuronlakeError):
            raise
        status = 503 if isinstance(error, GoneError | StorageError) else 400 if isinstance(error, InputError) else 500
        return _problem(request, shelf, str(error), 404 if isinstance(error, NotKeptError) else status)


def _problem(request: Request, shelf: Shelf, message: str, status: int) -> Response:
    if request.headers.get("sec-fetch-dest") == "empty":  # a part of a page, asked for by its script
        return PlainTextResponse(message, status)
    name = request.path_params.get("lake", "")
    links = Links(name) if name in shelf.paths else None
    return HTMLResponse(render("problem.html", message=message, lakes=list(shelf.paths), link=links), status)


async def _not_found(_: Request, __: Exception) -> Response:
    return HTMLResponse(render("problem.html", message="there is no such page", lakes=[], link=None), 404)


async def _failed(_: Request, error: Exception) -> Response:
    message = f"an error of this program ({type(error).__name__}); the terminal in which it runs shows where"
    return HTMLResponse(render("problem.html", message=message, lakes=[], link=None), 500)


def _overview(asked: Asked) -> Response:
    method = asked.text("method") or DEFAULT_METHOD
    try:
        view = overview(asked.opened, asked.by, method)
    except NotKeptError as error:
        view = overview_without(asked.opened, asked.by, method, str(error))
    return asked.page("overview.html", view=view)


def _tag(asked: Asked) -> Response:
    view = tag_page(
        asked.opened,
        asked.by,
        asked.needed("tag", "NOUN"),
        asked.text("method") or DEFAULT_METHOD,
        top=asked.number("top", NEURONS),
        layer=asked.number("layer"),
    )
    return asked.page("tag.html", view=view)


def _neuron(asked: Asked) -> Response:
    layer, neuron = parse_neuron(asked.needed("neuron", "L12.N345"), asked.opened.lake)
    view = neuron_page(asked.opened, layer, neuron, asked.by, k=asked.number("k", CONTEXTS), tag=asked.text("tag"))
    return asked.page("neuron.html", view=view, signatures=signatures(asked.opened))


def _contexts(asked: Asked) -> Response:
    """The same contexts with every token's activation: a part of the neuron's page, asked for by its button."""
    layer, neuron = parse_neuron(asked.needed("neuron", "L12.N345"), asked.opened.lake)
    limit = asked.magnitude("limit", "2.5")
    return asked.page("contexts.html", found=shaded(asked.opened, layer, neuron, asked.numbers("rows"), asked.by, limit))


def _sentence(asked: Asked) -> Response:
    view = sentence_page(
        asked.opened,
        asked.number("sentence"),
        asked.names("neurons"),
        asked.names("labels"),
        first=asked.number("first", 0),
    )
    return asked.page("sentence.html", view=view)


def _neighbours(asked: Asked) -> Response:
    """The neurons most like one: a part of its page, asked for by its buttons."""
    layer, neuron = parse_neuron(asked.needed("neuron", "L12.N345"), asked.opened.lake)
    view = like(asked.opened, layer, neuron, asked.text("signature") or "profile", asked.by)
    return asked.page("neighbours.html", view=view)


def _compare(asked: Asked) -> Response:
    method, tag, name = asked.text("method") or DEFAULT_METHOD, asked.text("tag"), asked.text("other")
    if name is None:
        return asked.page("compare.html", view=compare_tags(asked.opened, asked.by, method, tag, asked.text("against")))
    other = asked.shelf.open(name, asked.site)
    view = compare_lakes(asked.opened, other, asked.by, method, tag)
    there = Links(other.name, {"site": asked.site, "by": asked.by})
    return asked.page("compare.html", view=view, there=there)


def _search(asked: Asked) -> Response:
    question, kind = asked.text("q"), asked.text("as")
    try:
        view = search(asked.opened, question, kind)
    except InputError as error:  # said beside the question, which can be mended there
        view = unanswered(asked.opened, question, kind, str(error))
        return asked.page("search.html", 400, view=view)
    if view["kind"] == "neuron":
        return RedirectResponse(str(asked.links.neuron(view["neuron"])))
    return asked.page("search.html", view=view)


def _firing(asked: Asked) -> Response:
    """The neurons that fire on what was searched for: a part of that page, asked for by its button."""
    view = firing(asked.opened, form=asked.text("form"), where=asked.text("where"))
    return asked.page("firing.html", view=view)


def _heatmap_csv(asked: Asked) -> Response:
    method = asked.text("method") or DEFAULT_METHOD
    return _file(asked, heatmap_csv(asked.opened, asked.by, method), "csv", "layers", method)


def _ranking_csv(asked: Asked) -> Response:
    tag, method = asked.needed("tag", "NOUN"), asked.text("method") or DEFAULT_METHOD
    text = ranking_csv(asked.opened, asked.by, tag, method, top=asked.number("top"), layer=asked.number("layer"))
    return _file(asked, text, "csv", tag, method)


def _profile_csv(asked: Asked) -> Response:
    name = asked.needed("neuron", "L12.N345")
    return _file(asked, profile_csv(asked.opened, *parse_neuron(name, asked.opened.lake), asked.by), "csv", name, "profile")


def _contexts_csv(asked: Asked) -> Response:
    name = asked.needed("neuron", "L12.N345")
    layer, neuron = parse_neuron(name, asked.opened.lake)
    k, tag = asked.number("k", CONTEXTS), asked.text("tag")
    return _file(asked, contexts_csv(asked.opened, layer, neuron, asked.by, k=k, tag=tag), "csv", name, "contexts")


def _picture(kind: str, file_type: str, asked: Asked) -> Response:
    name, tag = asked.text("neuron"), asked.text("tag")
    found = figure(
        asked.opened,
        kind,
        file_type,
        by=asked.by,
        method=asked.text("method"),
        tag=tag,
        top=asked.number("top"),
        neuron=None if name is None else parse_neuron(name, asked.opened.lake),
    )
    return _file(asked, found, file_type, kind, *(part for part in (name, tag) if part))


def _file(asked: Asked, content: str | bytes, file_type: str, *parts: str) -> Response:
    """A file to be kept, not shown: its name says what it is of."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([asked.opened.name, *parts]))
    kind = TYPES.get(file_type, "text/csv; charset=utf-8")
    headers = {"content-disposition": f'attachment; filename="{name}.{file_type}"', "cache-control": "no-cache"}
    return Response(content, media_type=kind, headers=headers)


def _state(asked: Asked) -> Response:
    return PlainTextResponse(state_of(asked.opened), headers={"cache-control": "no-store"})
