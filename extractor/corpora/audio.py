"""Speech with timed words: tables (JSON lines or Parquet) of utterances that name their audio files."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from neuronlake.extractor.corpora.files import SourceFile, check_settings, digest, identify
from neuronlake.extractor.corpora.records import Utterance, Word
from neuronlake.extractor.corpora.sound import Sound, open_sound
from neuronlake.extractor.corpora.spans import lay_out
from neuronlake.extractor.corpora.table import RESERVED_LABELS, identifier, read_records, scalar, table_files
from neuronlake.store.errors import InputError

TOLERANCE_S = 0.01
"""How far a word may reach beyond its utterance: aligners round to hundredths of a second."""

_OWN_COLUMNS = frozenset({"audio", "start", "end", "words", "document", "name"})
_WORD_COLUMNS = frozenset({"form", "start", "end"})
_OWN_METADATA = ("audio", "audio_sha256", "sampling_rate", "first_sample", "samples")


@dataclass(frozen=True, kw_only=True)
class AudioCorpus:
    """Utterances, one JSON object a line or one Parquet row for each.

    ``audio`` names the file, relative to the table's folder; ``start`` and ``end`` (seconds) cut the utterance out of a
    longer recording. ``words`` is a list of objects with ``form``, ``start`` and ``end``, in seconds from the beginning of
    the *file*; every other key of a word is a label (null and ``""`` mean absent, other scalars become strings). Words
    stand in the order of time and do not overlap; what lies between them is silence or noise. ``document`` (by default the
    audio file) and ``name`` are ids; any other scalar is metadata of the utterance.

    The metadata of an utterance also says where its sound is: ``audio``, ``audio_sha256``, ``sampling_rate``,
    ``first_sample`` and ``samples``.
    """

    paths: tuple[Path, ...]
    """Files and folders; of a folder every ``*.jsonl``, ``*.jsonl.gz`` and ``*.parquet``, at any depth, sorted."""
    limit_sentences: int | None = None
    """Stop after so many utterances of the whole corpus."""

    def __post_init__(self) -> None:
        check_settings(self.paths, self.limit_sentences)

    def sentences(self) -> Iterator[Utterance]:
        """Yield every utterance in file order.

        Raises
        ------
        InputError
            At the first missing, unreadable or malformed file, naming file, line (or row) and word.
        """
        return islice(self._utterances(), self.limit_sentences)

    def identity(self) -> dict[str, Any]:
        """Return what determines the stream: of the audio files their number and one hash over name and content of each."""
        files = self._tables()
        named = islice(
            ((file, _audio_path(file, place, record)) for file in files for place, record in read_records(file)),
            self.limit_sentences,
        )
        digests = {(file.name, name): digest(path) for file, (name, path) in dict.fromkeys(named)}
        lines = "".join(f"{table}\t{name}\t{sha256}\n" for (table, name), sha256 in digests.items())
        return {
            "kind": "audio",
            "files": identify(files),
            "audio": {"files": len(digests), "sha256": hashlib.sha256(lines.encode()).hexdigest()},
            "limit_sentences": self.limit_sentences,
        }

    def locate(self, source: str, audio: str) -> Path:
        """Return the path of an audio file from the names in a lake: the table, and the file as the table names it.

        Raises
        ------
        InputError
            When the corpus has no such table.
        """
        tables = {file.name: file.path for file in self._tables()}
        if source not in tables:
            raise InputError(f"no table {source} in the corpus: it has {', '.join(tables)}")
        return tables[source].parent / audio

    def _tables(self) -> list[SourceFile]:
        return table_files(self.paths, hint=": a table of utterances, which names the audio files")

    def _utterances(self) -> Iterator[Utterance]:
        for file in self._tables():
            known: tuple[Path, Sound, str] | None = None  # the last audio file: recordings come utterance by utterance
            for ordinal, (place, record) in enumerate(read_records(file), start=1):
                name, path = _audio_path(file, place, record)
                if known is None or known[0] != path:
                    known = path, _open(path, place), digest(path)
                yield _utterance(file, place, record, ordinal, name, known[1], known[2])


def _audio_path(file: SourceFile, place: str, record: Mapping[str, Any]) -> tuple[str, Path]:
    name = record.get("audio")
    if not isinstance(name, str) or not name:
        raise InputError(f"{place}: audio must name a file, relative to the table's folder, got {name!r}")
    path = file.path.parent / name
    if not path.is_file():
        raise InputError(f"{place}: no audio file {path}; expected a path relative to the table's folder")
    return name, path


def _open(path: Path, place: str) -> Sound:
    try:
        sound = open_sound(path)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    if sound.channels != 1:
        raise InputError(
            f"{place}: {path.name} has {sound.channels} channels, expected 1; mix or choose one: "
            f"ffmpeg -i {path.name} -ac 1 mono.wav, or sox {path.name} left.wav remix 1"
        )
    return sound


def _utterance(
    file: SourceFile, place: str, record: Mapping[str, Any], ordinal: int, audio: str, sound: Sound, sha256: str
) -> Utterance:
    first, samples = _stretch(record, sound, place)
    entries = record.get("words")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{place}: words must be a list of at least one object with form, start and end, got {entries!r}")
    bounds = first / sound.sampling_rate, (first + samples) / sound.sampling_rate
    times = _times(entries, bounds, place)
    forms = [entry["form"] for entry in entries]
    text, spans = lay_out(forms, [True] * len(forms))
    words = (
        Word(form=form, start=start, end=end, labels=_labels(entry, f"{place}: words[{index}] {form!r}"))
        for index, (form, (start, end), entry) in enumerate(zip(forms, spans, entries, strict=True))
    )
    return Utterance(
        text=text,
        words=tuple(words),
        name=identifier(record, "name", place) or f"{file.stem}:{ordinal}",
        document=identifier(record, "document", place) or audio,
        source=file.name,
        place=place,
        metadata={
            "audio": audio,
            "audio_sha256": sha256,
            "sampling_rate": str(sound.sampling_rate),
            "first_sample": str(first),
            "samples": str(samples),
            **_metadata(record, place),
        },
        audio=sound.path,
        sampling_rate=sound.sampling_rate,
        first_sample=first,
        samples=samples,
        times=times,
    )


def _stretch(record: Mapping[str, Any], sound: Sound, place: str) -> tuple[int, int]:
    """Return first sample and number of samples of the utterance."""
    length_s = sound.samples / sound.sampling_rate
    start = 0.0 if record.get("start") is None else _seconds(record["start"], f"{place}: start")
    end = length_s if record.get("end") is None else _seconds(record["end"], f"{place}: end")
    if not 0 <= start < end <= length_s + TOLERANCE_S:
        raise InputError(
            f"{place}: the utterance runs from {start:g} to {end:g} s, expected a stretch of {sound.path.name}, "
            f"which runs from 0 to {length_s:g} s"
        )
    first = round(start * sound.sampling_rate)
    return first, min(round(end * sound.sampling_rate), sound.samples) - first


def _times(entries: Sequence[Any], bounds: tuple[float, float], place: str) -> tuple[tuple[float, float], ...]:
    times: list[tuple[float, float]] = []
    for index, entry in enumerate(entries):
        where = f"{place}: words[{index}]"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected an object with form, start and end, got {entry!r}")
        form = entry.get("form")
        if not isinstance(form, str) or not form.strip():
            raise InputError(f"{where}: form must be a string that is not blank, got {form!r}")
        where = f"{where} {form!r}"
        start, end = (_seconds(entry.get(key), f"{where}: {key}") for key in ("start", "end"))
        if end <= start:
            raise InputError(f"{where}: ends at {end:g} s, expected an end after its start at {start:g} s")
        if start < bounds[0] - TOLERANCE_S or end > bounds[1] + TOLERANCE_S:
            raise InputError(
                f"{where}: said from {start:g} to {end:g} s, outside the utterance from {bounds[0]:g} to {bounds[1]:g} s; "
                "times count from the beginning of the audio file"
            )
        if times and start < times[-1][1]:
            earlier = f"words[{index - 1}] {entries[index - 1]['form']!r}"
            fault = "overlaps" if end > times[-1][0] else "comes before"
            raise InputError(
                f"{where}: starts at {start:g} s and {fault} {earlier}, which ends at {times[-1][1]:g} s; "
                "expected words in the order of time, each after the end of the one before"
            )
        times.append((start, end))
    return tuple(times)


def _seconds(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{what} must be a number of seconds, got {value!r}")
    return float(value)


def _labels(entry: Mapping[str, Any], where: str) -> dict[str, str]:
    labels = {}
    for key, value in entry.items():
        if key in _WORD_COLUMNS:
            continue
        if key in RESERVED_LABELS or not key:
            raise InputError(f"{where}: {key!r} cannot be the name of a label, neuronlake uses it itself; rename the key")
        if text := scalar(value, key, where):
            labels[key] = text
    return labels


def _metadata(record: Mapping[str, Any], place: str) -> dict[str, str]:
    metadata = {}
    for key, value in record.items():
        if key in _OWN_COLUMNS:
            continue
        if key in _OWN_METADATA:
            raise InputError(f"{place}: {key!r} is metadata that neuronlake adds itself; rename the key")
        if text := scalar(value, key, place):
            metadata[key] = text
    return metadata
