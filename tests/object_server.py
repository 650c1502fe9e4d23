"""An object store to test against, and a proxy before it that fails now and then, as stores do.

The store is moto's server, a process on loopback; or what NEURONLAKE_S3_ENDPOINT names, with the credentials in AWS_….
"""

import contextlib
import http.client
import os
import random
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import obstore.store

_GIVEN = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
"""Kept, since tests change and remove them."""
KINDS = ("500", "503", "stall", "reset", "lost answer", "truncated", "spoiled")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(endpoint: str) -> dict[str, str]:
    """Environment variables for a store without real users."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": _GIVEN.get("AWS_ACCESS_KEY_ID", "tester"),
        "AWS_SECRET_ACCESS_KEY": _GIVEN.get("AWS_SECRET_ACCESS_KEY", "testing"),
        "AWS_REGION": _GIVEN.get("AWS_REGION", "us-east-1"),
    }


@contextlib.contextmanager
def object_server() -> Iterator[str]:
    """Give the endpoint of a running store."""
    if (given := os.environ.get("NEURONLAKE_S3_ENDPOINT")) is not None:
        yield given
        return
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(1800):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def request(endpoint: str, method: str, path: str) -> int:
    """Send a signed request about a bucket, return the status."""
    import botocore.auth
    import botocore.awsrequest
    import botocore.credentials

    given = settings(endpoint)
    keys = botocore.credentials.Credentials(given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"])
    signed = botocore.awsrequest.AWSRequest(
        method, f"{endpoint}/{path}", headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    )
    botocore.auth.S3SigV4Auth(keys, "s3", given["AWS_REGION"]).add_auth(signed)
    with contextlib.closing(http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)) as connection:
        connection.request(method, f"/{path}", headers=dict(signed.headers))
        answer = connection.getresponse()
        answer.read()
        return answer.status


def make_bucket(endpoint: str) -> str:
    """Make a bucket of a new name."""
    name = f"test-{secrets.token_hex(6)}"
    status = request(endpoint, "PUT", name)
    assert status in (200, 201), status
    return name


def empty_bucket(endpoint: str, bucket: str) -> None:
    """Delete every object, and the bucket."""
    given = settings(endpoint)
    store = obstore.store.S3Store(
        bucket,
        endpoint=endpoint,
        access_key_id=given["AWS_ACCESS_KEY_ID"],
        secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        region=given["AWS_REGION"],
        client_options={"allow_http": True},
    )
    for page in obstore.list(store):
        obstore.delete(store, [entry["path"] for entry in page])
    assert request(endpoint, "DELETE", bucket) in (200, 204)


class FaultProxy:
    """Passes requests on to a store, or fails in a way chosen at random.

    Parameters
    ----------
    rates
        Kind of fault (`KINDS`) → share of the requests.
    stall_s
        How long a stalled request takes before its connection is closed.
    ignored
        Headers that are not passed on, as if the store did not know them.
    seen
        Called with the method and path of every request before it is passed on.
    """

    def __init__(
        self,
        upstream: str,
        *,
        seed: int = 0,
        rates: dict[str, float] | None = None,
        stall_s: float = 1.5,
        ignored: tuple[str, ...] = (),
        seen: Callable[[str, str], None] = lambda method, path: None,
    ):
        self.rates, self.stall_s, self.seen = dict(rates or {}), stall_s, seen
        self._ignored = {name.lower() for name in ignored}
        self.counts: Counter[str] = Counter()
        """Requests, and faults by kind."""
        self.bytes = 0
        """Of bodies that came from the store."""
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._upstream = urlsplit(upstream).netloc
        self._refusal: tuple[int, bytes] | None = None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                return

            def _any(self) -> None:
                proxy._answer(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def refuse_with(self, status: int, body: bytes) -> None:
        """Answer every request so from now on."""
        self._refusal = status, body

    @property
    def faults(self) -> int:
        """Requests that were made to fail."""
        return sum(self.counts[kind] for kind in KINDS)

    def _choose(self) -> str | None:
        with self._lock:
            self.counts["requests"] += 1
            place = self._random.random()
            for kind, rate in self.rates.items():
                place -= rate
                if place < 0:
                    return kind
        return None

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.seen(handler.command, handler.path)
        fault = self._choose()
        if self._refusal is not None:
            return self._send(handler, self._refusal[0], {"Content-Type": "application/xml"}, self._refusal[1])
        if fault in ("500", "503"):
            self._count(fault)
            return self._send(handler, int(fault), {}, SLOW_DOWN if fault == "503" else b"")
        if fault == "stall":
            self._count(fault)
            time.sleep(self.stall_s)
            return self._reset(handler)
        if fault == "reset":
            self._count(fault)
            return self._reset(handler)
        status, headers, found = self._pass_on(handler, body)
        if fault == "lost answer":  # what was asked for is done, but nobody hears of it
            self._count(fault)
            return self._reset(handler)
        if fault == "truncated" and len(found) > 1 and handler.command == "GET":
            self._count(fault)
            self._send(handler, status, headers, found, only=len(found) // 2)
            return self._reset(handler)
        if (
            fault == "spoiled"
            and found
            and handler.command == "GET"
            and any(name in handler.path for name in ("/c.", ".parquet", "/commits/block", "/plan.json", "/record.json"))
        ):
            self._count(fault)
            found = bytes([found[0] ^ 1]) + found[1:]
        return self._send(handler, status, headers, found)

    def _count(self, fault: str) -> None:
        with self._lock:
            self.counts[fault] += 1

    def _pass_on(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        asked = {name: value for name, value in handler.headers.items() if name.lower() not in self._ignored}
        with contextlib.closing(http.client.HTTPConnection(self._upstream, timeout=60)) as connection:
            connection.request(handler.command, handler.path, body=body, headers=asked)
            answer = connection.getresponse()
            found = answer.read()
            self.bytes += len(found)
            dropped = ("connection", "transfer-encoding", "keep-alive")
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
            return answer.status, headers, found

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, *, only: int | None = None
    ) -> None:
        handler.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or handler.command == "HEAD":
                handler.send_header(name, value)
        if handler.command != "HEAD":
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body[:only])

    def _reset(self, handler: BaseHTTPRequestHandler) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_WR)
