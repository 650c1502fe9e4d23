"""What the explorer's tests share: a server, requests byte by byte, pages as trees."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.client import HTTPResponse
from pathlib import Path

_VOID = frozenset(["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"])


@dataclass(eq=False)
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    inside: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text inside, as it stands."""
        return "".join(part if isinstance(part, str) else part.text for part in self.inside)

    @property
    def words(self) -> str:
        """All text inside, white space folded."""
        return " ".join(self.text.split())

    def all(self, tag: str = "", **attributes: str) -> list["Element"]:
        """Elements inside with that name and those attributes (`class_`: one of its classes; `_` for `-`), in order."""
        found = []
        for part in self.inside:
            if isinstance(part, Element):
                if part._is(tag, attributes):
                    found.append(part)
                found += part.all(tag, **attributes)
        return found

    def one(self, tag: str = "", **attributes: str) -> "Element":
        """The only such element."""
        (found,) = self.all(tag, **attributes)
        return found

    def _is(self, tag: str, attributes: Mapping[str, str]) -> bool:
        def fits(name: str, wanted: str) -> bool:
            own = self.attributes.get(name.rstrip("_").replace("_", "-"))
            return own is not None and (wanted in own.split() if name == "class_" else wanted == own)

        return (not tag or self.tag == tag) and all(fits(*item) for item in attributes.items())


def parse(text: str) -> Element:
    """A page as a tree."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert len(parser.open) == 1, f"not closed: {[each.tag for each in parser.open]}"
    return parser.open[0]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].inside.append(element)
        if tag not in _VOID and tag not in ("path", "line", "rect"):  # of SVG: they close themselves
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].inside.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag == "option" and self.open[-1].tag != "option":
            return
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        """The body."""
        return self.body.decode()

    @property
    def page(self) -> Element:
        """The body as a tree."""
        assert self.headers["content-type"].startswith("text/html"), self.body[:300]
        return parse(self.text)

    @property
    def problem(self) -> str:
        """What the problem page says."""
        return self.page.one("main").one("p", class_="problem").words


def ask(port: int, target: str, *headers: tuple[str, str], host: str | None = "", method: str = "GET") -> Answer:
    """Send one request, byte by byte as it is given here; `host` None leaves that header out."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "Connection: close"]
    if host is not None:
        lines.append(f"Host: {host or f'127.0.0.1:{port}'}")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        response = HTTPResponse(connection, method=method)
        response.begin()
        found = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        response.close()
    return found


@contextmanager
def served(lakes: Sequence[Path], hosts: Sequence[str] = (), *, at: int = 0) -> Iterator[int]:
    """A server in a thread of this process; gives its port."""
    import uvicorn

    from neuronlake.analysis.explorer.app import create_app
    from neuronlake.analysis.explorer.shelf import Shelf

    listening = socket.create_server(("127.0.0.1", at))
    config = uvicorn.Config(create_app(Shelf(lakes), hosts), log_level="critical", server_header=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listening.close()
    assert not thread.is_alive()


class Serving:
    """A real `neuronlake serve` in a process of its own."""

    def __init__(self, *arguments: object):
        command = [sys.executable, "-m", "neuronlake.cli.main", "serve", *map(str, arguments)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        self.said = ""
        while (match := re.search(r"http://\S+:(\d+)/", self.said)) is None:
            if not (line := self._process.stderr.readline()):
                self.stop()
                raise AssertionError(self.said)
            self.said += line
        self.address, self.port = match[0], int(match[1])

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal; returns the exit code, and adds to `said`."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        _, rest = self._process.communicate(timeout=30)
        self.said += rest
        return self._process.returncode

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)


def run_serve(*arguments: object, code: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `neuronlake serve` to an end that comes by itself; `code` runs before."""
    program = f"{code}\nimport sys\nfrom neuronlake.cli.main import main\nsys.exit(main(['serve', *sys.argv[1:]]))"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, map(Path, sys.path))))},
    )
