"""Alignment and batching against brute force; models that are refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronlake.extractor.align import align
from neuronlake.extractor.batching import plan_batches
from neuronlake.store.tables import MULTI, SPECIAL, UNCOVERED


@st.composite
def words_and_tokens(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Non-overlapping word spans (some shared) and a cut of the same characters into tokens (some overlapping)."""
    spans, position = [], draw(st.integers(0, 2))
    for _ in range(draw(st.integers(1, 8))):
        end = position + draw(st.integers(1, 5))
        spans += [(position, end)] * draw(st.sampled_from([1, 1, 1, 2]))
        position = end + draw(st.integers(0, 2))
    tokens, place = [], 0
    while place < position + 2:
        end = place + draw(st.integers(0, 6))
        tokens.append((place, end))
        place = end if end == place or draw(st.booleans()) else end - draw(st.integers(0, 1))
        if end == tokens[-1][0] and len(tokens) > 1 and tokens[-2] == tokens[-1]:
            place += 1
    return spans, tokens


@given(words_and_tokens())
def test_alignment_equals_overlap_by_characters(case: tuple[list[tuple[int, int]], list[tuple[int, int]]]) -> None:
    spans, tokens = case
    special = np.array([index % 7 == 6 for index in range(len(tokens))])
    found = align(
        starts=[start for start, _ in spans], ends=[end for _, end in spans], offsets=np.array(tokens), special=special
    )
    reached = [False] * len(spans)
    owners: list[int] = []
    for index, (start, end) in enumerate(tokens):
        covered = [w for w, (a, b) in enumerate(spans) if set(range(a, b)) & set(range(start, end))]
        if special[index]:
            covered = []
        for word in covered:
            reached[word] = True
        expected = SPECIAL if special[index] else UNCOVERED if not covered else MULTI if len(covered) > 1 else 0
        assert found.flags[index] == expected
        owners.append(covered[0] if len(covered) == 1 else -1)
    assert found.word.tolist() == owners
    assert found.reached.tolist() == reached
    for word in set(owners) - {-1}:
        mine = [index for index, owner in enumerate(owners) if owner == word]
        assert found.subword[mine].tolist() == list(range(len(mine)))
        assert np.flatnonzero(found.is_last & (found.word == word)).tolist() == [mine[-1]]


def padded_cost(batches: list[list[int]], lengths: list[int], batch_tokens: int) -> int:
    return sum(len(batch) * max(lengths[index] for index in batch) + batch_tokens // 8 for batch in batches)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(4, 40))
def test_batches_are_the_cheapest_partition(lengths: list[int], batch_tokens: int) -> None:
    batches = plan_batches(lengths, batch_tokens=batch_tokens)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= batch_tokens
    ordered = sorted(lengths)
    best = None
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        groups, current = [], [ordered[0]]
        for length, cut in zip(ordered[1:], cuts, strict=True):
            if cut:
                groups.append(current)
                current = []
            current.append(length)
        groups.append(current)
        if all(len(group) == 1 or len(group) * group[-1] <= batch_tokens for group in groups):
            cost = sum(len(group) * group[-1] + batch_tokens // 8 for group in groups)
            best = cost if best is None else min(best, cost)
    assert padded_cost(batches, lengths, batch_tokens) == best


@pytest.mark.parametrize("count", [1, 2, 500])
def test_batching_is_deterministic(count: int) -> None:
    lengths = [1 + index * 37 % 90 for index in range(count)]
    assert plan_batches(lengths, batch_tokens=512) == plan_batches(list(lengths), batch_tokens=512)
