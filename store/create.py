"""Start a lake, or recognise one that is already there."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import neuronlake.store.layout as layout
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import FileRecord, file_checksum, stale_temporaries, sync_folder, write_file
from neuronlake.store.spec import LakeSpec, dump_metadata, root_metadata


def read_spec(root: Path) -> LakeSpec:
    """Read the settings of the lake at `root`.

    Raises
    ------
    InputError
        When there is no lake.
    DamageError
        When its root metadata cannot be read.
    """
    path = root / layout.ROOT_METADATA
    if not root.exists():
        raise InputError(f"no lake at {root}: the folder does not exist; make one with `neuronlake extract {root} …`")
    if not path.is_file():
        raise InputError(f"{root} is not a lake: it has no {layout.ROOT_METADATA}")
    try:
        attributes = json_object(path)["attributes"]
    except (KeyError, TypeError):
        raise DamageError(f"{path} has no attributes: it is damaged") from None
    if "neuronlake" not in attributes:
        raise InputError(f"{root} is a Zarr group but not a lake: its attributes lack 'neuronlake'")
    return LakeSpec.from_dict(attributes["neuronlake"], root)


def create_lake(root: Path, spec: LakeSpec) -> FileRecord:
    """Create the lake's folder and root metadata, or check that the lake there is the same one.

    Temporary files of dead processes are removed, and an unfinished plan with other settings is replaced: it holds nothing
    that the same command would not make again. Nothing else of an existing lake is touched.

    Raises
    ------
    InputError
        When the folder holds something else, or a lake with different settings (each difference is named).
    """
    path = root / layout.ROOT_METADATA
    if path.exists():
        existing = read_spec(root)
        if (differences := existing.differences(spec)) and not (root / layout.PLAN_RECORD).exists():
            discard_unfinished(root)
            return create_lake(root, spec)
        if differences:
            raise InputError(
                f"{root} exists with a different plan ({'; '.join(differences[:4])}"
                f"{f'; and {len(differences) - 4} more' if len(differences) > 4 else ''}): "
                "choose another folder, or repeat the settings it was made with"
            )
        for temporary in stale_temporaries(root):
            temporary.unlink(missing_ok=True)
        size, checksum = file_checksum(path)
        return FileRecord(path=layout.ROOT_METADATA, bytes=size, crc32c=checksum)
    if root.exists() and (not root.is_dir() or any(not entry.name.endswith(".tmp") for entry in root.iterdir())):
        raise InputError(f"{root} exists and is not a lake: choose a new or empty folder")
    record = write_file(root, layout.ROOT_METADATA, [dump_metadata(root_metadata(spec))])
    sync_folder(root)
    return record


def discard_unfinished(root: Path) -> None:
    """Remove what an unfinished plan left behind, and the lake's folder if nothing else is in it."""
    if (root / layout.PLAN_RECORD).exists():
        raise ValueError(f"the plan of {root} is finished: it is not ours to discard")
    for folder in ("plan", "words", "sentences", "activations"):
        shutil.rmtree(root / folder, ignore_errors=True)
    (root / layout.ROOT_METADATA).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it, and stays
        root.rmdir()


def json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file, or raise DamageError."""
    try:
        parsed = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamageError(f"{path} cannot be read: {error}") from None
    if not isinstance(parsed, dict):
        raise DamageError(f"{path} is not a JSON object")
    return parsed
