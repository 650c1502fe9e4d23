"""Activations cached by SAELens' CacheActivationsRunner: a Hugging Face data set on disk, read with pyarrow alone.

A folder has ``data-*.arrow`` (Arrow streams, listed in ``state.json``), a column per hook such as
``blocks.3.hook_mlp_out`` whose entries are (context, neurons), and in newer versions ``token_ids``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronlake.store.errors import InputError
from neuronlake.store.foreign import ForeignSettings, Part, json_text, unreadable

_TOKEN_IDS = "token_ids"


class HookColumn:
    """Contexts behind each other: (rows, neurons) of one hook, memory-mapped.

    Parameters
    ----------
    where
        Folder and column, for messages.
    chunks
        The column as Arrow arrays of lists of lists.
    """

    def __init__(self, where: str, chunks: Sequence[Any]):
        self._where = where
        self._chunks = [_storage(chunk) for chunk in chunks if len(chunk)]
        if not self._chunks:
            raise InputError(f"{where}: holds no context")
        self.context = _list_length(self._chunks[0], where)
        self.neurons = _list_length(self._chunks[0].slice(0, 1).flatten(), where)
        for chunk in self._chunks:
            if _list_length(chunk, where) != self.context or _list_length(chunk.flatten(), where) != self.neurons:
                raise InputError(f"{where}: not all contexts are {self.context} tokens × {self.neurons} neurons")
        self._starts = np.cumsum([0, *map(len, self._chunks)])  # in contexts
        self.contexts = int(self._starts[-1])
        self.shape = (self.contexts * self.context, self.neurons)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return rows ``[first:last]``; whole contexts are mapped, and only those of these rows."""
        first, last, _ = rows.indices(self.shape[0])
        first_context, last_context = first // self.context, -(-last // self.context)
        pieces = []
        for start, chunk in zip(self._starts[:-1].tolist(), self._chunks, strict=True):
            begin, end = max(first_context, start), min(last_context, start + len(chunk))
            if begin < end:
                values = chunk.slice(begin - start, end - begin).flatten().flatten()
                if values.null_count:
                    raise InputError(f"{self._where}: a value is missing in contexts {begin} to {end - 1}")
                pieces.append(values.to_numpy(zero_copy_only=True).reshape(-1, self.neurons))
        skipped = first - first_context * self.context
        rows_found = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return rows_found[skipped : skipped + last - first]


def open_saelens(paths: Sequence[Path], settings: ForeignSettings) -> tuple[list[Part], dict[str, Any], tuple[Path, ...]]:
    """Open folders of one or more hooks each; return the hooks, the columns token_id and sentence, and all files.

    Raises
    ------
    InputError
        When a folder is no such export, is malformed, or two hooks are of different contexts.
    """
    parts: list[Part] = []
    files: list[Path] = []
    ids: NDArray[np.int32] | None = None
    for path in paths:
        names = _data_files(path)
        columns = _columns(path, names)
        files.extend(path / name for name in names)
        for name, chunks in columns.items():
            if _is_matrix(chunks[0].type):
                if settings.chosen(name):
                    parts.append(
                        Part(name=f"column {name!r} of {path.name}", key=name, array=HookColumn(f"{path}: {name}", chunks))
                    )
            elif name != _TOKEN_IDS and settings.select is None:
                raise InputError(
                    f"{path}: column {name!r} holds {chunks[0].type}, no (context, neurons): choose hooks by --select"
                )
        if _TOKEN_IDS in columns:
            found = _token_ids(path, columns[_TOKEN_IDS])
            if ids is not None and not np.array_equal(ids, found):
                raise InputError(f"{path} and {paths[0]} are of different tokens")
            ids = found
    if not parts:
        return [], {}, tuple(files)
    first = parts[0].array
    for part in parts:
        if (part.array.contexts, part.array.context) != (first.contexts, first.context):
            raise InputError(
                f"{part.name} has {part.array.contexts} contexts of {part.array.context} tokens, {parts[0].name} has "
                f"{first.contexts} of {first.context}"
            )
    tokens: dict[str, Any] = {"sentence": np.repeat(np.arange(first.contexts), first.context)}
    if ids is not None:
        if len(ids) != first.shape[0]:
            raise InputError(f"{paths[0]}: {len(ids)} token ids for {first.shape[0]} tokens")
        tokens["token_id"] = ids
    return parts, tokens, tuple(files)


def _data_files(path: Path) -> list[str]:
    state_path = path / "state.json"
    if not state_path.is_file():
        raise InputError(f"{path}: not a SAELens export (no state.json; give the folder that holds data-*.arrow)")
    expected = "a SAELens export"
    try:
        state = json_text(state_path.read_bytes(), state_path, expected)
    except OSError as error:
        raise unreadable(state_path, error) from None
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        indices = state.get("_indices_files") or state.get("_indices_data_files")
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{state_path}: not {expected} (it does not list data files)") from None
    if indices:
        raise InputError(f"{path}: its rows are reordered by an index file; save it again with datasets' flatten_indices()")
    if not names:
        raise InputError(f"{path}: not {expected} (it lists no data file)")
    return names


def _columns(path: Path, names: list[str]) -> dict[str, list[Any]]:
    """Column → its chunks, memory-mapped."""
    columns: dict[str, list[Any]] = {}
    schema = None
    for name in names:
        try:
            table = pa.ipc.open_stream(pa.memory_map(str(path / name))).read_all()
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path / name, error, "a readable Arrow stream") from None
        if schema is not None and table.schema.names != schema.names:
            raise InputError(f"{path / name}: other columns than {names[0]}")
        schema = table.schema
        for column in table.schema.names:
            columns.setdefault(column, []).extend(table.column(column).chunks)
    if not columns or not all(columns.values()):
        raise InputError(f"{path}: holds no context")
    return columns


def _storage(array: Any) -> Any:
    """Plain lists, where `datasets` is imported too and its extension types are known to Arrow."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_matrix(kind: Any) -> bool:
    kind = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
    return (
        _is_list(kind)
        and _is_list(kind.value_type)
        and bool(pa.types.is_floating(kind.value_type.value_type) or pa.types.is_integer(kind.value_type.value_type))
    )


def _list_length(array: Any, where: str) -> int:
    """Length that all lists of an array have."""
    lengths = pc.min_max(pc.list_value_length(array)).as_py()
    if array.null_count or lengths["min"] != lengths["max"] or not lengths["min"]:
        raise InputError(f"{where}: contexts differ in shape ({lengths['min']} and {lengths['max']}), or one is missing")
    return int(lengths["min"])


def _token_ids(path: Path, chunks: Sequence[Any]) -> NDArray[np.int32]:
    try:
        flat = pa.chunked_array([_storage(chunk).flatten() for chunk in chunks]).cast(pa.int32())
    except (pa.ArrowException, AttributeError):
        raise InputError(f"{path}: column {_TOKEN_IDS!r} holds {chunks[0].type}, expected lists of whole numbers") from None
    if flat.null_count:
        raise InputError(f"{path}: a token id is missing")
    return np.asarray(flat.to_numpy(), dtype=np.int32)
