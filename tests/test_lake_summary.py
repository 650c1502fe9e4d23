"""A lake in a notebook: what it says is true, costs next to nothing, and never raises."""

import shutil
import sys

import pytest
from html_reading import NASTY, Reader
from lakes import make_sentence, make_spec, plan_lake, synthetic_lake, two_site_lake, write_blocks

from neuronlake.store import open_lake
from neuronlake.store.markup import size

_seen = None


def _audit(event, arguments):
    if _seen is not None and event in ("open", "os.scandir", "os.listdir"):
        _seen.append((event, str(arguments[0])))


sys.addaudithook(_audit)  # cannot be removed: it looks only while a test asks it to


def lines_of(lake):
    (only,) = Reader(lake._repr_html_()).tables
    assert only.caption == f"lake {lake.path}"
    return dict(only.rows)


def test_what_a_lake_says(tmp_path):
    root = tmp_path / "a.lake"
    two_site_lake(root, tokens=300)
    lake = open_lake(root)
    lines = lines_of(lake)
    words = len(lake.words())
    sentences, documents = len(lake.sentences()), len(set(lake.sentences().column("document").to_pylist()))
    assert lines["text"] == f"{documents} documents, {sentences} sentences, {words} words, 300 tokens"
    assert lines["neurons"] == "2 layers × 10 neurons at mlp.post, 7 at resid.post"
    assert lines["blocks"] == f"{len(lake.blocks)} of {lake.plan.blocks} committed, 64 rows each"
    assert lines["encoding"] == "float16"
    assert lines["labels"] == "upos"
    stored = [p for name in ("activations", "scales") for p in (root / name).rglob("*") if p.is_file()]
    stored = sum(p.stat().st_size for p in stored if p.name != "zarr.json")
    assert lines["stored"] == size(stored)
    assert "model" in lines
    assert lake.fingerprint.startswith(lines["fingerprint"])
    at_other = lines_of(lake.at("resid.post"))
    assert at_other["neurons"] == "2 layers × 7 neurons at resid.post, 10 at mlp.post"
    assert "synthetic, 300 tokens" in repr(lake)


def test_kept_results_are_named(tmp_path):
    from neuronlake.analysis import compute_statistics

    synthetic_lake(tmp_path / "a.lake", tokens=200)
    lake = open_lake(tmp_path / "a.lake")
    compute_statistics(lake, "upos")
    kept = {}
    for folder in ("statistics", "index"):
        names = sorted(entry.name for entry in (tmp_path / "a.lake" / folder).iterdir())
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        kept[folder] = f"{folder}: {len(names)} ({', '.join(names[:3])}{more})"
    assert lines_of(open_lake(tmp_path / "a.lake"))["kept results"] == "; ".join(kept.values())
    for folder in kept:
        shutil.rmtree(tmp_path / "a.lake" / folder)
    assert lines_of(lake)["kept results"] == "none"


def test_it_reads_no_activation_and_lists_no_big_folder(tmp_path):
    global _seen
    synthetic_lake(tmp_path / "a.lake", tokens=200)
    lake = open_lake(tmp_path / "a.lake")
    _seen = []
    try:
        lake._repr_html_()
    finally:
        seen, _seen = _seen, None
    below = [(event, path.removeprefix(f"{tmp_path}/a.lake/")) for event, path in seen if str(tmp_path) in path]
    assert {path for event, path in below if event != "open"} <= {
        "statistics", "index", "weights", "covariances", "attribution", "labels",
    }  # fmt: skip
    assert {path.split("/")[0] for event, path in below if event == "open"} == {"zarr.json", "commits"}
    shutil.rmtree(tmp_path / "a.lake" / "activations")
    assert lines_of(lake)["text"].endswith("200 tokens")


def test_many_blocks_are_estimated(tmp_path, monkeypatch):
    synthetic_lake(tmp_path / "a.lake", tokens=600)
    exact = lines_of(open_lake(tmp_path / "a.lake"))["stored"]
    monkeypatch.setattr("neuronlake.store.lake_summary._MOST_READ", 3)
    lake = open_lake(tmp_path / "a.lake")
    about = lines_of(lake)["stored"]
    assert about.startswith("about ")
    value, unit = about.split(",")[0].removeprefix("about ").split(" ")
    assert unit == exact.split(" ")[1]
    assert float(value) == pytest.approx(float(exact.split(" ")[0]), rel=0.2)
    assert lake.commits  # once they are read, the number is exact
    assert lines_of(lake)["stored"] == exact


def test_a_lake_that_is_gone_or_replaced_says_so(tmp_path):
    root = tmp_path / "a.lake"
    synthetic_lake(root, tokens=200)
    lake = open_lake(root)
    before = repr(lake)
    shutil.rmtree(root)
    lines = lines_of(lake)
    assert "the folder does not exist" in lines["⚠ not there any more"]
    assert lines["text"].endswith("200 tokens")
    assert repr(lake) == before
    synthetic_lake(root, tokens=200, layers=3)
    assert lines_of(lake)["⚠ replaced"] == "another lake lies there now: open it again"
    (root / "zarr.json").write_text("{")
    assert "⚠ not there any more" in lines_of(lake)
    (root / "zarr.json").unlink()
    assert "⚠ not there any more" in lines_of(lake)


def test_a_damaged_record_is_told(tmp_path):
    root = tmp_path / "a.lake"
    synthetic_lake(root, tokens=200)
    lake = open_lake(root)
    next((root / "commits").iterdir()).write_text("{}")
    assert any(name.startswith("⚠") for name in lines_of(lake))


def test_names_are_text(tmp_path):
    spec = make_spec(layers=1, neurons=3, block_rows=64, chunk_neurons=3, encoding="float16")
    import dataclasses

    import numpy as np

    for at, name in enumerate(NASTY[:6]):
        mine = dataclasses.replace(
            spec,
            model={"name": name, "sha256": "0", "architecture": name},
            plan={"corpus": {"files": [{"name": name}]}, "context": name},
        )
        root = tmp_path / f"{at}<i>.lake"
        record, rows = plan_lake(root, mine, [make_sentence(["a"], [{"upos": "X"}], name="s", document="d")])
        write_blocks(root, mine, record, rows, np.ones((1, 1, 3), dtype=np.float32))
        lines = lines_of(open_lake(root))
        assert lines["model"] == f"{name} ({name}, computed in float32)"
        assert lines["corpus"] == f"{name}, {name} context"
