"""What the corpus readers share: which files to read, how to open them, and what identifies them."""

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from neuronlake.store.errors import InputError

UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a corpus."""

    path: Path
    name: str
    """Its name without the folder; where two files share a name, with as many folders as tell them apart."""

    @property
    def stem(self) -> str:
        """The name without ``.gz`` and the suffix before it."""
        name = self.name[:-3] if self.name.lower().endswith(".gz") else self.name
        folder, slash, last = name.rpartition("/")
        return folder + slash + (last.rpartition(".")[0] or last)


def check_settings(paths: Sequence[Path], limit_sentences: int | None) -> None:
    """Raise `InputError` if no path is given or the limit is not positive."""
    if not paths:
        raise InputError("no corpus files: got an empty list, expected at least one file or folder")
    if limit_sentences is not None and limit_sentences < 1:
        raise InputError(f"limit_sentences must be at least 1, got {limit_sentences}; leave it out to read everything")


def expand(paths: Sequence[Path], *, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """Return the files that `paths` stand for, in order: files as given, folders as all their corpus files, sorted.

    Parameters
    ----------
    paths
        Files (any suffix: it was asked for by name) and folders (searched to any depth; hidden files are passed over).
    suffixes
        Lower-case endings of the corpus files in a folder, such as ``(".conllu", ".conllu.gz")``.

    Raises
    ------
    InputError
        If a path does not exist, a folder holds no such file, or a file would be read twice.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = _files_inside(path, suffixes)
            if not inside:
                raise InputError(f"{path}: no corpus files in this folder; expected files named *{' or *'.join(suffixes)}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    resolved = [path.resolve() for path in found]
    for path, count in Counter(resolved).items():
        if count > 1:
            raise InputError(f"{path}: given {count} times (perhaps also through its folder); name every file once")
    return [SourceFile(path=path, name=name) for path, name in zip(found, _short_names(resolved), strict=True)]


def _files_inside(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    inside = [
        path
        for path in folder.rglob("*")
        # Hidden copies (editors' checkpoints, macOS's "._x") would be read as corpus files otherwise.
        if path.name.lower().endswith(suffixes)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(inside, key=lambda path: path.relative_to(folder).parts)


def _short_names(paths: list[Path]) -> list[str]:
    # (source, document) tells documents apart, so two files called "a/text.txt" and "b/text.txt" need distinct names.
    depths = [1] * len(paths)
    while True:
        names = ["/".join(path.parts[-depth:]) for path, depth in zip(paths, depths, strict=True)]
        count = Counter(names)
        if len(count) == len(names):
            return names
        depths = [depth + (count[name] > 1) for name, depth in zip(names, depths, strict=True)]


def digest(path: Path) -> str:
    """Return the SHA-256 of the file's bytes as stored (compressed ones as compressed), in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def identify(files: Sequence[SourceFile]) -> list[dict[str, str]]:
    """Return name and SHA-256 of every file."""
    return [{"name": file.name, "sha256": digest(file.path)} for file in files]


def open_bytes(path: Path) -> BinaryIO | gzip.GzipFile:
    """Open for reading, decompressing if the name ends in ``.gz``."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    return path.open("rb")


def read_lines(file: SourceFile) -> Iterator[tuple[int, str]]:
    r"""Yield (line number from 1, line without its end) of a UTF-8 file, plain or gzip.

    Lines end in ``\n`` or ``\r\n`` only: U+2028 or U+0085 may stand inside a sentence. A byte-order mark is dropped.

    Raises
    ------
    InputError
        If the file cannot be read, the gzip stream is damaged or cut short, or a line is not UTF-8.
    """
    number = offset = 0
    try:
        with open_bytes(file.path) as stream:
            for number, raw in enumerate(stream, start=1):
                if number == 1 and raw.startswith(UTF8_BOM):
                    offset = len(UTF8_BOM)
                    raw = raw[offset:]
                yield number, raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
                offset += len(raw)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at offset {offset + error.start}"
        raise InputError(f"{file.name}:{number}: not UTF-8: {byte} ({error.reason}); convert the file to UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file.name}: damaged or truncated gzip after line {number} ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read ({error.strerror or error})") from error
