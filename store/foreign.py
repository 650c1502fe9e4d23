"""Activations in other people's files, opened as layers that are sliced by rows."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from neuronlake.store.compose import LayerOf, RowSource
from neuronlake.store.errors import InputError

FORMATS = {
    "npy": "NumPy: *.npy, (rows, neurons) one file a layer, or (layers, rows, neurons)",
    "safetensors": "safetensors: *.safetensors, one tensor a layer, or (layers, rows, neurons)",
    "neurox": "NeuroX: *.hdf5, one data set a sentence",
    "saelens": "SAELens: folders that CacheActivationsRunner wrote (*.arrow and state.json)",
}
"""Name → what it is."""
_SUFFIXES = {".npy": "npy", ".safetensors": "safetensors", ".hdf5": "neurox", ".h5": "neurox"}
# A layer's number in a name: after a word for it, or the whole name.
_LAYER_NUMBER = re.compile(r"(?:layers?|blocks?|(?<![a-z])l)[._\- /]*(\d+)|(?<![a-z])h\.(\d+)|^(\d+)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing in a source that is a layer, or several: a file, a tensor, a column."""

    name: str
    """As messages call it."""
    key: str
    """Where its layer's number may stand."""
    array: Any
    """(rows, neurons), or (layers, rows, neurons)."""


@dataclass(kw_only=True)
class ForeignSource:
    """An open source. Close it by leaving its ``with`` block."""

    format: str
    layers: Mapping[int, RowSource]
    """Layer → (rows, neurons), read where it is sliced."""
    origins: Mapping[int, str]
    """Layer → what it was made of."""
    tokens: Mapping[str, Any]
    """Columns that the source itself has about its rows: form, token_id, sentence."""
    files: tuple[Path, ...]
    """All files that decide the values."""
    _close: Callable[[], None] = field(default=lambda: None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def identity(self) -> dict[str, Any]:
        """Return what the source is: format, layers' origins, SHA-256 of every file. Reads all of it once."""
        return {
            "format": self.format,
            "layers": {str(layer): origin for layer, origin in self.origins.items()},
            "files": [{"name": path.name, "sha256": file_sha256(path)} for path in self.files],
        }


@dataclass(frozen=True, kw_only=True)
class ForeignSettings:
    """How to read a source."""

    format: str = "auto"
    """One of `FORMATS`, or ``auto``: by the names."""
    layers: tuple[int, ...] | None = None
    """Numbers of the layers, in the order of the source's; by default the numbers in its names, or else 0, 1, …"""
    select: str | None = None
    """Shell pattern of the tensors or columns to take; by default all."""
    neurons_per_layer: int | None = None
    """Of NeuroX files whose data sets are (tokens, layers · neurons); by default they are one layer."""

    def __post_init__(self) -> None:
        if self.format not in ("auto", *FORMATS):
            raise InputError(f"unknown format {self.format!r}: known are auto, {', '.join(FORMATS)}")
        if self.neurons_per_layer is not None and self.neurons_per_layer < 1:
            raise InputError(f"neurons_per_layer must be at least 1, got {self.neurons_per_layer}")

    def chosen(self, name: str) -> bool:
        """Whether a tensor or column is wanted."""
        return self.select is None or fnmatchcase(name, self.select)


def open_foreign(paths: Sequence[Path], settings: ForeignSettings | None = None) -> ForeignSource:
    """Open activation files of one format.

    Nothing but headers is read here, and the labels that a format has.

    Raises
    ------
    InputError
        When a file is missing, of an unknown or of another format, malformed, or two parts claim the same layer.
    """
    settings = settings or ForeignSettings()
    if not paths:
        raise InputError("no source was given")
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
    kind = settings.format if settings.format != "auto" else _detect(paths)
    if settings.select is not None and kind in ("npy", "neurox"):
        raise InputError(f"select chooses tensors or columns by name, and {kind} files have none")
    if settings.neurons_per_layer is not None and kind != "neurox":
        raise InputError(f"neurons_per_layer is about NeuroX files, these are {kind}")
    if kind == "npy":
        return _assemble(kind, settings, [_npy_part(path) for path in paths], files=paths)
    if kind == "safetensors":
        from neuronlake.store.foreign_safetensors import tensor_parts

        return _assemble(kind, settings, [part for path in paths for part in tensor_parts(path, settings)], files=paths)
    if kind == "neurox":
        from neuronlake.store.foreign_neurox import open_neurox

        parts, tokens, close = open_neurox(paths, settings)
        try:
            return _assemble(kind, settings, parts, files=paths, tokens=tokens, close=close)
        except InputError:
            close()
            raise
    from neuronlake.store.foreign_saelens import open_saelens

    parts, tokens, files = open_saelens(paths, settings)
    return _assemble(kind, settings, parts, files=files, tokens=tokens)


def layer_numbers(keys: Sequence[str]) -> list[int] | None:
    """Read the layers' numbers from names.

    A number counts that follows ``layer``, ``layers``, ``block``, ``blocks``, ``h.`` or ``L``, or is the whole name.
    Where not every name has one, the only number in which the names differ counts. None when there is no such number.
    """
    matches = [_LAYER_NUMBER.search(key) for key in keys]
    if all(matches):
        return [int(match[match.lastindex or 0]) for match in matches if match]
    numbers = [tuple(map(int, re.findall(r"\d+", key))) for key in keys]
    if len({len(line) for line in numbers}) == 1 and len(keys) > 1:
        differing = [column for column in zip(*numbers, strict=True) if len(set(column)) > 1]
        if len(differing) == 1:
            return list(differing[0])
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception, expected: str = "") -> InputError:
    """One line for a file that cannot be read."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    return InputError(f"{path}: {f'not {expected}' if expected else 'cannot be read'} ({reason})")


def _detect(paths: Sequence[Path]) -> str:
    found: dict[str, Path] = {}
    for path in paths:
        kind = "saelens" if path.is_dir() else _SUFFIXES.get(path.suffix.lower())
        if kind is None:
            known = "; ".join(FORMATS.values())
            raise InputError(f"{path}: unknown format; known are {known}")
        found.setdefault(kind, path)
    if len(found) > 1:
        (kind, path), (other_kind, other_path) = list(found.items())[:2]
        raise InputError(f"{path} is {kind} and {other_path} is {other_kind}: all sources must be of one format")
    return next(iter(found))


def _npy_part(path: Path) -> Part:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(path, error, "a readable .npy file") from None
    if not isinstance(array, np.ndarray):  # an archive of several arrays under the wrong name
        raise InputError(f"{path} is an .npz archive: unpack it, its .npy files can be imported")
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"{path} holds {array.dtype}, expected real numbers; bfloat16 does not survive in .npy, use float32"
        )
    return Part(name=path.name, key=path.stem, array=array)


def _assemble(
    kind: str,
    settings: ForeignSettings,
    parts: Sequence[Part],
    *,
    files: Sequence[Path],
    tokens: Mapping[str, Any] | None = None,
    close: Callable[[], None] = lambda: None,
) -> ForeignSource:
    """Number the layers."""
    if not parts:
        chosen = f" that matches {settings.select!r}" if settings.select is not None else ""
        raise InputError(f"{files[0]}: holds no activations{chosen}")
    for part in parts:
        if len(part.array.shape) not in (2, 3) or 0 in part.array.shape:
            raise InputError(
                f"{part.name} has shape {tuple(part.array.shape)}, expected (rows, neurons) or (layers, rows, neurons)"
            )
    stacked = [part for part in parts if len(part.array.shape) == 3]
    if stacked and len(parts) > 1:
        raise InputError(f"{stacked[0].name} holds several layers, {tuple(stacked[0].array.shape)}: then give it alone")
    if stacked:
        part = stacked[0]
        count = part.array.shape[0]
        entries = [(f"{part.name}[{index}]", LayerOf(part.array, index)) for index in range(count)]
        numbers = list(settings.layers or range(count))
    else:
        parts = sorted(parts, key=lambda part: natural(part.key)) if settings.layers is None else parts
        entries = [(part.name, part.array) for part in parts]
        numbers = list(settings.layers or layer_numbers([part.key for part in parts]) or range(len(parts)))
    if len(numbers) != len(entries):
        raise InputError(f"{len(numbers)} layer numbers were given, the source has {len(entries)} layers")
    layers: dict[int, RowSource] = {}
    origins: dict[int, str] = {}
    for number, (name, array) in sorted(zip(numbers, entries, strict=True), key=lambda entry: entry[0]):
        if number in layers:
            raise InputError(
                f"{origins[number]} and {name} are both layer {number}: give one of them, or number the layers yourself"
            )
        layers[number], origins[number] = array, name
    return ForeignSource(format=kind, layers=layers, origins=origins, tokens=tokens or {}, files=tuple(files), _close=close)


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which 2 comes before 10."""
    return [(0, int(run), "") if run.isdecimal() else (1, 0, run) for run in re.findall(r"\d+|\D+", text)]


def json_text(data: bytes, path: Path, expected: str) -> Any:
    """Parse JSON, or say that the file is not what was expected."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise unreadable(path, error, expected) from None
