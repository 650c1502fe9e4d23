"""`neuronlake index` as a user types it."""

import json

from lakes import synthetic_lake

from neuronlake.cli.main import main
from neuronlake.store import open_lake, verify
from neuronlake.store.kept import INDEX


def test_lists_are_made_and_damaged_results_go(tmp_path, capsys):
    root = tmp_path / "a.lake"
    synthetic_lake(root, tokens=300)
    assert main(["neighbours", str(root), "L0.N1", "-k", "1"]) == 0  # keeps sketches
    assert main(["index", str(root), "--by", "upos"]) == 0
    blocks = len(open_lake(root).blocks)
    assert f"top tokens by upos: {blocks} of {blocks} blocks read now" in capsys.readouterr().out
    (sketch,) = (root / INDEX).glob("sketch-*")
    (lists,) = (root / INDEX).glob("tags-*")
    for path in (sketch / "moments/c.1.0.0", lists / "values/c.0.0.0.0.0"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert not verify(root, full=True).ok
    assert main(["index", str(root), "--by", "upos", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["removed"]) == sorted([sketch.name, lists.name])
    assert (found["read"], found["listed"]) == (0, {"upos": blocks})
    assert verify(root, full=True).ok
    assert main(["index", str(root), "--by", "nope"]) == 2
    assert "no label column 'nope': known are upos" in capsys.readouterr().err
    assert main(["neighbours", str(root), "L0.N1", "--by", "profile", "--label", "nope"]) == 2
