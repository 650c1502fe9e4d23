"""Samples of an audio file: WAV by itself, other formats through the soundfile library where it is installed."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_OF_UNKNOWN_LENGTH = 0xFFFFFFFF  # written by programs that stream into a pipe: the data end where the file does


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """What an audio file says of itself, and where its samples are."""

    path: Path
    sampling_rate: int
    """Hertz."""
    samples: int
    """Per channel."""
    channels: int
    layout: "_Layout | None" = None
    """Of a WAV file; None: soundfile reads it."""

    def read(self, first: int, count: int) -> NDArray[np.float32]:
        """Return samples [first, first + count) of a file of one channel.

        Returns
        -------
        float32 (count,), in [−1, 1] for whole-number formats: a value of b bits is divided by 2^(b−1).

        Raises
        ------
        InputError
            When the file cannot be read or ends before.
        """
        values = self._decode(first, count) if self.layout is None else self.layout.decode(self.path, first, count)
        if len(values) != count:
            raise InputError(f"{self.path}: ends at sample {first + len(values)}, expected {first + count}: it is cut short")
        return values

    def _decode(self, first: int, count: int) -> NDArray[np.float32]:
        soundfile = _soundfile(self.path)
        try:
            values, _ = soundfile.read(self.path, start=first, frames=count, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise InputError(f"{self.path}: cannot be read as audio ({error})") from error
        return np.ascontiguousarray(values[:, 0], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where the samples of a WAV file are."""

    offset: int
    """Of the first sample, in bytes."""
    is_float: bool
    width: int
    """Bytes of a sample."""

    def decode(self, path: Path, first: int, count: int) -> NDArray[np.float32]:
        try:
            with path.open("rb") as file:
                file.seek(self.offset + first * self.width)
                data = file.read(count * self.width)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
        data = data[: len(data) // self.width * self.width]
        if self.is_float:
            return np.frombuffer(data, dtype=f"<f{self.width}").astype(np.float32)
        if self.width == 1:  # the only unsigned one
            return _scaled(np.frombuffer(data, dtype=np.uint8).astype(np.int16) - 128, bits=8)
        if self.width == 3:
            padded = np.zeros((len(data) // 3, 4), dtype=np.uint8)
            padded[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
            return _scaled(padded.view("<i4")[:, 0], bits=32)
        return _scaled(np.frombuffer(data, dtype=f"<i{self.width}"), bits=8 * self.width)


def _scaled(values: NDArray[np.signedinteger[Any]], *, bits: int) -> NDArray[np.float32]:
    return np.multiply(values.astype(np.float32), np.float32(2.0 ** (1 - bits)), dtype=np.float32)


def open_sound(path: Path) -> Sound:
    """Read the header of an audio file.

    WAV (RIFF) may hold whole numbers of 8, 16, 24 or 32 bits or floats of 32 or 64.

    Raises
    ------
    InputError
        When the file is missing or damaged, or of a format that this installation cannot read; says how to convert it.
    """
    try:
        with path.open("rb") as file:
            opening = file.read(12)
            if opening[:4] == b"RIFF" and opening[8:] == b"WAVE":
                return _wav(path, file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    soundfile = _soundfile(path)
    try:
        found = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{path}: not a format that soundfile reads ({error}); {_convert(path)}") from error
    return Sound(path=path, sampling_rate=int(found.samplerate), samples=int(found.frames), channels=int(found.channels))


def _wav(path: Path, file: BinaryIO) -> Sound:
    """Walk the chunks of a RIFF file (IBM and Microsoft 1991, Multimedia Programming Interface and Data Specifications)."""
    size = os.fstat(file.fileno()).st_size
    described: tuple[int, int, int, int] | None = None
    while len(header := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", header)
        start = file.tell()
        if kind == b"fmt ":
            described = _format(path, file.read(length))
        elif kind == b"data":
            if described is None:
                raise InputError(f"{path}: damaged WAV file: its samples come before their format")
            tag, channels, sampling_rate, width = described
            if length == _OF_UNKNOWN_LENGTH:
                length = size - start
            if start + length > size:
                raise InputError(
                    f"{path}: cut short: its header promises {length} bytes of samples, {size - start} are there; "
                    "fetch it again"
                )
            layout = _Layout(offset=start, is_float=tag == _FLOAT, width=width)
            samples = length // (width * channels)
            return Sound(path=path, sampling_rate=sampling_rate, samples=samples, channels=channels, layout=layout)
        file.seek(start + length + length % 2)
    raise InputError(f"{path}: damaged WAV file: it has no samples (no data chunk)")


def _format(path: Path, chunk: bytes) -> tuple[int, int, int, int]:
    """Return kind, channels, sampling rate and bytes of a sample."""
    if len(chunk) < 16:
        raise InputError(f"{path}: damaged WAV file: its format chunk has {len(chunk)} bytes, expected 16 or more")
    tag, channels, sampling_rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack("<H", chunk[24:26])
    if (tag, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise InputError(
            f"{path}: WAV format {tag} with {bits} bits; expected whole numbers (1) of 8, 16, 24 or 32 bits or floats (3) "
            f"of 32 or 64: {_convert(path)}"
        )
    if not channels or not sampling_rate:
        raise InputError(f"{path}: damaged WAV file: {channels} channels at {sampling_rate} Hz")
    return tag, channels, sampling_rate, bits // 8


def _soundfile(path: Path) -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: installed, but without its C library
        raise InputError(
            f"{path}: not a WAV file, and other formats need soundfile ({error}): pip install 'neuronlake[audio]', "
            f"or {_convert(path)}"
        ) from error
    return soundfile


def _convert(path: Path) -> str:
    return f"convert it: ffmpeg -i {path.name} -c:a pcm_s16le {path.stem}.wav"
