"""The text that lesions are measured on: sequences of a lake, and the words whose first token the model must predict."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake
from neuronlake.store.tables import PADDING

_NONE = -1


@dataclass(frozen=True, kw_only=True)
class LesionText:
    """Sequences, each cut behind the last position that predicts a target, and their targets."""

    sequences: tuple[NDArray[np.int64], ...] = field(repr=False)
    """Token ids of each."""
    where: tuple[NDArray[np.int64], ...] = field(repr=False)
    """Positions in each sequence whose next token is a target."""
    next_ids: tuple[NDArray[np.int64], ...] = field(repr=False)
    """The targets' token ids, in the same order."""
    codes: tuple[NDArray[np.int64], ...] = field(repr=False)
    """Their tags, as places in `tags`."""
    document: NDArray[np.int64] = field(repr=False)
    """Of each sequence, as a place in `documents`."""
    documents: tuple[int, ...] = field(repr=False)
    """Numbers of the documents in the lake."""
    tags: tuple[str, ...]

    @property
    def targets(self) -> NDArray[np.int64]:
        """Targets of every document and tag, (documents, tags)."""
        return self.sums([np.ones(len(codes)) for codes in self.codes]).astype(np.int64)

    @property
    def tokens(self) -> int:
        """Positions that are computed."""
        return sum(map(len, self.sequences))

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the sums depend on."""
        found = hashlib.sha256("\0".join(self.tags).encode())
        for arrays in zip(self.sequences, self.where, self.next_ids, self.codes, strict=True):
            for array in arrays:
                found.update(np.int64(len(array)).tobytes() + np.ascontiguousarray(array, dtype=np.int64).tobytes())
        found.update(self.document.astype(np.int64).tobytes() + np.array(self.documents, dtype=np.int64).tobytes())
        return found.hexdigest()

    def sums(self, values: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
        """Add up what the targets of every sequence have: float64 (documents, tags), in float64."""
        shape = (len(self.documents), len(self.tags))
        cells = [
            document * len(self.tags) + codes for document, codes in zip(self.document.tolist(), self.codes, strict=True)
        ]
        total: NDArray[np.float64] = np.bincount(
            np.concatenate([np.empty(0, np.int64), *cells]),
            weights=np.concatenate([np.empty(0), *values]).astype(np.float64),
            minlength=shape[0] * shape[1],
        ).astype(np.float64)
        return total.reshape(shape)


def sample_text(
    lake: Lake,
    codes: NDArray[np.integer],
    tags: Sequence[str],
    *,
    documents: NDArray[np.integer] | None = None,
    targets: int,
    least: int,
    wanted: Sequence[str],
    seed: int,
) -> LesionText:
    """Sample sequences of a lake until there are enough words to predict.

    Sequences come in random order, from all documents alike. One is taken while there are fewer than `targets` targets, or
    if it has a target of a wanted tag of which there are fewer than `least`: so rare tags are measured too, and every tag's
    targets are a random sample of its own.

    Parameters
    ----------
    codes : (rows,)
        Tag of every committed row, −1 where it is no target; of `token_labels` with ``subword="first"``.
    tags
        Their names.
    documents
        Numbers of the documents to take sequences from; None means all.
    wanted
        Tags that must not be rare.

    Raises
    ------
    InputError
        When a wanted tag has no target.
    """
    table = lake.tokens()
    flags, position = table.column("flags").to_numpy(), table.column("position").to_numpy()
    real = flags != PADDING
    starts = np.flatnonzero(real & (position == 0))
    # a sequence ends where the next one starts, or with the block's used rows
    ends = np.append(starts[1:], len(real))
    ids, document_of = table.column("token_id").to_numpy().astype(np.int64), table.column("document").to_numpy()
    # the first token of a sequence has nothing before it that could predict it
    codes = np.where((position > 0) & real, codes, _NONE).astype(np.int64)
    if documents is not None:
        codes = np.where(np.isin(document_of, documents), codes, _NONE)
    total = np.bincount(codes[codes >= 0], minlength=len(tags))
    places = [_place(tag, tags, total, lake) for tag in wanted]
    taken, count = [], np.zeros(len(tags), dtype=np.int64)
    rare = np.zeros(len(tags), dtype=bool)
    rare[places] = True
    for number in np.random.default_rng(seed).permutation(len(starts)):
        found = codes[starts[number] : ends[number]]
        found = found[found >= 0]
        if found.size and (count.sum() < targets or np.any(rare[found] & (count[found] < least))):
            taken.append(int(number))
            count += np.bincount(found, minlength=len(tags))
        elif count.sum() >= targets and np.all(count[places] >= np.minimum(least, total[places])):
            break
    taken.sort()  # in the corpus' order, whatever the draw
    rows = [starts[number] + np.flatnonzero(codes[starts[number] : ends[number]] >= 0) for number in taken]
    used, document = np.unique(document_of[starts[taken]], return_inverse=True)
    return LesionText(
        sequences=tuple(ids[starts[number] : last[-1]] for number, last in zip(taken, rows, strict=True)),
        where=tuple(at - starts[number] - 1 for number, at in zip(taken, rows, strict=True)),
        next_ids=tuple(ids[at] for at in rows),
        codes=tuple(codes[at] for at in rows),
        document=document.astype(np.int64),
        documents=tuple(int(each) for each in used),
        tags=tuple(tags),
    )


def _place(tag: str, tags: Sequence[str], total: NDArray[np.int64], lake: Lake) -> int:
    known = [name for name, count in zip(tags, total, strict=True) if count]
    if tag not in known:
        raise InputError(
            f"tag {tag!r} has no word to predict in the text of {lake.path}: it has words of {', '.join(known) or 'none'}"
        )
    return list(tags).index(tag)
