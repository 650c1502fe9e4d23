"""Which worker reads which part: fair shares, and few moves when workers come and go."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronlake.analysis.placement import host_of, place_parts

# Hypothesis takes a draw of another thread for a strategy's: that of an earlier test's client, whose event loop goes on.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

PARTS = st.lists(st.integers(0, 2**62), min_size=1, max_size=60, unique=True)
WORKERS = st.dictionaries(
    st.builds("tcp://10.0.0.{}:{}".format, st.integers(1, 5), st.integers(1000, 1020)),
    st.integers(1, 4),
    min_size=1,
    max_size=8,
)


@given(PARTS, WORKERS, st.randoms())
def test_every_part_has_one_worker_whatever_the_order(parts, workers, random):
    found = place_parts(parts, workers)
    assert found.keys() == set(parts)
    assert set(found.values()) <= workers.keys()
    shuffled, others = list(parts), list(workers.items())
    random.shuffle(shuffled)
    random.shuffle(others)
    assert place_parts(shuffled, dict(others)) == found


@given(PARTS, WORKERS)
def test_nobody_has_more_than_a_fair_share(parts, workers):
    found = place_parts(parts, workers)
    hosts: dict[str, int] = {}
    for address, threads in workers.items():
        hosts[host_of(address)] = hosts.get(host_of(address), 0) + threads
    for host, threads in hosts.items():
        own = [address for address in found.values() if host_of(address) == host]
        assert len(own) <= -(-len(parts) * threads // sum(hosts.values()))
        for address in set(own):
            assert own.count(address) <= -(-len(own) * workers[address] // threads)


def test_a_lost_machine_moves_its_own_parts_and_few_others():
    workers = {f"tcp://10.0.0.{host}:9000": 1 for host in range(1, 9)}
    before = place_parts(range(8000), workers)
    lost = "tcp://10.0.0.3:9000"
    after = place_parts(range(8000), {address: 1 for address in workers if address != lost})
    stayed = np.mean([after[part] == owner for part, owner in before.items() if owner != lost])
    assert lost not in after.values()
    assert stayed > 0.85  # all, were there no fair shares to keep


def test_a_worker_started_again_moves_nothing_between_machines():
    workers = {f"tcp://10.0.0.{host}:{port}": 2 for host in range(1, 5) for port in (9000, 9001)}
    again = {"tcp://10.0.0.2:9777" if address == "tcp://10.0.0.2:9001" else address: 2 for address in workers}
    before, after = place_parts(range(4000), workers), place_parts(range(4000), again)
    assert all(host_of(before[part]) == host_of(after[part]) for part in before)
    assert all(before[part] == after[part] for part in before if host_of(before[part]) != "10.0.0.2")
