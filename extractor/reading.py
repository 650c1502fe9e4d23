"""How a model reads a corpus: text through its tokenizer, speech through its feature extractor."""

from collections.abc import Iterator
from typing import Any, Protocol

from neuronlake.extractor.capture import Batch, BlockPlan, Company, lay_out_rows, text_batches
from neuronlake.extractor.clips import ClipLoader, Locate
from neuronlake.extractor.corpora.audio import AudioCorpus
from neuronlake.extractor.corpora.records import Corpus
from neuronlake.extractor.frames import make_frame_sequences
from neuronlake.extractor.sequences import Sequence, SequenceSettings, make_sequences
from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.speech import SPEECH, FrontEnd
from neuronlake.extractor.tokenizer import Tokenizer
from neuronlake.store.errors import InputError


class Reader(Protocol):
    """Makes the rows of a corpus, and the forward passes of rows."""

    window: int | None
    """Rows that the model takes at most, where that is known apart from its configuration's context."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the rows, as entries of the lake's plan."""

    def special_texts(self) -> dict[str, str]:
        """Return id (as text) → text of every special token."""

    def sequences(self, corpus: Corpus, settings: SequenceSettings) -> Iterator[Sequence]:
        """Yield the sequences of a corpus in its order."""

    def batches(self, plan: BlockPlan, batch_tokens: int, company: Company) -> Iterator[Batch]:
        """Yield the forward passes of a block, see `neuronlake.extractor.capture.MakeBatches`."""


class TextReader:
    """Rows are tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self.window: int | None = None
        self._tokenizer = tokenizer

    def identity(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"tokenizer": self._tokenizer.identity()}

    def special_texts(self) -> dict[str, str]:
        """See `Reader`."""
        return self._tokenizer.special_texts()

    def sequences(self, corpus: Corpus, settings: SequenceSettings) -> Iterator[Sequence]:
        """See `Reader`."""
        return make_sequences(corpus, self._tokenizer, settings)

    def batches(self, plan: BlockPlan, batch_tokens: int, company: Company) -> Iterator[Batch]:
        """See `Reader`."""
        return text_batches(plan, batch_tokens, company)


class SpeechReader:
    """Rows are frames of the encoder's output.

    Parameters
    ----------
    front
        The model's feature extractor and frames.
    locate
        Finds the audio files that the plan names.
    """

    def __init__(self, front: FrontEnd, locate: Locate):
        self._front = front
        self._clips = ClipLoader(locate)
        self.window = front.window

    def identity(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"feature_extractor": self._front.identity(), "frames": self._front.grid.as_dict()}

    def special_texts(self) -> dict[str, str]:
        """See `Reader`: there is none."""
        return {}

    def sequences(self, corpus: Corpus, settings: SequenceSettings) -> Iterator[Sequence]:
        """See `Reader`."""
        if not isinstance(corpus, AudioCorpus):
            raise InputError(f"a {type(corpus).__name__} has no sound: a speech model reads an AudioCorpus (--audio)")
        return make_frame_sequences(corpus, self._front.grid, settings)

    def batches(self, plan: BlockPlan, batch_tokens: int, company: Company) -> Iterator[Batch]:  # noqa: ARG002  (the front end decides)
        """See `Reader`."""
        grid = self._front.grid
        # A truncated utterance ends with the last sample that its frames see; any other is read to its own last sample,
        # which the normalisation of the whole may depend on.
        samples = [
            clip.samples if frames == grid.count(clip.samples) else grid.samples(frames)
            for clip, frames in zip(plan.clips, plan.lengths, strict=True)
        ]
        for members in self._front.batches(samples, batch_tokens=batch_tokens):
            waveforms = [self._clips.load(plan.clips[member])[: samples[member]] for member in members]
            inputs = self._front.inputs(waveforms)
            source, target = lay_out_rows(plan, members, positions=inputs.frames)
            yield Batch(inputs=inputs.values, mask=inputs.mask, positions=inputs.frames, source=source, target=target)


def open_reader(
    corpus: Corpus, source: ModelSource, architecture: str, *, special_tokens: bool, trust_remote_code: bool
) -> Reader:
    """Return what reads this corpus for this model.

    Raises
    ------
    InputError
        When one is of text and the other of speech, or the model's tokenizer or feature extractor cannot be loaded.
    """
    if isinstance(corpus, AudioCorpus):
        return SpeechReader(FrontEnd.load(source, trust_remote_code=trust_remote_code), corpus.locate)
    if architecture in SPEECH:
        raise InputError(f"{source.name} ({architecture}) reads sound, not text: name tables of utterances with --audio")
    return TextReader(Tokenizer.load(source, special_tokens=special_tokens, trust_remote_code=trust_remote_code))
