"""Which requests are answered: only those of the page itself. A web server on one's own machine is open to every page that
one's browser shows; what another site must not do is refused here, before anything is read.
"""

import re
from collections.abc import Iterable
from typing import Any

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,  # corpus text that became markup by a mistake of ours could still run nothing
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_READING = "GET, HEAD"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^][:/?#@\\\s,]+)(:[0-9]*)?", re.IGNORECASE)  # name and port, nothing else


class Guard:
    """ASGI middleware that refuses other hosts' names (DNS rebinding), other sites' requests, and all but reading.

    Parameters
    ----------
    app
        What answers.
    hosts
        Names under which the server may be addressed, beside those of this machine; without ports.
    """

    def __init__(self, app: Any, hosts: Iterable[str] = ()):
        self._app = app
        self._hosts = {*_LOCAL, *(host.lower() for host in hosts)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if (refusal := self._refusal(scope["method"], headers)) is not None:
            status, text = refusal
            said = {**HEADERS, "content-type": "text/plain; charset=utf-8", **({"allow": _READING} if status == 405 else {})}
            await send({"type": "http.response.start", "status": status, "headers": _encoded(said)})
            await send({"type": "http.response.body", "body": text.encode()})
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_encoded(HEADERS)]}
            await send(message)

        await self._app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        if method not in _READING.split(", "):
            return 405, f"{method} is not allowed: pages are only read\n"
        host = headers.get("host", "")
        if (named := _HOST.fullmatch(host)) is None or named[1].strip("[]").lower() not in self._hosts:
            return 421, f"this server does not answer for the host {host!r}; start it with --host NAME if it should\n"
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return 403, "requests of other sites are refused\n"
        # another port of this machine is the same site, but another origin; a link that leads here is followed
        followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not followed:
            return 403, "requests of other sites are refused\n"
        return None


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
