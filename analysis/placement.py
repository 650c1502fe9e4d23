"""Which worker of a cluster reads which part of a lake: always the same, so that what it caches serves the next question.

Rendezvous hashing (Thaler & Ravishankar 1998, "Using name-based mappings to increase hit rates"): a part prefers the machine
for which a hash of both is largest, so that losing one moves its parts and few others. No machine takes more than its share
(Mirrokni, Thorup & Zadimoghaddam 2018, "Consistent hashing with bounded loads", without slack): a part goes to the first in
its order that is not full. Machines first, since disks and caches belong to them and a worker that is started again has
another address; then the workers of each.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import numpy as np
import xxhash
from numpy.typing import NDArray


def place_parts(parts: Sequence[int], workers: Mapping[str, int]) -> dict[int, str]:
    """Assign every part to a worker.

    The assignment depends on the parts and the workers alone, not on their order.

    Parameters
    ----------
    parts
        Numbers that name the parts, each once: all that there are, asked for or not, since they decide what a share is.
    workers
        Address → threads; a worker with twice the threads takes twice the parts. At least one.

    Returns
    -------
    dict
        Part → address.
    """
    hosts: dict[str, dict[str, int]] = {}
    for address, threads in workers.items():
        hosts.setdefault(host_of(address), {})[address] = threads
    every = np.unique(np.asarray(parts, dtype=np.uint64))
    of_host = _share(every, {host: sum(own.values()) for host, own in hosts.items()})
    return {
        int(part): address
        for host, some in of_host.items()
        for address, own in _share(some, hosts[host]).items()
        for part in own
    }


def host_of(address: str) -> str:
    """Machine of an address such as ``tcp://10.0.0.7:41234``."""
    return urlsplit(address).hostname or address


def _share(parts: NDArray[np.uint64], takers: Mapping[str, int]) -> dict[str, NDArray[np.uint64]]:
    """Deal parts, ascending, to takers in proportion to their weights."""
    names = sorted(takers)
    if len(names) == 1 or not len(parts):
        return dict.fromkeys(names[:1], parts)
    seeds = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], dtype=np.uint64)
    hashes = np.maximum(_mixed(_mixed(parts)[:, None] ^ seeds), 1)  # (parts, takers)
    weights = np.array([takers[name] for name in names])
    room = np.ceil(len(parts) * weights / weights.sum()).astype(np.int64)
    owner = np.full(len(parts), -1)
    waiting = np.arange(len(parts))
    # A part that finds its first choice full makes the next: of those that come at once the largest hashes are taken.
    while len(waiting):
        open_ = np.where(room > 0, hashes[waiting], 0)
        choice = open_.argmax(axis=1)
        left = []
        for taker in range(len(names)):
            mine = waiting[choice == taker]
            order = mine[np.argsort(hashes[mine, taker], kind="stable")[::-1]]
            owner[order[: room[taker]]] = taker
            left.append(order[room[taker] :])
            room[taker] -= min(room[taker], len(order))
        waiting = np.concatenate(left)
    return {name: parts[owner == taker] for taker, name in enumerate(names)}


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
