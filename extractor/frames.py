"""From utterances to the sequences of the forward passes: frames of the encoder's output instead of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.align import align_times
from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.corpora.records import Utterance
from neuronlake.extractor.sequences import Sequence, SequenceSettings
from neuronlake.store.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FrameGrid:
    """When the frames of a speech encoder are: the arithmetic of its convolutions."""

    sampling_rate: int
    """Hertz."""
    hop: int
    """Samples from one frame to the next: the product of the strides."""
    needed: int
    """Samples without which there is no frame."""
    first_centre: float
    """Centre of frame 0, in samples from the beginning of the utterance. Sample j lasts from j to j + 1."""

    @classmethod
    def of_convolutions(cls, kernels: list[int], strides: list[int], *, sampling_rate: int) -> "FrameGrid":
        """Return the grid of convolutions without padding, one after the other (wav2vec 2.0 and its kin).

        The receptive field of a frame is R = 1 + Σ_l (k_l − 1)·Π_{m<l} s_m samples, the hop S = Π_l s_l (Araujo et al. 2019,
        "Computing receptive fields of convolutional neural networks", Distill). Frame i sees samples [i·S, i·S + R), its
        centre is i·S + R/2, and n samples give ⌊(n − R)/S⌋ + 1 frames: the same as the floors of layer after layer.
        """
        field, hop = 1, 1
        for kernel, stride in zip(kernels, strides, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return cls(sampling_rate=sampling_rate, hop=hop, needed=field, first_centre=field / 2)

    @classmethod
    def of_windows(cls, *, hop: int, sampling_rate: int) -> "FrameGrid":
        """Return the grid of centred windows (Whisper): frame i looks at what is around sample i·S.

        Frames whose centre is in the real audio, not in the silence after it, are ⌊(n − 1)/S⌋ + 1.
        """
        return cls(sampling_rate=sampling_rate, hop=hop, needed=1, first_centre=0.0)

    def count(self, samples: int) -> int:
        """Return the number of frames of that many samples."""
        return max(0, (samples - self.needed) // self.hop + 1)

    def samples(self, frames: int) -> int:
        """Return the least number of samples that gives so many frames."""
        return (frames - 1) * self.hop + self.needed

    def centres(self, frames: int, *, first_sample: int = 0) -> NDArray[np.float64]:
        """Return the centre of every frame, (frames,), in seconds from the beginning of the file."""
        return (first_sample + np.arange(frames) * self.hop + self.first_centre) / self.sampling_rate

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form, as the lake's spec holds it."""
        return dict(self.__dict__)


def make_frame_sequences(corpus: AudioCorpus, grid: FrameGrid, settings: SequenceSettings) -> Iterator[Sequence]:
    """Yield one sequence for every utterance of a corpus.

    Raises
    ------
    InputError
        When an utterance has another sampling rate than the model, is shorter than one frame, or is too long and
        `settings.on_long` is not ``truncate``; when utterances are to be joined or split.
    """
    if settings.context != "sentence":
        raise InputError(
            f"context {settings.context!r}: a speech model reads utterance by utterance: use --context sentence, "
            "and cut long utterances by start and end in the table"
        )
    document = None
    for utterance in corpus.sentences():
        opens = document != (document := (utterance.source, utterance.document))
        yield _sequence(utterance, grid, settings, opens)


def _sequence(utterance: Utterance, grid: FrameGrid, settings: SequenceSettings, opens: bool) -> Sequence:
    if utterance.sampling_rate != grid.sampling_rate:
        audio = utterance.audio.name
        raise InputError(
            f"{utterance.place}: {audio} is sampled at {utterance.sampling_rate} Hz, the model expects "
            f"{grid.sampling_rate} Hz; convert it: ffmpeg -i {audio} -ar {grid.sampling_rate} converted.wav, "
            f"or sox {audio} -r {grid.sampling_rate} converted.wav"
        )
    frames = grid.count(utterance.samples)
    if frames < 1:
        raise InputError(
            f"{utterance.place}: utterance {utterance.name!r} has {utterance.samples} samples, the model needs "
            f"{grid.needed} for one frame: leave it out"
        )
    if truncated := frames > settings.max_tokens:
        if settings.on_long != "truncate":
            raise InputError(_too_long(utterance, frames, grid, settings))
        frames = settings.max_tokens
    alignment = align_times(
        starts=[start for start, _ in utterance.times],
        ends=[end for _, end in utterance.times],
        centres=grid.centres(frames, first_sample=utterance.first_sample),
    )
    return Sequence(
        sentences=(utterance,),
        ids=np.zeros(frames, dtype=np.int32),  # a frame has no id, and −1 means padding
        alignment=alignment,
        sentence=np.zeros(frames, dtype=np.int64),
        spans=_spans(utterance, alignment.word),
        truncated=truncated,
        new_document=opens,
    )


def _spans(utterance: Utterance, word: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return (frames, 2): the characters of the frame's word; of silence the place after the last word, of no width."""
    spans = np.array([(each.start, each.end) for each in utterance.words], dtype=np.int32)
    latest = np.maximum.accumulate(word)  # the last word with a frame so far
    silent = np.where(latest >= 0, spans[latest, 1], 0)
    return np.where((word >= 0)[:, None], spans[word], silent[:, None]).astype(np.int32)


def _too_long(utterance: Utterance, frames: int, grid: FrameGrid, settings: SequenceSettings) -> str:
    seconds = utterance.samples / grid.sampling_rate
    limit = settings.max_tokens * grid.hop / grid.sampling_rate
    return (
        f"{utterance.place}: utterance {utterance.name!r} has {frames} frames ({seconds:.1f} s), the limit is "
        f"{settings.max_tokens} ({limit:.1f} s): cut it into shorter ones (start and end in the table), "
        "or use --on-long truncate"
    )
