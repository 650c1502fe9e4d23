"""The server: addresses to pages. Every page says in its address all that decides it, so that an address can be shared."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from neuronlake.analysis.explorer.guard import Guard
from neuronlake.analysis.explorer.links import Links
from neuronlake.analysis.explorer.neuron import SHOWN as CONTEXTS
from neuronlake.analysis.explorer.neuron import neuron_page, shaded
from neuronlake.analysis.explorer.overview import overview
from neuronlake.analysis.explorer.render import STATIC, render
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
        "state": _state,
    }
    routes = [
        Route("/", partial(_first, shelf)),
        Mount("/static", StaticFiles(directory=STATIC)),
        *(Route(f"/{{lake}}/{page}", partial(_answered, shelf, answer)) for page, answer in pages.items()),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={404: _not_found}), hosts)


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
        return self._query.get(name) or None

    def needed(self, name: str, example: str) -> str:
        """Return a parameter that must be there."""
        if (value := self.text(name)) is None:
            raise InputError(f"the address lacks {name}=…, for example {name}={example}")
        return value

    def number(self, name: str, default: int | None = None) -> int | None:
        """Return a whole number."""
        if (value := self.text(name)) is None:
            return default
        try:
            return int(value)
        except ValueError:
            raise InputError(f"{name} must be a whole number, got {value!r}") from None

    def numbers(self, name: str) -> list[int]:
        """Return whole numbers that are separated by commas."""
        values = self.needed(name, "1,2,3").split(",")
        try:
            return [int(value) for value in values]
        except ValueError:
            raise InputError(f"{name} must be whole numbers separated by commas, got {','.join(values)!r}") from None

    def page(self, template: str, **data: Any) -> Response:
        """Return a page."""
        common = {"lakes": list(self.shelf.paths), "opened": self.opened, "link": self.links, "state": state_of(self.opened)}
        return HTMLResponse(render(template, **common, **data), headers={"cache-control": "no-cache"})


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
    except NeuronlakeError as error:
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


def _overview(asked: Asked) -> Response:
    return asked.page("overview.html", view=overview(asked.opened, asked.by, asked.text("method") or DEFAULT_METHOD))


def _tag(asked: Asked) -> Response:
    view = tag_page(
        asked.opened,
        asked.by,
        asked.needed("tag", "NOUN"),
        asked.text("method") or DEFAULT_METHOD,
        top=asked.number("top", NEURONS) or NEURONS,
        layer=asked.number("layer"),
    )
    return asked.page("tag.html", view=view)


def _neuron(asked: Asked) -> Response:
    layer, neuron = parse_neuron(asked.needed("neuron", "L12.N345"), asked.opened.lake)
    view = neuron_page(
        asked.opened, layer, neuron, asked.by, k=asked.number("k", CONTEXTS) or CONTEXTS, tag=asked.text("tag")
    )
    return asked.page("neuron.html", view=view)


def _contexts(asked: Asked) -> Response:
    """The same contexts with every token's activation: a part of the neuron's page, asked for by its button."""
    layer, neuron = parse_neuron(asked.needed("neuron", "L12.N345"), asked.opened.lake)
    limit = float(asked.needed("limit", "2.5"))
    return asked.page("contexts.html", found=shaded(asked.opened, layer, neuron, asked.numbers("rows"), asked.by, limit))


def _state(asked: Asked) -> Response:
    return PlainTextResponse(state_of(asked.opened), headers={"cache-control": "no-store"})
