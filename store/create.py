"""Start a lake, or recognise one that is already there."""

import contextlib
import errno
import json
from pathlib import Path
from typing import Any

import neuronlake.store.layout as layout
from neuronlake.store.commits import committed_blocks, read_commit
from neuronlake.store.errors import DamageError, InputError, StorageError
from neuronlake.store.files import (
    FileRecord,
    file_checksum,
    remove_folder,
    stale_temporaries,
    sync_folder,
    write_file,
)
from neuronlake.store.kept import KEPT
from neuronlake.store.label_sets import label_set_names
from neuronlake.store.lock import CLAIMS, LOCK_FILE
from neuronlake.store.objects import LakePath, ObjectPath
from neuronlake.store.plan_record import PLAN_ASIDE, read_plan_record
from neuronlake.store.spec import LakeSpec, dump_metadata, root_metadata


def read_spec(root: LakePath) -> LakeSpec:
    """Read the settings of the lake at `root`.

    Raises
    ------
    InputError
        When there is no lake.
    DamageError
        When its root metadata cannot be read.
    """
    path = root / layout.ROOT_METADATA
    try:
        attributes = json_object(path)["attributes"]
        ours = "neuronlake" in attributes
    except FileNotFoundError:
        if not root.exists():
            what = "the folder does not exist" if isinstance(root, Path) else "there is no such object"
            raise InputError(
                f"no lake at {root}: {what}; make one with `neuronlake extract {root} …` or `neuronlake import`"
            ) from None
        if lost_root_of(root):
            raise DamageError(
                f"{path} is missing, though {root} holds a lake: run `neuronlake verify {root} --repair`"
            ) from None
        raise InputError(f"{root} is not a lake: it has no {layout.ROOT_METADATA}") from None
    except (KeyError, TypeError):
        raise DamageError(f"{path} has no attributes: it is damaged") from None
    if not ours:
        if lost_root_of(root):
            raise DamageError(f"{path} lacks the attribute 'neuronlake', though {root} holds a lake: it is damaged")
        raise InputError(f"{root} is a Zarr group but not a lake: its attributes lack 'neuronlake'")
    if not isinstance(attributes["neuronlake"], dict):
        raise DamageError(f"{path} has no settings in its attributes: it is damaged")
    return LakeSpec.from_dict(attributes["neuronlake"], root)


def lost_root_of(root: LakePath) -> set[str]:
    """Return the fingerprints that the plan and commit records give: what a lake without root metadata was of.

    Records that are damaged, or older than their field, give none. One fingerprint is an answer; several are a mixture.
    """
    found = set()
    for path in (layout.PLAN_RECORD, PLAN_ASIDE):
        with contextlib.suppress(DamageError, InputError):
            if (plan := read_plan_record(root, path)) is not None:
                found.add(plan.fingerprint)
    return found | committed_fingerprints(root)


def committed_fingerprints(root: LakePath) -> set[str]:
    """Return the fingerprints of the lakes that the readable commit records were written for."""
    found = set()
    for block in committed_blocks(root):
        with contextlib.suppress(DamageError):
            if isinstance(fingerprint := read_commit(root, block).provenance.get("lake"), str):
                found.add(fingerprint)
    return found


def create_lake(root: LakePath, spec: LakeSpec) -> FileRecord:
    """Create the lake's folder and root metadata, or check that the lake there is the same one.

    Temporary files of dead processes are removed, and an unfinished plan with other settings is replaced: it holds nothing
    that the same command would not make again. Nothing else of an existing lake is touched; a committed block never.

    Raises
    ------
    InputError
        When the folder holds something else, or a lake with different settings (each difference is named).
    """
    path = root / layout.ROOT_METADATA
    if path.exists():
        existing = read_spec(root)
        if (differences := existing.differences(spec)) and unfinished(root):
            discard_unfinished(root)
            return create_lake(root, spec)
        if differences:
            raise InputError(
                f"{root} exists with a different plan ({'; '.join(differences[:4])}"
                f"{f'; and {len(differences) - 4} more' if len(differences) > 4 else ''}): "
                "choose another folder, or repeat the settings it was made with"
            )
        for temporary in stale_temporaries(root):
            remove_temporary(temporary)
        size, checksum = file_checksum(path)
        return FileRecord(path=layout.ROOT_METADATA, bytes=size, xxh3=checksum)
    if isinstance(root, ObjectPath) and root.is_file():
        raise InputError(f"{root} is an object, not a lake: choose another place")
    if root.exists() and (not root.is_dir() or any(map(_counts, root.iterdir()))):
        spec = _lost_spec(root, spec)
    for temporary in stale_temporaries(root):
        remove_temporary(temporary)
    try:
        record = write_file(root, layout.ROOT_METADATA, [dump_metadata(root_metadata(spec))], new=True)
    except FileExistsError:  # somebody else has just begun a lake there
        return create_lake(root, spec)
    sync_folder(root)
    return record


def unfinished(root: LakePath) -> bool:
    """Whether planning has not finished, no block was ever committed and no labels added: nothing of value would be lost."""
    records = (layout.PLAN_RECORD, PLAN_ASIDE)
    return not (any((root / record).exists() for record in records) or committed_blocks(root) or label_set_names(root))


def discard_unfinished(root: LakePath) -> None:
    """Remove what an unfinished plan left behind, and the lake's folder if nothing else is in it.

    Raises
    ------
    ValueError
        When the plan is or was finished, a block is committed or labels were added: that is not ours to discard.
    """
    if not unfinished(root):
        raise ValueError(f"{root} holds a plan record, committed blocks or labels: it is not ours to discard")
    for folder in ("plan", "words", "sentences", "activations", "scales", *KEPT):
        remove_folder(root / folder)
    (root / layout.ROOT_METADATA).unlink(missing_ok=True)
    if isinstance(root, Path):
        with contextlib.suppress(OSError):  # something else is in it, and stays
            root.rmdir()


def remove_temporary(path: Path) -> None:
    """Remove a temporary file, or a temporary folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def json_object(path: LakePath) -> dict[str, Any]:
    """Parse a JSON file, or raise DamageError; FileNotFoundError if there is none."""
    try:
        parsed = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None
    except StorageError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamageError(f"{path} cannot be read: {error}; see `neuronlake verify`") from None
    if not isinstance(parsed, dict):
        raise DamageError(f"{path} is not a JSON object: it is damaged")
    return parsed


def _counts(entry: LakePath) -> bool:
    return not entry.name.endswith(".tmp") and entry.name not in (LOCK_FILE, CLAIMS)


def _lost_spec(root: LakePath, spec: LakeSpec) -> LakeSpec:
    """Return the settings of a lake without root metadata, if its records say that it is the one asked for."""
    fingerprints = lost_root_of(root) if root.is_dir() else set()
    if not fingerprints:
        raise InputError(f"{root} exists and is not a lake: choose a new or empty folder")
    if fingerprints != {spec.fingerprint}:
        raise InputError(
            f"{root} has lost its {layout.ROOT_METADATA}, and its records are of a lake with other settings: "
            "repeat the settings it was made with, or choose another folder"
        )
    plan = read_plan_record(root)
    # the copy has the model's name of that time, which the fingerprint leaves out
    return spec if plan is None or plan.spec is None else LakeSpec.from_dict(plan.spec, root / layout.PLAN_RECORD)
