"""Which neurons fire on what was searched for: a part of that page, asked for by its button."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.chosen_rows import ChosenRows
from neuronlake.analysis.explorer.search import as_predicate, forms_of, true_of
from neuronlake.analysis.explorer.shelf import NotKeptError, Opened
from neuronlake.analysis.firing import EVERY_WORD, firing_neurons
from neuronlake.analysis.kept_statistics import StatisticsKey, block_checksums, find_kept
from neuronlake.analysis.labels import LabelRequest
from neuronlake.store.errors import InputError
from neuronlake.store.lake import Lake

FIRING = 30
_FIRING_BLOCKS = 8  # whose activations are read: 13 MB each and layer, of SmolLM2


def firing(opened: Opened, *, form: str | None = None, where: str | None = None) -> dict[str, Any]:
    """Say which neurons fire on a word or on the tokens that a predicate is true of. Reads activations, writes nothing.

    Of many tokens, those in the `_FIRING_BLOCKS` blocks that hold most of them stand for all.

    Returns
    -------
    dict
        score (``difference`` where statistics of every word are kept, else ``hits``), neurons (of `firing_neurons`), count,
        of (tokens in all), blocks.

    Raises
    ------
    InputError
        When not one of the two is given, or no token is meant.
    NotKeptError
        When neither statistics of every word nor the index cover the lake.
    """
    if (form is None) == (where is None):
        raise InputError("the address needs form=… or where=…, for example form=dog")
    lake = opened.lake
    score = "difference" if _compares(lake) else "hits"
    if score == "hits" and lake.index().blocks != tuple(lake.blocks):
        raise NotKeptError(
            f"the index covers {len(lake.index().blocks)} of {len(lake.blocks)} blocks: run `neuronlake index {lake.path}` "
            "once, then reload"
        )
    rows, total = _of_predicate(opened, where) if where is not None else _of_word(opened, form or "")
    if not rows:
        raise InputError(f"no token of a word {form!r}" if form is not None else f"{where!r} is true of no token")
    chosen = ChosenRows(
        blocks=rows,
        block_rows=lake.block_rows,
        special=False,
        where=where,
        masked=where is None,
    )
    neurons = firing_neurons(lake, chosen, FIRING, score=score, keep=score == "difference")
    return {"score": score, "neurons": neurons, "count": chosen.count, "of": total, "blocks": len(rows)}


def _compares(lake: Lake) -> bool:
    """Whether statistics of every word are kept, so that `firing_neurons` has nothing to compute and keep."""
    key = StatisticsKey.of(lake, LabelRequest(by=EVERY_WORD, subword="all"), folds=1, basic=True)
    found = find_kept(lake, key, block_checksums(lake), tidy=False)
    return found is not None and found.blocks == tuple(lake.blocks)


def _of_predicate(opened: Opened, predicate: str) -> tuple[dict[int, NDArray[np.int64]], int]:
    """Tokens that a predicate is true of, in the blocks that hold most of them: block → rows within it; and all in all."""
    true = true_of(opened, as_predicate(opened.lake, predicate))
    return {block: true[block].astype(np.int64) for block in _fullest(true)}, sum(map(len, true.values()))


def _of_word(opened: Opened, form: str) -> tuple[dict[int, NDArray[np.int64]], int]:
    """Last tokens of the words of a form, likewise; in all there are so many words."""
    lake = opened.lake
    words = {lake.blocks[position]: inside for position, inside in forms_of(opened).words(form).items()}
    found = {}
    for block in _fullest(words):
        first = lake.read_table("words", block, ["word"]).column("word")[0].as_py()
        table = lake.read_table("plan", block, ["word", "is_last_subword"])
        keep = np.isin(table.column("word").to_numpy(), words[block] + first)
        keep &= table.column("is_last_subword").to_numpy(zero_copy_only=False)
        if keep.any():
            found[block] = np.flatnonzero(keep).astype(np.int64)
    return found, sum(map(len, words.values()))


def _fullest(rows: Mapping[int, NDArray[Any]]) -> list[int]:
    return sorted(sorted(rows, key=lambda block: (-len(rows[block]), block))[:_FIRING_BLOCKS])
