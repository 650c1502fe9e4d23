"""Probe results in a notebook: every score beside what it must be compared with."""

import pytest
from html_reading import NASTY, Reader
from memory_lake import MemoryLake

from neuronlake.analysis import ProbeResults, probe, probe_sweep

FAST = {"classifier": "ridge", "random_draws": 2, "bootstrap_draws": 20, "keep": False}


@pytest.fixture(scope="module")
def lake():
    return MemoryLake(tags=[*NASTY[:4], "NOUN"], documents=16)


def as_number(text):
    return float(text.replace("−", "-").replace(",", ""))


def test_one_result(lake):
    result = probe(lake, layer=2, **FAST)
    scores, tags = Reader(result._repr_html_()).tables
    rows = {row[0]: row[1:] for row in scores.rows}
    assert scores.head == ["what", "accuracy", "macro F1", "95 % of accuracy"]
    assert as_number(rows["probe"][0]) == pytest.approx(result.accuracy, abs=0.0006)
    assert as_number(rows["probe"][1]) == pytest.approx(result.macro_f1, abs=0.0006)
    assert [as_number(end) for end in rows["probe"][2].split(" to ")] == pytest.approx(
        result.intervals["accuracy"], abs=0.0006
    )
    for name, found in {**result.baselines, **result.controls}.items():
        assert as_number(rows[name.replace("_", " ")][0]) == pytest.approx(found["accuracy"], abs=0.0006)
    assert as_number(rows["selectivity"][0]) == pytest.approx(result.selectivity, abs=0.0006)
    assert {row[0]: int(row[1]) for row in tags.rows} == {tag: found["support"] for tag, found in result.per_tag.items()}
    lines = repr(result).splitlines()
    assert lines[0].startswith("<ProbeResult ridge probe of upos, layers 2, 10 neurons")
    assert len(lines) == 2 + len(rows)


def test_several_results(lake):
    results = probe_sweep(lake, layers=[0, 2], **FAST)
    (read,) = Reader(results._repr_html_()).tables
    assert [row[1] for row in read.rows] == ["0", "2"]
    assert [as_number(row[4]) for row in read.rows] == pytest.approx([each.accuracy for each in results], abs=0.0006)
    assert repr(results).splitlines()[0] == "<ProbeResults: 2>"
    assert repr(ProbeResults(())) == "<ProbeResults: 0>"
    assert Reader(ProbeResults(())._repr_html_()).tables[0].rows == []
