"""Where the sound of a lake's utterances is: read from the plan, found in the corpus, checked, and loaded."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.extractor.corpora.files import digest
from neuronlake.extractor.corpora.sound import Sound, open_sound
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import read_checked
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import PlanRecord
from neuronlake.store.tables import from_parquet

Locate = Callable[[str, str], Path]
"""From the names of a table and of an audio file, as the lake has them, to the file's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One utterance's stretch of an audio file."""

    source: str
    """Table that names the file."""
    audio: str
    """The file, as its table names it."""
    sha256: str
    """Of the whole file, when the lake was planned."""
    sampling_rate: int
    first_sample: int
    samples: int


def read_clips(root: LakePath, plan: PlanRecord, block: int) -> list[Clip]:
    """Return the clip of every sequence of a block of a speech lake.

    Raises
    ------
    DamageError
        When the sentences do not say where their sound is.
    """
    path = layout.table_path("sentences", block)
    table = from_parquet(read_checked(root, plan.files[path]), ["source", "metadata"])
    try:
        return [_clip(line["source"], json.loads(line["metadata"])) for line in table.to_pylist()]
    except (KeyError, ValueError) as error:
        raise DamageError(f"{root / path} does not say where the sound of its utterances is ({error})") from error


def _clip(source: str, metadata: Mapping[str, Any]) -> Clip:
    return Clip(
        source=source,
        audio=metadata["audio"],
        sha256=metadata["audio_sha256"],
        sampling_rate=int(metadata["sampling_rate"]),
        first_sample=int(metadata["first_sample"]),
        samples=int(metadata["samples"]),
    )


class ClipLoader:
    """Loads clips, after a check that each file is the one that was planned."""

    def __init__(self, locate: Locate):
        self._locate = locate
        self._checked: dict[tuple[str, str], Sound] = {}

    def load(self, clip: Clip) -> NDArray[np.float32]:
        """Return its samples, float32 (samples,).

        Raises
        ------
        InputError
            When the file is gone or is no longer the same.
        """
        key = clip.source, clip.audio
        if key not in self._checked:
            path = self._locate(*key)
            if not path.is_file():
                raise InputError(f"no audio file {path}: the lake was planned with it; put it back")
            if (sha256 := digest(path)) != clip.sha256:
                raise InputError(
                    f"{path} has changed since the lake was planned (sha256 {clip.sha256[:16]}… then, {sha256[:16]}… now): "
                    "put the file back, or make a new lake"
                )
            self._checked[key] = open_sound(path)
        return self._checked[key].read(clip.first_sample, clip.samples)
