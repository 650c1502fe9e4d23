"""A dropped site is gone at once and for good; everything else stays as it was, whatever interrupts it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lakes import foreign_values
from moving import SITES, committed_values, kill_and_finish, text_lake, tree
from tiny_world import make_world

from neuronlake.analysis import compute_statistics
from neuronlake.cli.main import main
from neuronlake.store import InputError, complete_index, open_lake, repair, verify
from neuronlake.store.copying import copy_lake
from neuronlake.store.dropping import drop_results, drop_sites
from neuronlake.store.merging import merge_lakes


@pytest.mark.parametrize("site", list(SITES))
def test_the_other_site_stays_as_it_was(tmp_path: Path, site: str) -> None:
    root = tmp_path / "a.lake"
    before = text_lake(root, 1, encoding="int8a" if site == "mlp.post" else "float16")
    (other,) = set(SITES) - {site}
    for each in SITES:
        compute_statistics(before.at(each), by="upos")
    statistics = compute_statistics(before.at(other), by="upos")
    values, files = committed_values(before, other), tree(root)
    report = drop_sites(root, [site])
    after = open_lake(root)
    assert (after.sites, after.site, after.neurons) == ((other,), other, SITES[other])
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(committed_values(after, other), values)
    np.testing.assert_array_equal(foreign_values(root, 1, other), before.read(layer=1, site=other))
    found = verify(root, full=True)
    assert found.ok
    assert found.leftovers == found.unknown_files == []
    gone = files.keys() - tree(root).keys()
    assert all(f"/{site}/" in path or f"-{site}-" in path or path.startswith("statistics/") for path in gone)
    freed = sum(len(files[path]) for path in gone)
    assert report.bytes == freed > 0
    again = compute_statistics(after, by="upos")
    assert again.attrs["kept"] == statistics.attrs["kept"]  # nothing was read again
    with pytest.raises(InputError, match=f"no site '{site}'"):
        after.read(layer=0, site=site)
    assert drop_sites(root, [site]).bytes == 0
    # who had it open goes on
    np.testing.assert_array_equal(before.read(layer=1, site=other), after.read(layer=1))


def test_copies_and_merges_are_without_it(tmp_path: Path) -> None:
    first, second = (text_lake(tmp_path / f"{seed}.lake", seed) for seed in (1, 2))
    drop_sites(first.path, ["resid.post"])
    copy_lake(first.path, tmp_path / "copy.lake")
    assert tree(tmp_path / "copy.lake") == tree(first.path)
    with pytest.raises(InputError, match=r"do not go together \(sites: \['mlp.post'\] and"):
        merge_lakes(tmp_path / "all.lake", [first.path, second.path])
    drop_sites(second.path, ["resid.post"])
    merge_lakes(tmp_path / "all.lake", [first.path, second.path])
    merged = open_lake(tmp_path / "all.lake")
    assert merged.sites == ("mlp.post",)
    assert verify(merged.path, full=True).ok


def test_kills_at_calls(tmp_path: Path) -> None:
    """Either the site is there, with all that belongs to it, or it is not; the same command finishes."""
    source = text_lake(tmp_path / "a.lake", 1)
    expected = {site: committed_values(source, site) for site in SITES}
    shutil.copytree(source.path, tmp_path / "dropped.lake")
    drop_sites(tmp_path / "dropped.lake", ["resid.post"])

    def check(root: Path) -> None:
        lake = open_lake(root)
        assert lake.sites in (("mlp.post",), ("mlp.post", "resid.post"))
        for site in lake.sites:
            np.testing.assert_array_equal(committed_values(lake, site), expected[site])
        report = verify(root, full=True)
        assert report.ok, report.damage
        assert report.unknown_files == []
        if lake.sites == ("mlp.post",):  # a repair does the rest, too
            shutil.copytree(root, root.parent / "repaired.lake")
            assert repair(root.parent / "repaired.lake", full=True).ok
            assert verify(root.parent / "repaired.lake").leftovers == []

    kill_and_finish(
        tmp_path,
        {"kind": "drop", "sources": []},
        check,
        tree(tmp_path / "dropped.lake"),
        kills=6,
        begin=lambda root: shutil.copytree(source.path, root),
    )


def test_a_lake_that_lost_its_records_does_not_lose_its_blocks(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    text_lake(root, 1)
    drop_sites(root, ["resid.post"])
    whole = tree(root)
    for path in ("plan/dropped.json", "zarr.json"):
        for harm in (b"", whole[path][:-30]):
            (root / path).write_bytes(harm)
            assert not verify(root, full=True).ok
            report = repair(root, full=True)
            assert report.ok
            assert report.redo == []
            assert tree(root) == whole
    (root / "plan/plan.json").unlink()
    report = repair(root, full=True)
    assert report.plan_again
    assert report.redo == []
    (root / "plan/plan.json").write_bytes(whole["plan/plan.json"])
    assert tree(root) == whole


def test_an_extraction_goes_on_without_the_site(tmp_path: Path) -> None:
    """Also after its plan record was lost and made again."""
    world = make_world(tmp_path)
    root, sites = tmp_path / "two.lake", ("mlp.post", "resid.post")
    world.extract(root, sites=sites, blocks=(0, 2))
    before = open_lake(root).read(layer=1, rows=range(100))
    drop_sites(root, ["resid.post"])
    (root / "plan/plan.json").unlink()
    assert world.extract(root, sites=sites) == tuple(range(2, open_lake(world.lake).plan.blocks))
    lake = open_lake(root)
    assert lake.complete
    assert lake.sites == ("mlp.post",)
    assert not (root / "activations/resid.post").exists()
    np.testing.assert_array_equal(lake.read(layer=1, rows=range(100)), before)
    np.testing.assert_array_equal(lake.read(layer=1), open_lake(world.lake).read(layer=1))
    report = verify(root, full=True)
    assert report.ok, report.damage
    assert report.unknown_files == []


def test_kept_results_are_dropped_by_kind(tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    lake = text_lake(root, 1)
    complete_index(lake)
    compute_statistics(lake, by="upos")
    blocks = tree(root, results=False)
    report = drop_results(root, ["statistics"])
    assert [line.partition("/")[0] for line in report.results] == ["statistics"]
    assert {path.partition("/")[0] for path in tree(root)} >= {"index"}
    drop_results(root, ["index"])
    assert tree(root) == blocks
    assert verify(root, full=True).ok


def test_it_asks_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "a.lake"
    text_lake(root, 1)
    before = tree(root)
    for arguments, message in (
        (["--site", "mlp.nope"], "no site 'mlp.nope'"),
        (["--site", *SITES], "without one nothing is left"),
        (["--kept", "everything", "--yes"], "no kind of results 'everything'"),
        (["--site", "resid.post"], "add --yes"),
        (["--site", "resid.post", "--json"], "add --yes"),
    ):
        assert main(["drop", str(root), *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["drop", str(tmp_path / "none"), "--site", "x", "--yes"]) == 2
    assert "no lake at" in capsys.readouterr().err
    for answer, code in (("\n", 1), ("no\n", 1), ("yes\n", 0)):
        monkeypatch.setattr("sys.stdin", _Terminal(answer))
        assert tree(root) == before
        assert main(["drop", str(root), "--site", "resid.post"]) == code
        assert "drop resid.post (" in capsys.readouterr().err
    assert main(["drop", str(root), "--site", "resid.post", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 0
    assert main(["drop", str(root), "--site", "mlp.post", "--yes"]) == 2
    assert "no other site" in capsys.readouterr().err


class _Terminal:
    """A terminal on which somebody types."""

    def __init__(self, answer: str):
        self._answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self._answer
