"""What a speech model reads: its feature extractor, the grid of its frames, and which utterances may share a batch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.batching import plan_batches
from neuronlake.extractor.frames import FrameGrid
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.transformers_glue import LOAD_ERRORS, first_line
from neuronlake.store.errors import InputError

_WAVEFORM = frozenset({"data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm"})
"""Model types that convolve the waveform itself, without padding, to frames of 20 ms."""
_MASKED = _WAVEFORM - {"data2vec-audio"}
"""Those whose attention mask hides padding from real frames, where nothing normalises over time (see `FrontEnd.masked`)."""
_MEL = frozenset({"whisper"})
SPEECH = _WAVEFORM | _MEL
"""Model types that read audio."""


@dataclass(frozen=True, kw_only=True)
class SpeechInputs:
    """A batch as a speech model reads it."""

    values: NDArray[np.float32]
    """(utterances, samples), padded with 0, or (utterances, mel bins, time)."""
    mask: NDArray[np.bool_]
    """(utterances, samples) which of them are real. All are, unless `FrontEnd.masked`: then it makes no difference."""
    frames: int
    """That the model gives for each utterance, padding included."""


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """From samples to a speech model's inputs. Takes the place that the tokenizer has for text."""

    extractor: Any = field(repr=False)
    """The checkpoint's feature extractor, of transformers."""
    grid: FrameGrid
    window: int | None
    """Frames of every forward pass (Whisper's 30 s, whatever the utterance's length); None: as many as the audio has."""
    masked: bool
    """Whether utterances of different lengths may share a batch, padded and with an attention mask.

    Exact only where nothing but attention looks across time: wav2vec 2.0 and its kin with `feat_extract_norm` = ``layer``.
    With ``group`` the first convolution is normalised over all time steps, padding included, and such checkpoints must not
    get a mask at all; data2vec's positional convolutions and HuBERT's `conv_pos_batch_norm` turn padding into non-zeros
    that the frames beside it see. Those models get utterances of equal length, or one at a time.
    """
    sha256: str

    @classmethod
    def load(cls, source: ModelSource, *, trust_remote_code: bool = False) -> "FrontEnd":
        """Load the feature extractor of a speech model.

        Raises
        ------
        InputError
            When the model reads no audio, or its feature extractor is missing or does not fit.
        """
        from transformers import AutoConfig, AutoFeatureExtractor
        from transformers.feature_extraction_utils import FeatureExtractionMixin

        try:
            config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        except LOAD_ERRORS as error:
            raise InputError(f"could not read the model in {source.folder}: {first_line(error)}") from error
        if config.model_type not in SPEECH:
            raise InputError(
                f"{source.name} ({config.model_type}) reads no audio that neuronlake knows of: "
                f"known are {', '.join(sorted(SPEECH))}; text comes with --conllu, --text or --table"
            )
        try:
            extractor = AutoFeatureExtractor.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
            settings, _ = FeatureExtractionMixin.get_feature_extractor_dict(source.folder)
        except LOAD_ERRORS as error:
            raise InputError(
                f"could not load a feature extractor from {source.folder}: {first_line(error)}; "
                "expected a preprocessor_config.json beside the weights"
            ) from error
        sha256 = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        if config.model_type in _MEL:
            return cls._mel(config, extractor, sha256, source)
        masked = (
            config.model_type in _MASKED
            and config.feat_extract_norm == "layer"
            and not getattr(config, "conv_pos_batch_norm", False)
        )
        grid = FrameGrid.of_convolutions(
            list(config.conv_kernel), list(config.conv_stride), sampling_rate=int(extractor.sampling_rate)
        )
        return cls(extractor=extractor, grid=grid, window=None, masked=masked, sha256=sha256)

    @classmethod
    def _mel(cls, config: Any, extractor: Any, sha256: str, source: ModelSource) -> "FrontEnd":
        stride = 2  # of the encoder's second convolution; the first has 1, both pad by 1 so that centres stay
        window = int(config.max_source_positions)
        if extractor.nb_max_frames != stride * window or extractor.feature_size != config.num_mel_bins:
            raise InputError(
                f"{source.name}: its extractor gives {extractor.feature_size} × {extractor.nb_max_frames} mel frames, "
                f"the encoder takes {config.num_mel_bins} × {stride * window}: preprocessor_config.json is of another model"
            )
        if extractor.dither:
            raise InputError(
                f"{source.name}: its feature extractor adds random noise (dither {extractor.dither}); set it to 0"
            )
        grid = FrameGrid.of_windows(hop=stride * int(extractor.hop_length), sampling_rate=int(extractor.sampling_rate))
        return cls(extractor=extractor, grid=grid, window=window, masked=False, sha256=sha256)

    def identity(self) -> dict[str, Any]:
        """Return what decides the model's inputs: the feature extractor's settings as a hash."""
        return {"class": type(self.extractor).__name__, "sha256": self.sha256}

    def batches(self, samples: Sequence[int], *, batch_tokens: int) -> list[list[int]]:
        """Group utterances into batches: a pure decision.

        Parameters
        ----------
        samples
            Of each utterance.
        batch_tokens
            Largest number of frames in a batch, padding included. A longer utterance has a batch of its own.
        """
        if self.window is not None:
            size = max(1, batch_tokens // self.window)
            return [list(range(first, min(first + size, len(samples)))) for first in range(0, len(samples), size)]
        frames = [self.grid.count(count) for count in samples]
        if self.masked:
            return plan_batches(frames, batch_tokens=batch_tokens)
        batches = []
        for length in sorted(set(samples), reverse=True):  # the longest first, so that a lack of memory shows at once
            alike = [index for index, count in enumerate(samples) if count == length]
            size = max(1, batch_tokens // self.grid.count(length))
            batches += [alike[first : first + size] for first in range(0, len(alike), size)]
        return batches

    def inputs(self, waveforms: Sequence[NDArray[np.float32]]) -> "SpeechInputs":
        """Return what the model reads for one batch.

        Every utterance is normalised by itself, so that its inputs do not depend on what else is in the batch.
        """
        features = [self._features(waveform) for waveform in waveforms]
        if self.window is not None:
            mask = np.ones((len(features), self.window), dtype=np.bool_)  # the silence after the audio is seen too
            return SpeechInputs(values=np.stack(features), mask=mask, frames=self.window)
        longest = max(len(line) for line in features)
        values = np.zeros((len(features), longest), dtype=np.float32)
        mask = np.zeros((len(features), longest), dtype=np.bool_)
        for index, line in enumerate(features):
            values[index, : len(line)], mask[index, : len(line)] = line, True
        if not (self.masked or mask.all()):
            raise ValueError("utterances of different lengths in one batch of a model that sees the padding")
        return SpeechInputs(values=values, mask=mask, frames=self.grid.count(longest))

    def _features(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        found = self.extractor(waveform, sampling_rate=self.grid.sampling_rate, return_tensors="np")
        (values,) = found["input_values" if self.window is None else "input_features"]
        return np.asarray(values, dtype=np.float32)
