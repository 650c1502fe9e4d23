"""Tokens by what a user calls them: row numbers, a sentence, a word form, a filter; and at most so many of one document."""

from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from neuronlake.analysis.chosen_rows import ChosenRows, token_mask
from neuronlake.analysis.labels import SUBWORD_POLICIES, LabelRequest, labels_key, token_labels
from neuronlake.analysis.source import LakeSource
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.lake import Lake
from neuronlake.store.tables import PADDING, SPECIAL

Where = tuple[str, str] | str | None
"""An SQL predicate, or (label, tag)."""


def choose_tokens(
    lake: Lake,
    *,
    rows: Sequence[int] | None = None,
    sentence: int | None = None,
    form: str | None = None,
    where: Where = None,
    subword: str = "last",
    special: bool = False,
) -> ChosenRows:
    """Choose tokens in one of four ways.

    Parameters
    ----------
    lake
        The lake.
    rows
        Global row numbers in any order, special tokens too; each counts once.
    sentence
        All tokens of a sentence.
    form
        Tokens of every word that is spelt exactly so; `subword` says which of a word's tokens.
    where : str or (by, tag)
        Tokens for which an SQL predicate is true, see `token_labels`; or all tokens of words with a tag.
    subword
        ``last``, ``first`` or ``all`` tokens of a word; of `form` only.
    special
        Special tokens too, of `sentence` and `where`.

    Returns
    -------
    ChosenRows
        At least one row.

    Raises
    ------
    InputError
        When not exactly one of the four is given, or what it names is not there; the message says what is.
    """
    ways = {"rows": rows, "sentence": sentence, "form": form, "where": where}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"choose tokens by one of rows, sentence, form or where, got {', '.join(given) or 'none'}")
    if not lake.blocks:
        raise InputError(f"{lake.path} has no committed block yet")
    if rows is not None:
        return _by_number(lake, rows)
    if sentence is not None:
        return _chosen(lake, _in_sentence(lake, sentence, special=special), special=special)
    if form is not None:
        return _chosen(lake, _of_form(lake, form, subword), special=False)
    mask = eligible_tokens(lake, where, special=special).reshape(-1, lake.block_rows)
    inside = {block: np.flatnonzero(line) for block, line in zip(lake.blocks, mask, strict=True) if line.any()}
    said = where if where is None or isinstance(where, str) else "=".join(where)
    return _chosen(lake, inside, special=special, where=said)


def eligible_tokens(source: LakeSource, where: Where, *, special: bool) -> NDArray[np.bool_]:
    """Which lines of the token table a filter lets through: no padding, special tokens only if asked for.

    Parameters
    ----------
    where
        SQL predicate, or (by, tag): all tokens of words with that tag.

    Returns
    -------
    bool (lines,)

    Raises
    ------
    InputError
        When there is no such label or tag, SQL is refused, or nothing is let through.
    """
    if isinstance(where, tuple):
        by, tag = where
        if (listed := _listed(source, by, tag)) is not None:
            return listed
        labels = token_labels(source, by, subword="all", min_tokens=1)
        if tag not in labels.tags:
            known = ", ".join(labels.tags[:40]) + (", …" if len(labels.tags) > 40 else "")
            raise InputError(f"no tag {tag!r} of {by!r}: known are {known}")
        tagged: NDArray[np.bool_] = labels.codes == labels.tags.index(tag)
        return tagged
    mask = token_mask(source, where, special=special)
    if where is not None and not mask.any():
        raise InputError(f"where={where!r} is true of none of the tokens")
    return mask


def _listed(source: LakeSource, by: str, tag: str) -> NDArray[np.bool_] | None:
    """Tokens with a tag, from lists that the index has of the label, at any site: no table is read. None if it has none."""
    if isinstance(source, Lake):
        asked = labels_key(source, LabelRequest(by=by, subword="all"))
        for lists in (lists for site in source.sites for lists in source.at(site).index().tag_lists):
            if lists.labels == asked and lists.blocks == source.blocks and tag in lists.tags:
                with suppress(DamageError):
                    found: NDArray[np.bool_] = lists.row_tags(source.blocks, source.block_rows) == lists.tags.index(tag)
                    return found
    return None


def rows_of_lines(source: LakeSource, lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Global rows of some lines of the token table."""
    firsts = np.asarray(source.blocks, dtype=np.int64) * source.block_rows
    return firsts[lines // source.block_rows] + lines % source.block_rows


def token_documents(source: LakeSource) -> NDArray[np.int64]:
    """Document of every line of the token table."""
    documents: NDArray[np.int64] = source.tokens().column("document").to_numpy()
    return documents


def within_cap(documents: NDArray[np.int64], limit: int) -> NDArray[np.bool_]:
    """Which of some tokens, best first, are among the first `limit` of their document; bool (tokens,)."""
    order = np.argsort(documents, kind="stable")
    grouped = documents[order]
    starts = np.flatnonzero(np.diff(grouped, prepend=grouped[:1] - 1))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return place < limit


def locate_rows(lake: Lake, rows: Sequence[int]) -> dict[int, tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Return block → (rows within it, their flags) of global rows, ascending and each once.

    Raises
    ------
    InputError
        When there is no such row, its block is not committed, or it is padding.
    """
    count = lake.plan.blocks * lake.block_rows
    try:
        numbers = np.unique(np.asarray(rows, dtype=np.int64))
    except OverflowError:
        raise InputError(f"no row {max(rows, key=abs)} in {lake.path}: it has rows 0 to {count - 1}") from None
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if wrong.size:
        raise InputError(f"no row {wrong[0]} in {lake.path}: it has rows 0 to {count - 1}")
    found = {}
    for block in np.unique(numbers // lake.block_rows).tolist():
        inside = numbers[numbers // lake.block_rows == block] - block * lake.block_rows
        if block not in lake.blocks:
            first = block * lake.block_rows + inside[0]
            raise InputError(
                f"row {first} (block {block}) of {lake.path} is not extracted yet: run the `extract` that began the lake"
            )
        flags = lake.read_table("plan", block, ["flags"]).column("flags").to_numpy()[inside]
        padding = inside[(flags & PADDING) != 0]
        if padding.size:
            row = block * lake.block_rows + padding[0]
            raise InputError(f"row {row} of {lake.path} is padding at the end of block {block}: it holds no token")
        found[block] = (inside, flags)
    return found


def _by_number(lake: Lake, rows: Sequence[int]) -> ChosenRows:
    if not len(rows):
        raise InputError("no row given")
    blocks = {block: inside for block, (inside, _) in locate_rows(lake, rows).items()}
    return _chosen(lake, blocks, special=True)


def _in_sentence(lake: Lake, sentence: int, *, special: bool) -> dict[int, NDArray[np.int64]]:
    left_out = PADDING if special else PADDING | SPECIAL
    found, ends = {}, []
    for block in lake.blocks:
        table = lake.read_table("plan", block, ["sentence", "flags"])
        numbers, flags = (table.column(name).to_numpy() for name in ("sentence", "flags"))
        used = numbers[flags & PADDING == 0]
        ends += [int(used[0]), int(used[-1])]
        if (inside := np.flatnonzero((numbers == sentence) & (flags & left_out == 0))).size:
            found[block] = inside
    if not found:
        raise InputError(
            f"no token of a sentence {sentence} in {lake.path}: committed are sentences {min(ends)} to {max(ends)}"
        )
    return found


def _of_form(lake: Lake, form: str, subword: str) -> dict[int, NDArray[np.int64]]:
    if subword not in SUBWORD_POLICIES:
        raise InputError(f"unknown sub-word policy {subword!r}: known are {', '.join(SUBWORD_POLICIES)}")
    found, forms = {}, set()
    for block in lake.blocks:
        words = lake.read_table("words", block, ["word", "form"])
        wanted = words.column("word").filter(pc.equal(words.column("form"), form)).to_numpy()
        if not wanted.size:
            forms.update(pc.unique(words.column("form")).to_pylist())
            continue
        table = lake.read_table("plan", block, ["word", "subword", "is_last_subword"])
        keep = np.isin(table.column("word").to_numpy(), wanted)
        if subword == "last":
            keep &= table.column("is_last_subword").to_numpy(zero_copy_only=False)
        elif subword == "first":
            keep &= table.column("subword").to_numpy() == 0
        if keep.any():
            found[block] = np.flatnonzero(keep)
    if not found:
        near = [other for other in sorted(forms - {None}) if other.lower() == form.lower() and other != form]
        near += get_close_matches(form, forms - {None, *near, form}, n=3)
        hint = f"; did you mean {', '.join(map(repr, near[:3]))}?" if near else ""
        raise InputError(f"no token of a word {form!r} in {lake.path}: forms are compared with their case{hint}")
    return found


def _chosen(lake: Lake, blocks: dict[int, NDArray[np.int64]], *, special: bool, where: str | None = None) -> ChosenRows:
    return ChosenRows(blocks=blocks, block_rows=lake.block_rows, special=special, where=where, masked=where is None)
