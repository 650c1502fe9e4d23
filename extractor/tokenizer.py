"""The model's own fast tokenizer, with the offsets that alignment needs."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.extractor.source import ModelSource
from neuronlake.extractor.transformers_glue import LOAD_ERRORS, first_line
from neuronlake.store.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One tokenised text; arrays are (tokens,)."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """(tokens, 2) characters."""
    special: NDArray[np.bool_]


class Tokenizer:
    """A fast tokenizer that returns ids, character offsets and the mask of special tokens."""

    def __init__(self, tokenizer: Any, *, special_tokens: bool):
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"{type(tokenizer).__name__} is a slow tokenizer without character offsets, so tokens cannot be aligned to "
                "words: use a model with a tokenizer.json"
            )
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens

    @classmethod
    def load(cls, source: ModelSource, *, special_tokens: bool, trust_remote_code: bool = False) -> "Tokenizer":
        """Load the tokenizer of a model.

        Raises
        ------
        InputError
            When there is none, or it is a slow one.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        except LOAD_ERRORS as error:
            raise InputError(f"could not load a tokenizer from {source.folder}: {first_line(error)}") from error
        return cls(tokenizer, special_tokens=special_tokens)

    def identity(self) -> dict[str, Any]:
        """Return what decides the ids: the hash of the whole tokenizer and the special-token choice."""
        serialised = self._tokenizer.backend_tokenizer.to_str()
        return {
            "sha256": hashlib.sha256(serialised.encode()).hexdigest(),
            "special_tokens": self._special_tokens,
        }

    def special_texts(self) -> dict[str, str]:
        """Return id (as text) → text of every special token, for displays without the tokenizer."""
        return {
            str(index): text
            for text, index in sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
            if index in self._tokenizer.all_special_ids
        }

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokenise texts, untruncated."""
        # its "longer than the maximum" remark would come on top of our own error, which names the sentence
        logger = logging.getLogger("transformers.tokenization_utils_base")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            batch = self._tokenizer(
                list(texts),
                add_special_tokens=self._special_tokens,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                return_attention_mask=False,
                verbose=False,
            )
        finally:
            logger.setLevel(level)
        return [
            Encoded(
                ids=np.asarray(ids, dtype=np.int32),
                offsets=np.asarray(offsets, dtype=np.int64).reshape(-1, 2),
                special=self._specials(special, offsets),
            )
            for ids, offsets, special in zip(
                batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True
            )
        ]

    def _specials(self, mask: Sequence[int], offsets: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
        # Special tokens that the tokenizer adds have no text; the same string inside a text is text and has offsets.
        return np.array([bool(flag) and start == end for flag, (start, end) in zip(mask, offsets, strict=True)], dtype=bool)
