"""Lakes written by format version 1 as it was released stay readable, to the last bit.

``python tests/test_golden.py`` wrote the archives. They are never written again: a change that cannot read them needs a new
format version, and archives of its own beside these.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from neuronlake.store import ENCODINGS, open_lake, verify

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("float32", "float16", "bfloat16", "int8a")


@pytest.mark.parametrize("name", NAMES)
def test_a_lake_of_version_1_reads_as_it_was_written(name: str, tmp_path: Path) -> None:
    shutil.unpack_archive(GOLDEN / f"v1-{name}.zip", tmp_path)
    root = tmp_path / f"{name}.lake"
    report = verify(root, full=True)
    assert report.ok, report.damage
    assert not report.unknown_files
    expected = np.load(GOLDEN / f"v1-{name}.npz", allow_pickle=False)
    lake = open_lake(root)
    assert lake.encoding == name
    assert lake.fingerprint == str(expected["fingerprint"])
    for layer in lake.layers:
        np.testing.assert_array_equal(lake.read(layer=layer), expected["values"][layer])
    tokens = lake.tokens(labels=["upos", "form"])
    assert tokens.column("upos").to_pylist() == [label or None for label in expected["upos"].tolist()]
    assert tokens.column("form").to_pylist() == [form or None for form in expected["form"].tolist()]
    assert lake.sentences().column("text").to_pylist() == expected["text"].tolist()


def test_every_encoding_of_version_1_has_its_lake() -> None:
    assert set(NAMES) == set(ENCODINGS), "an encoding without a golden lake: add one"


def write() -> None:
    """Write the archives that are not there yet."""
    import tempfile

    from lakes import synthetic_lake

    rng = np.random.default_rng(0)
    gate, up = rng.standard_normal((2, 2, 150, 21))
    values = (gate / (1 + np.exp(-gate)) * up * 10 ** rng.uniform(-2, 1, 21)).astype(np.float32)
    values[0, :, 3], values[1, :, 4], values[0, ::50, 5] = 0, -1.5, 900  # silent, constant, with massive activations
    for name in NAMES:
        if (GOLDEN / f"v1-{name}.zip").exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / f"{name}.lake"
            synthetic_lake(root, tokens=150, neurons=21, values=values, encoding=name)
            lake = open_lake(root)
            tokens = lake.tokens(labels=["upos", "form"])
            np.savez_compressed(
                GOLDEN / f"v1-{name}.npz",
                fingerprint=lake.fingerprint,
                values=np.stack([lake.read(layer=layer) for layer in lake.layers]),
                upos=[label or "" for label in tokens.column("upos").to_pylist()],
                form=[form or "" for form in tokens.column("form").to_pylist()],
                text=lake.sentences().column("text").to_pylist(),
            )
            shutil.make_archive(str(GOLDEN / f"v1-{name}"), "zip", folder, root.name)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    write()
