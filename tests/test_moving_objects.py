"""Copies between folders and an object store, merges and drops in one."""

from pathlib import Path

import numpy as np
import pytest
from moving import SITES, committed_values, label, text_lake, tree

from neuronlake.cli.main import main
from neuronlake.store import DamageError, complete_index, open_lake, verify
from neuronlake.store.copying import copy_lake
from neuronlake.store.dropping import drop_sites
from neuronlake.store.merging import merge_lakes
from neuronlake.store.objects import LakePath, lake_path


@pytest.fixture
def url(bucket: str) -> str:
    """URL of an empty bucket."""
    return f"s3://{bucket}"


def test_there_and_back_again(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = text_lake(tmp_path / "a.lake", 1, tokens=80)
    complete_index(source)
    label(source.path)
    there: LakePath = lake_path(f"{url}/copies/a.lake")
    assert main(["copy", str(source.path), str(there)]) == 0
    lake = open_lake(there)
    assert lake.complete
    for site in SITES:
        np.testing.assert_array_equal(committed_values(lake, site), committed_values(source, site))
    assert verify(there, full=True).ok
    assert copy_lake(source.path, there).files == 0
    copy_lake(there, lake_path(f"{url}/other.lake"))
    assert main(["copy", f"{url}/other.lake", str(tmp_path / "b.lake")]) == 0
    assert tree(tmp_path / "b.lake") == tree(source.path)
    capsys.readouterr()
    for target, message in ((there, "are the same lake"), (there / "inside", "lies inside")):
        assert main(["copy", str(there), str(target)]) == 2
        assert message in capsys.readouterr().err


def test_merged_and_dropped_in_the_store(url: str, tmp_path: Path) -> None:
    parts = [text_lake(tmp_path / f"{seed}.lake", seed, tokens=80) for seed in (1, 2)]
    there = lake_path(f"{url}/all.lake")
    merge_lakes(there, [part.path for part in parts])
    values = np.concatenate([committed_values(part, "mlp.post") for part in parts], axis=1)
    np.testing.assert_array_equal(committed_values(open_lake(there), "mlp.post"), values)
    drop_sites(there, ["resid.post"])
    lake = open_lake(there)
    assert lake.sites == ("mlp.post",)
    np.testing.assert_array_equal(committed_values(lake, "mlp.post"), values)
    report = verify(there, full=True)
    assert report.ok
    assert report.unknown_files == report.leftovers == []


def test_a_damaged_object_is_not_copied(url: str, tmp_path: Path) -> None:
    source = text_lake(tmp_path / "a.lake", 1, tokens=80)
    there = lake_path(f"{url}/a.lake")
    copy_lake(source.path, there)
    path = there / "activations/mlp.post/1/c.1.0"
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(DamageError, match="does not match its record"):
        copy_lake(there, tmp_path / "b.lake")
    assert open_lake(tmp_path / "b.lake").blocks == (0,)
    assert verify(tmp_path / "b.lake", full=True).ok
