"""Requests to object stores: a few kinds of them, tried again with pauses, counted, and their refusals said in one line.

Built on obstore, whose own retries are switched off: they hide how often it tried, and do not see a body that ends early.
Credentials come from the standard environment variables only, which obstore reads; nothing here stores or prints them.
"""

import errno
import importlib
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

from neuronlake.store.errors import StorageError

SCHEMES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
PART_BYTES = 8 << 20  # 8 MiB: what one request transfers at most, so that its timeout can be short
_MULTIPART_BYTES = 2 * PART_BYTES
_SETTINGS = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
"""What the names of a provider's environment variables begin with."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if need be, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
# The services that give credentials to machines of a cloud: asked when the environment has none.
_CREDENTIAL_SERVICES = (
    "/latest/api/token",
    "/latest/meta-data",
    "169.254.170.2",
    "/computeMetadata/",
    "token request",
    "MissingAccount",
)
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<\n]*)")
_TRY_AGAIN = (408, 429)
_NOT_OFFERED = (405, 501)

_Result = TypeVar("_Result")
_conditional: dict[tuple[str, str], bool] = {}
"""Scheme and bucket → whether its store honours conditions, as far as this process has found out."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a store that does not answer is asked again."""

    tries: int = 6
    """Of one request, the first included."""
    first_pause_s: float = 0.1
    """Before the second try; doubled before each further one, and multiplied by a random number between 0.5 and 1.5."""
    longest_pause_s: float = 5
    deadline_s: float = 30
    """After so many seconds no further try is begun."""
    timeout_s: float = 20
    """Of one request with its body; AWS_TIMEOUT, GOOGLE_TIMEOUT and AZURE_TIMEOUT (such as ``60s``) override it."""
    connect_timeout_s: float = 5

    def pause(self, tried: int) -> float:
        """Seconds to wait after so many tries."""
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** (tried - 1)) * random.uniform(0.5, 1.5)


PATIENCE = Patience()


@dataclass
class Traffic:
    """What this process has asked of object stores so far."""

    requests: int = 0
    """Tries, not calls."""
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        """Add to some of the counts."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def since(self, earlier: "Traffic") -> "Traffic":
        """Return what was added after a copy (``dataclasses.replace``) was taken."""
        return Traffic(**{name: getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__})


TRAFFIC = Traffic()


def read(where: "Where") -> bytes:
    """Return a whole object, by several requests if it is large.

    Raises
    ------
    FileNotFoundError
        When there is none.
    StorageError
        When the store refuses, or does not answer.
    """

    def begin() -> tuple[int, bytes]:
        # Of an empty object there is no first byte to ask for, so the request has no range if the store refuses this one.
        try:
            found = _obstore().get(_store(where), where.key, options={"range": (0, PART_BYTES)})
        except _generic() as error:
            if _status(error) != 416:
                raise
            found = _obstore().get(_store(where), where.key)
        size = int(found.meta["size"])
        return size, _whole(found.bytes(), min(size, PART_BYTES), where)

    size, first = _asked(begin, where, "read")
    if size <= PART_BYTES:
        return first
    return first + b"".join(
        read_range(where, offset, min(PART_BYTES, size - offset)) for offset in range(PART_BYTES, size, PART_BYTES)
    )


def read_range(where: "Where", offset: int, length: int) -> bytes:
    """Return part of an object, by several requests if it is large; errors as of `read`, and StorageError if it is short."""
    if not length:
        return b""
    if length > PART_BYTES:
        parts = range(offset, offset + length, PART_BYTES)
        return b"".join(read_range(where, part, min(PART_BYTES, offset + length - part)) for part in parts)

    def ask() -> bytes:
        return _whole(_obstore().get_range(_store(where), where.key, start=offset, length=length), length, where)

    return _asked(ask, where, "read")


def read_end(where: "Where", length: int) -> tuple[int, bytes]:
    """Return an object's size and its last bytes, by one request; errors as of `read`."""

    def ask() -> tuple[int, bytes]:
        if where.scheme == "az":  # it has no such request
            size = int(_obstore().head(_store(where), where.key)["size"])
            first = max(0, size - length)
            return size, _whole(_obstore().get_range(_store(where), where.key, start=first, end=size), size - first, where)
        found = _obstore().get(_store(where), where.key, options={"range": {"suffix": length}})
        size = int(found.meta["size"])
        return size, _whole(found.bytes(), min(size, length), where)

    return _asked(ask, where, "read")


def size_of(where: "Where") -> int:
    """Return an object's size in bytes; errors as of `read`."""
    return _asked(lambda: int(_obstore().head(_store(where), where.key)["size"]), where, "read")


def write(where: "Where", data: bytes, *, new: bool = False) -> None:
    """Put an object: others see it whole or not at all.

    Parameters
    ----------
    new
        Only if there is none, or one with the same bytes. Stores that offer no conditions, or take no notice of them, are
        asked before: see `is_conditional`.

    Raises
    ------
    FileExistsError
        With `new`, when there is one with other bytes.
    StorageError
        When the store refuses, or does not answer.
    """

    def ask(mode: str) -> None:
        large = mode == "overwrite" and len(data) > _MULTIPART_BYTES
        _obstore().put(_store(where), where.key, data, mode=mode, use_multipart=large, chunk_size=PART_BYTES)
        TRAFFIC.add(bytes_written=len(data))

    def differs() -> bool:
        try:
            return read(where) != data
        except FileNotFoundError:
            return False

    if not new:
        return _asked(lambda: ask("overwrite"), where, "write")
    store = where.scheme, where.bucket
    if is_conditional(where):
        try:
            _asked(lambda: ask("create"), where, "write")
            if store not in _conditional:  # once more: must be refused now, and harms nothing if it is not
                _asked(lambda: ask("create"), where, "write")
                _conditional[store] = False
            return None
        except FileExistsError:  # perhaps our own: a request may succeed and its answer be lost
            _conditional[store] = True
            if differs():
                raise
            return None
        except NotImplementedError:
            _conditional[store] = False
    if differs():
        raise _exists(where)
    return _asked(lambda: ask("overwrite"), where, "write")


def is_conditional(where: "Where") -> bool:
    """Whether `write` can rely on conditions in this bucket: known after the first object that was to be new."""
    return _conditional.get((where.scheme, where.bucket), True)


def delete(where: "Where") -> None:
    """Delete an object, if there is one.

    Raises
    ------
    StorageError
        When the store refuses, or does not answer.
    """
    try:
        _asked(lambda: _obstore().delete(_store(where), where.key), where, "remove")
    except FileNotFoundError:
        return


def list_below(where: "Where") -> dict[str, int]:
    """Return key → size in bytes of every object whose key begins with this one and a slash, sorted.

    Raises
    ------
    StorageError
        When the store refuses, or does not answer.
    """

    def ask() -> dict[str, int]:
        pages = _obstore().list(_store(where), where.prefix, chunk_size=1000)
        return {entry["path"]: int(entry["size"]) for page in pages for entry in page}

    return dict(sorted(_asked(ask, where, "list").items()))


def list_folder(where: "Where") -> tuple[list[str], list[str]]:
    """Return the keys of the folders and of the objects right below, sorted; errors as of `list_below`."""

    def ask() -> tuple[list[str], list[str]]:
        found = _obstore().list_with_delimiter(_store(where), where.prefix)
        return sorted(found["common_prefixes"]), sorted(entry["path"] for entry in found["objects"])

    return _asked(ask, where, "list")


@dataclass(frozen=True, order=True)
class Where:
    """An object, or what its key begins with."""

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    @property
    def prefix(self) -> str | None:
        """What the keys of everything below begin with."""
        return f"{self.key}/" if self.key else None


def _asked(ask: Callable[[], _Result], where: Where, verb: str) -> _Result:
    """Ask until there is an answer or patience ends."""
    begun, tried = time.monotonic(), 0
    while True:
        tried += 1
        TRAFFIC.add(requests=1)
        try:
            return ask()
        except FileNotFoundError as error:
            if any(sign in str(error) for sign in _NO_BUCKET):
                raise _no_bucket(where) from None
            raise FileNotFoundError(errno.ENOENT, "no such object", str(where)) from None
        except _failures() as error:
            if (final := _final(error, where, verb)) is not None:
                raise final from None
            pause = PATIENCE.pause(tried)
            if tried >= PATIENCE.tries or time.monotonic() - begun + pause > PATIENCE.deadline_s:
                raise StorageError(
                    f"could not {verb} {where}: {_reason(error)}, after {tried} tries in "
                    f"{time.monotonic() - begun:.0f} s; committed blocks are safe, run the same command again"
                ) from None
            TRAFFIC.add(retries=1)
            time.sleep(pause)


class _ShortBodyError(Exception):
    """A body that is shorter than was promised."""


def _whole(body: Any, expected: int, where: Where) -> bytes:
    data = bytes(body)
    TRAFFIC.add(bytes_read=len(data))
    if len(data) != expected:
        raise _ShortBodyError(f"{len(data)} of {expected} bytes of {where.key} came")
    return data


def _final(error: Exception, where: Where, verb: str) -> Exception | None:
    """Return the error of a refusal that another try would not change."""
    text, exceptions = str(error), _exceptions()
    if isinstance(error, exceptions.AlreadyExistsError):
        return _exists(where)
    if any(sign in text for sign in _NO_BUCKET):
        return _no_bucket(where)
    if any(service in text for service in _CREDENTIAL_SERVICES):
        return StorageError(f"no credentials for {where.scheme}://{where.bucket}: set {_CREDENTIALS[where.scheme]}")
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return StorageError(
            f"could not {verb} {where}: access denied ({_reason(error)}); check {_CREDENTIALS[where.scheme]}, and what "
            "these credentials may do"
        )
    status = _status(error)
    if verb == "write" and (status in _NOT_OFFERED or isinstance(error, exceptions.NotSupportedError)):
        return NotImplementedError(f"{where}: {_reason(error)}")
    if (
        (400 <= status < 500 and status not in _TRY_AGAIN)
        or status in _NOT_OFFERED
        or isinstance(error, exceptions.InvalidPathError)
    ):
        return StorageError(f"could not {verb} {where}: {_reason(error)}")
    return None


def _exists(where: Where) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "there is an object with other bytes", str(where))


def _no_bucket(where: Where) -> StorageError:
    return StorageError(f"no bucket {where.bucket!r} at {where.scheme}://{where.bucket}: make it first, or check its name")


def _reason(error: Exception) -> str:
    """Say in a few words what an answer says: its status, its code and message if it has them."""
    text = str(error)
    code, message = _CODE.search(text), _MESSAGE.search(text)
    told = [match[1].strip().rstrip(".") for match in (code, message) if match is not None and match[1].strip()]
    if status := _status(error):
        return ": ".join([f"status {status}", *told]) if told else f"status {status}"
    return _first_line(text)


def _first_line(text: str) -> str:
    line = next(iter(text.splitlines()), "no answer")
    line = re.sub(r"^Generic \w+ error: |Error performing \w+ \S+ in \S+ - |HTTP error: ", "", line)
    if "tcp connect error" in text or "dns error" in text:
        return f"{line} (no connection)"
    return f"{line} (timed out)" if "TimedOut" in text else line


def _status(error: Exception) -> int:
    match = _STATUS.search(str(error))
    return int(match[1]) if match else 0


def _store(where: Where) -> Any:
    # a client's threads do not survive a fork, and a session token may have been renewed
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS[where.scheme])))
    return _make_store(where.scheme, where.bucket, settings, os.getpid())


@lru_cache(maxsize=64)
def _make_store(scheme: str, bucket: str, settings: tuple[tuple[str, str], ...], pid: int) -> Any:  # noqa: ARG001
    timeouts = {"timeout": PATIENCE.timeout_s, "connect_timeout": PATIENCE.connect_timeout_s}
    options: dict[str, Any] = {
        name: timedelta(seconds=seconds)
        for name, seconds in timeouts.items()
        if f"{_SETTINGS[scheme]}{name.upper()}" not in dict(settings)
    }
    for name, value in settings:
        # obstore panics where there is no scheme
        if "ENDPOINT" in name and not value.startswith(("http://", "https://")):
            raise StorageError(f"{name} is {value!r}, expected a URL that begins with http:// or https://")
    _obstore()
    kind = getattr(importlib.import_module("obstore.store"), SCHEMES[scheme])
    # plain HTTP only ever happens where an endpoint in the environment says so
    return kind(bucket, client_options={"allow_http": True, **options}, retry_config={"max_retries": 0})


@lru_cache(maxsize=1)
def _obstore() -> Any:
    try:
        return importlib.import_module("obstore")
    except ImportError:
        raise StorageError("lakes in object stores need one more package: pip install 'neuronlake[cloud]'") from None


def _exceptions() -> Any:
    _obstore()
    return importlib.import_module("obstore.exceptions")


def _failures() -> tuple[type[Exception], ...]:
    return _ShortBodyError, _exceptions().BaseError


def _generic() -> type[Exception]:
    found: type[Exception] = _exceptions().GenericError
    return found
