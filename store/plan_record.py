"""The plan's record: written when planning is complete, so that a half-written plan is never used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import neuronlake.store.layout as layout
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import FileRecord, seal, sync_folder, unseal, write_file
from neuronlake.store.spec import LakeSpec, dump_metadata, metadata_files


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """Summary of a finished plan."""

    fingerprint: str
    """Of the lake's spec."""
    blocks: int
    label_columns: tuple[str, ...]
    """Word label columns of the whole corpus, sorted."""
    counts: Mapping[str, int]
    """documents, sentences, words, tokens, special, multi, uncovered, words_unreached, truncated_sequences, …"""
    special_tokens: Mapping[str, str]
    """Token id (as a string, for JSON) → its text."""
    files: Mapping[str, FileRecord] = field(repr=False)
    """Path → size and checksum, of every table and Zarr metadata file."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "fingerprint": self.fingerprint,
            "blocks": self.blocks,
            "label_columns": list(self.label_columns),
            "counts": dict(self.counts),
            "special_tokens": dict(self.special_tokens),
            "files": [record.as_dict() for record in self.files.values()],
        }


def publish_plan(root: Path, spec: LakeSpec, record: PlanRecord) -> PlanRecord:
    """Write the arrays' metadata, then the plan record: from here on blocks can be committed.

    `record.files` holds the tables and the root's metadata; the record returned holds the arrays' metadata too.
    """
    files = dict(record.files)
    for path, metadata in metadata_files(spec, record.blocks).items():
        files[path] = write_file(root, path, [dump_metadata(metadata)])
        sync_folder((root / path).parent)
    complete = PlanRecord(
        fingerprint=record.fingerprint,
        blocks=record.blocks,
        label_columns=record.label_columns,
        counts=record.counts,
        special_tokens=record.special_tokens,
        files=files,
    )
    for folder in ("plan", "words", "sentences", "activations", "."):
        if (root / folder).is_dir():
            sync_folder(root / folder)
    write_file(root, layout.PLAN_RECORD, [seal(complete.as_dict())])
    sync_folder((root / layout.PLAN_RECORD).parent)
    return complete


def read_plan_record(root: Path) -> PlanRecord | None:
    """Return the plan record, or None when planning has not finished.

    Raises
    ------
    DamageError
        When the record does not match its checksum.
    """
    path = root / layout.PLAN_RECORD
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"could not read {path}: {error.strerror}") from None
    record = unseal(data, str(path))
    try:
        return PlanRecord(
            fingerprint=record["fingerprint"],
            blocks=record["blocks"],
            label_columns=tuple(record["label_columns"]),
            counts=record["counts"],
            special_tokens=record["special_tokens"],
            files={entry["path"]: FileRecord(**entry) for entry in record["files"]},
        )
    except (KeyError, TypeError) as error:
        raise DamageError(f"{path} lacks {error}") from None
