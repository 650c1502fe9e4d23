"""Which word does each model token (or frame) belong to? Decided by character offsets (or times) alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.tables import MULTI, SPECIAL, UNCOVERED


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Per token of one sequence, all of shape (tokens,)."""

    word: NDArray[np.int64]
    """Index of the word in the sequence, −1 where there is no single one."""
    subword: NDArray[np.int16]
    """0, 1, … among the tokens that belong to this word alone; −1 without a word."""
    is_last: NDArray[np.bool_]
    flags: NDArray[np.uint8]
    reached: NDArray[np.bool_]
    """Per **word** (words,): whether any token covers a character of it, tokens shared with other words included."""


def align(
    *, starts: Sequence[int], ends: Sequence[int], offsets: NDArray[np.int64], special: NDArray[np.bool_]
) -> Alignment:
    """Align tokens to words.

    Parameters
    ----------
    starts, ends
        Character spans of the words, both non-decreasing. Words may share a span (French *du* = *de* + *le*), and then every
        token in it is MULTI.
    offsets : int64 (tokens, 2)
        Character span of every token. Leading spaces may be part of it; tokens of one character's bytes share its span.
    special : bool (tokens,)
        Special tokens, which have no text.
    """
    word_starts, word_ends = np.asarray(starts, dtype=np.int64), np.asarray(ends, dtype=np.int64)
    first = np.searchsorted(word_ends, offsets[:, 0], side="right")  # first word that ends after the token starts
    beyond = np.searchsorted(word_starts, offsets[:, 1], side="left")  # first word that starts where it ends, or later
    covered = np.where(special | (offsets[:, 0] >= offsets[:, 1]), 0, np.maximum(beyond - first, 0))

    flags = np.zeros(len(offsets), dtype=np.uint8)
    flags[special] = SPECIAL
    flags[~special & (covered == 0)] = UNCOVERED
    flags[covered > 1] = MULTI
    word = np.where(covered == 1, first, -1)

    reached = np.zeros(len(word_starts) + 1, dtype=np.int64)
    np.add.at(reached, first[covered > 0], 1)
    np.add.at(reached, beyond[covered > 0], -1)

    subword, is_last = _places(word)
    return Alignment(word=word, subword=subword, is_last=is_last, flags=flags, reached=np.cumsum(reached[:-1]) > 0)


def align_times(*, starts: Sequence[float], ends: Sequence[float], centres: NDArray[np.float64]) -> Alignment:
    """Align frames to words: a frame belongs to the word that is being said at its centre, start ≤ centre < end.

    Parameters
    ----------
    starts, ends
        When the words are said, in seconds; both non-decreasing, no word overlaps another.
    centres : float64 (frames,)
        Seconds, ascending.
    """
    word_ends = np.asarray(ends, dtype=np.float64)
    last = np.searchsorted(np.asarray(starts, dtype=np.float64), centres, side="right") - 1  # begun last
    inside = (last >= 0) & (centres < word_ends[last])
    word = np.where(inside, last, -1)
    subword, is_last = _places(word)
    reached = np.zeros(len(word_ends), dtype=np.bool_)
    reached[word[inside]] = True
    flags = np.where(inside, 0, UNCOVERED).astype(np.uint8)
    return Alignment(word=word, subword=subword, is_last=is_last, flags=flags, reached=reached)


def _places(word: NDArray[np.int64]) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """Number the tokens of every word, and mark the last; words of −1 apart are non-decreasing."""
    single = np.flatnonzero(word >= 0)
    subword = np.full(len(word), -1, dtype=np.int16)
    is_last = np.zeros(len(word), dtype=np.bool_)
    if single.size:
        words = word[single]  # equal neighbours are one word
        opens = np.concatenate(([True], words[1:] != words[:-1]))
        begin = np.maximum.accumulate(np.where(opens, np.arange(len(words)), 0))
        # 32,767 is as far as the plan's column counts
        subword[single] = np.minimum(np.arange(len(words)) - begin, np.iinfo(np.int16).max)
        is_last[single] = np.concatenate((opens[1:], [True]))
    return subword, is_last
