"""Group the sequences of a block into padded batches: a pure decision."""

from collections.abc import Sequence

import numpy as np


def plan_batches(lengths: Sequence[int], *, batch_tokens: int) -> list[list[int]]:
    """Split sequences into batches of similar length at the least cost.

    The cost of a batch is its padded size plus a fixed price of one eighth of `batch_tokens` for starting a forward pass;
    the cheapest partition of the sequences sorted by length is found by dynamic programming. The same lengths always give
    the same batches, since batching decides the last bits of the values.

    Parameters
    ----------
    lengths
        Tokens of each sequence, each at least 1.
    batch_tokens
        Largest padded size of a batch (sequences × longest). A longer sequence has a batch of its own.

    Returns
    -------
    list of batches, longest sequences first (so that a lack of memory shows at once); each lists indices into `lengths`.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    price = batch_tokens // 8
    cost = np.full(len(order) + 1, np.inf)
    cost[0] = 0
    cut = np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        first = max(0, end - max(1, batch_tokens // longest))
        candidates = cost[first:end] + np.arange(end - first, 0, -1) * longest + price
        best = int(np.argmin(candidates))
        cost[end], cut[end] = candidates[best], first + best
    batches = []
    end = len(order)
    while end:
        batches.append(order[cut[end] : end])
        end = int(cut[end])
    return batches
