"""Which predictions attributions are of, and in which batches they are computed: pure decisions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuronlake.store.errors import InputError

_PADDED = 16  # positions of a clean forward pass, in those of a changed one: it runs once, the other a hundred times
_USUAL = 0.9  # quantile of the targets of a sequence
_WASTE = 1.25  # padded targets of a batch for every real one


class TargetLabels(Protocol):
    """Labels of the committed rows; `neuronlake.analysis.token_labels` makes them, with ``subword="first"``."""

    @property
    def codes(self) -> NDArray[np.int16]:
        """Index into `tags` of every row, −1 without label, (rows,)."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Sorted."""

    @property
    def by(self) -> str:
        """What the label is."""

    @property
    def where(self) -> str | None:
        """Predicate that labelled tokens fulfil."""

    @property
    def subword(self) -> str:
        """Tokens of a word that are labelled."""

    @property
    def shift(self) -> int:
        """Words between a token and the one whose label it has."""

    @property
    def added(self) -> dict[str, str]:
        """Columns that were added to the lake later, with their label sets' identities."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks that the rows belong to."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """First tokens of words, each predicted by the token before it."""

    line: NDArray[np.int64] = field(repr=False)
    """Lines of the token table of the committed blocks, ascending, (targets,)."""
    row: NDArray[np.int64] = field(repr=False)
    """The same as rows of the lake."""
    tag: NDArray[np.int64] = field(repr=False)
    """Index into `tags`."""
    tags: tuple[str, ...]
    available: NDArray[np.int64]
    """Targets that every tag has in the lake, (tags,)."""

    @property
    def samples(self) -> NDArray[np.int64]:
        """Chosen targets per tag, (tags,)."""
        return np.bincount(self.tag, minlength=len(self.tags)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class TargetBatch:
    """Sequences, up to the last position that is asked for, and the positions that predict."""

    ids: NDArray[np.int64]
    """(sequences, longest), padded on the right with 0."""
    positions: NDArray[np.int64]
    """(sequences, chosen); padded with 0."""
    following: NDArray[np.int64]
    """Tokens after them."""
    target: NDArray[np.int64]
    """Which target each is of, −1 for padding."""


def choose_targets(
    labels: TargetLabels, table: Any, *, per_tag: int | None, seed: int, tags: Sequence[str] | None = None
) -> Targets:
    """Choose the predictions to explain: words whose first token follows a token of the same sequence.

    Parameters
    ----------
    labels
        Of the predicted words.
    table
        Token table of the committed blocks, with position and row.
    per_tag
        So many of every tag, drawn without replacement; all of a tag that has fewer, and all if None.
    seed
        Of the draw. A tag's draw does not depend on which other tags are asked for.
    tags
        Only these.

    Raises
    ------
    InputError
        When the labels are not of first sub-words themselves, a tag does not occur, or none has a target.
    """
    if labels.subword != "first" or labels.shift != 0:
        raise InputError(
            f"attribution is of the first token of a word, labelled itself: expected subword='first' and shift=0, got "
            f"subword={labels.subword!r} and shift={labels.shift}"
        )
    for tag in tags or ():
        if tag not in labels.tags:
            raise InputError(f"no word has {labels.by} {tag!r}: known are {', '.join(labels.tags)}")
    names = tuple(sorted(set(tags))) if tags else labels.tags
    if per_tag is not None and per_tag < 1:
        raise InputError(f"per_tag must be at least 1, got {per_tag}")
    predicted = table.column("position").to_numpy() > 0
    chosen, available = [], []
    for tag in names:
        lines = np.flatnonzero(predicted & (labels.codes == labels.tags.index(tag)))
        available.append(len(lines))
        if per_tag is not None and per_tag < len(lines):
            lines = np.random.default_rng([seed, *tag.encode()]).choice(lines, size=per_tag, replace=False)
        chosen.append(lines)
    if not sum(available):
        raise InputError(f"no word with a {labels.by} follows another token of its sequence: there is nothing to predict")
    line = np.concatenate(chosen)
    tag_of = np.repeat(np.arange(len(names)), [len(lines) for lines in chosen])
    order = np.argsort(line, kind="stable")
    line = line[order]
    return Targets(
        line=line,
        row=table.column("row").to_numpy()[line].astype(np.int64),
        tag=tag_of[order],
        tags=names,
        available=np.array(available, dtype=np.int64),
    )


def make_batches(targets: Targets, table: Any, *, batch_targets: int) -> Iterator[TargetBatch]:
    """Lay out all targets in batches of sequences with about as many of them; the same targets always give the same ones.

    Parameters
    ----------
    table
        Token table of the committed blocks, with position and token_id.
    batch_targets
        Largest padded number of targets in a batch.
    """
    ids, position = table.column("token_id").to_numpy(), table.column("position").to_numpy().astype(np.int64)
    begins = targets.line - position[targets.line]  # first line of the target's sequence
    cuts = np.flatnonzero(np.diff(begins)) + 1
    pieces = np.split(np.arange(len(targets.line)), cuts)
    # Of a few sequences with many targets each part is a sequence of its own: else all others would be padded to them.
    usual = min(batch_targets, max(1, int(np.quantile([len(piece) for piece in pieces], _USUAL))))
    groups = [piece[first : first + usual] for piece in pieces for first in range(0, len(piece), usual)]
    # those with most targets first, so that a lack of memory shows at once
    groups.sort(key=lambda group: (-len(group), -int(position[targets.line[group[-1]]]), int(group[0])))
    batch: list[NDArray[np.int64]] = []
    real = longest = 0
    for group in groups:
        length = int(position[targets.line[group[-1]]])
        sequences, chosen = len(batch) + 1, len(batch[0] if batch else group)
        too_large = sequences * chosen > batch_targets or sequences * max(longest, length) > _PADDED * batch_targets
        wasteful = real > batch_targets // 4 and sequences * chosen > _WASTE * (real + len(group))
        if batch and (too_large or wasteful):
            yield _lay_out(targets, ids, position, batch)
            batch, real, longest = [], 0, 0
        batch.append(group)
        real, longest = real + len(group), max(longest, length)
    if batch:
        yield _lay_out(targets, ids, position, batch)


def _lay_out(
    targets: Targets, ids: NDArray[Any], position: NDArray[np.int64], groups: Sequence[NDArray[np.int64]]
) -> TargetBatch:
    chosen = max(len(group) for group in groups)
    longest = max(int(position[targets.line[group[-1]]]) for group in groups)
    batch = TargetBatch(
        ids=np.zeros((len(groups), longest), dtype=np.int64),
        positions=np.zeros((len(groups), chosen), dtype=np.int64),
        following=np.zeros((len(groups), chosen), dtype=np.int64),
        target=np.full((len(groups), chosen), -1, dtype=np.int64),
    )
    for place, group in enumerate(groups):
        lines = targets.line[group]
        length, begin = int(position[lines[-1]]), int(lines[0] - position[lines[0]])
        batch.ids[place, :length] = ids[begin : begin + length]
        batch.positions[place, : len(group)] = position[lines] - 1
        batch.following[place, : len(group)] = ids[lines]
        batch.target[place, : len(group)] = group
    return batch
