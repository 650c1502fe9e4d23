"""Where a lake is: a folder, or what the keys of a bucket's objects begin with.

`ObjectPath` has the part of pathlib's interface that reading needs, so that code which joins paths and reads whole files
works with both. Writing goes through `neuronlake.store.files` and `neuronlake.store.kept`, which tell the two apart.
"""

import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import neuronlake.store.object_client as client
from neuronlake.store.errors import DamageError, InputError

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<rest>/.*)", re.DOTALL)
_READS = 4  # of bytes that do not fit their checksum
_Result = TypeVar("_Result")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def read_until_right(read: Callable[[], _Result]) -> _Result:
    """Call what reads an object and checks it, again while it raises DamageError: what a network spoils comes right."""
    for _ in range(_READS - 1):
        try:
            return read()
        except DamageError:
            continue
    return read()


class ObjectStat(NamedTuple):
    """What is known of an object."""

    st_size: int


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object in a bucket, or a folder: a folder is there if the key of an object begins with its name and a slash.

    Every method that asks the store raises StorageError when it refuses or does not answer, and FileNotFoundError where
    pathlib does.
    """

    where: client.Where

    def __str__(self) -> str:
        return str(self.where)

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    # ---- names ----------------------------------------------------------------------------------------------------

    def __truediv__(self, other: str | PurePosixPath) -> "ObjectPath":
        return self.joinpath(other)

    def joinpath(self, *others: str | PurePosixPath) -> "ObjectPath":
        """Return a path below."""
        key = str(PurePosixPath(self.where.key, *others))
        return self._at("" if key == "." else key)

    @property
    def name(self) -> str:
        """Last part of the key; the bucket's name if there is none."""
        return PurePosixPath(self.where.key).name or self.where.bucket

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """What follows the last dot of the name, with the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "ObjectPath":
        """The folder above; the bucket's is the bucket."""
        above = str(PurePosixPath(self.where.key).parent)
        return self._at("" if above == "." else above)

    def with_name(self, name: str) -> "ObjectPath":
        """Return the path of a neighbour."""
        return self.parent / name

    def relative_to(self, other: "ObjectPath") -> PurePosixPath:
        """Return the path from a folder above; ValueError if it is not one."""
        if (self.where.scheme, self.where.bucket) != (other.where.scheme, other.where.bucket):
            raise ValueError(f"{self} is not below {other}")
        return PurePosixPath(self.where.key).relative_to(other.where.key)

    def as_posix(self) -> str:
        """Return the URL."""
        return str(self)

    def absolute(self) -> "ObjectPath":
        """Return the path itself, which is absolute."""
        return self

    # ---- reading --------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is an object or a folder of that name."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of that name."""
        try:
            client.size_of(self.where)
        except FileNotFoundError:  # of a bucket that is not there, too: only a listing tells
            client.list_folder(self.where)
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there is an object below."""
        return any(client.list_folder(self.where))

    def is_symlink(self) -> bool:
        """Return False: there are none."""
        return False

    def stat(self) -> ObjectStat:
        """Return the object's size."""
        return ObjectStat(client.size_of(self.where))

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        return client.read(self.where)

    def read_range(self, offset: int, length: int) -> bytes:
        """Return part of the object, by one request."""
        return client.read_range(self.where, offset, length)

    def read_end(self, length: int) -> tuple[int, bytes]:
        """Return the object's size and its last bytes, by one request."""
        return client.read_end(self.where, length)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return the whole object as a file to read."""
        if mode != "rb":
            raise ValueError(f"an object is opened for reading bytes, not {mode!r}")
        return io.BytesIO(self.read_bytes())

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield the folders and objects right below, by one listing; FileNotFoundError if there are none."""
        folders, objects = client.list_folder(self.where)
        if not folders and not objects:
            raise FileNotFoundError(2, "no such folder", str(self))
        yield from map(self._at, sorted([*folders, *objects]))

    def sizes(self) -> dict["ObjectPath", int]:
        """Return every object below with its size in bytes, from one listing, sorted."""
        return {self._at(key): size for key, size in client.list_below(self.where).items()}

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield the objects below whose names match, part by part; no folders, and no ``**``."""
        parts = pattern.split("/")
        for path in self.sizes():
            names = path.relative_to(self).parts
            if len(names) == len(parts) and all(map(fnmatchcase, names, parts)):
                yield path

    # ---- writing --------------------------------------------------------------------------------------------------

    def write_bytes(self, data: bytes, *, new: bool = False) -> None:
        """Put the object; with `new`, FileExistsError if there is one with other bytes."""
        client.write(self.where, data, new=new)

    def is_conditional(self) -> bool:
        """Whether `write_bytes` with `new` is sure not to replace an object: known after the first one so written."""
        return client.is_conditional(self.where)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object; that there is none is no error, as of the stores."""
        del missing_ok
        client.delete(self.where)

    def _at(self, key: str) -> "ObjectPath":
        return ObjectPath(client.Where(self.where.scheme, self.where.bucket, key))


LakePath: TypeAlias = Path | ObjectPath
"""Where a lake, or something in it, is."""
LakeName: TypeAlias = str | os.PathLike[str] | ObjectPath
"""What `lake_path` understands."""


def lake_path(where: "LakeName") -> LakePath:
    """Return the path that a user's text means: ``s3://``, ``gs://`` and ``az://`` URLs, ``file://`` URLs, local paths.

    Raises
    ------
    InputError
        When it is a URL of another kind, or not of the form ``s3://bucket/lake``.
    """
    if isinstance(where, Path | ObjectPath):
        return where
    where = os.fspath(where)
    match = _URL.fullmatch(where)
    if match is None:
        if where.startswith(tuple(f"{name}:/" for name in client.SCHEMES)):
            raise InputError(f"{where}: expected two slashes, {where.replace(':/', '://', 1)}")
        return Path(where)
    scheme = match["scheme"].lower()
    if scheme == "file":
        parsed = urlsplit(where)
        if parsed.netloc not in ("", "localhost"):
            raise InputError(f"{where}: a file URL names no host; expected file:///folder/of/the.lake")
        return Path(unquote(parsed.path))
    if scheme not in client.SCHEMES:
        known = ", ".join(f"{name}://" for name in (*client.SCHEMES, "file"))
        raise InputError(f"{where}: no lakes can be at {scheme}://; expected {known} or a folder")
    bucket, _, key = match["rest"][1:].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise InputError(f"{where}: {bucket!r} cannot be the name of a bucket; expected {scheme}://bucket/name.lake")
    parts = [part for part in key.split("/") if part]
    if not parts:
        raise InputError(f"{where}: names a bucket, not a lake in it; expected {scheme}://{bucket}/name.lake")
    if any(part in (".", "..") or not part.isprintable() for part in parts):
        raise InputError(f"{where}: '.', '..' and characters that cannot be printed have no place in an object's key")
    return ObjectPath(client.Where(scheme, bucket, "/".join(parts)))
