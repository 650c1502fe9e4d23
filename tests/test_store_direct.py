"""Direct writes: any cut of the data into parts gives the same file, also where the file system has no direct writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuronlake.store.direct import DirectFile


@pytest.mark.parametrize("direct", [True, False])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.sampled_from([0, 1, 511, 4095, 4096, 4097, 70_000, 4 << 20, (4 << 20) + 1]), max_size=5))
def test_the_file_holds_exactly_what_was_written(tmp_path: Path, direct: bool, lengths: list[int]) -> None:
    parts = [os.urandom(length) for length in lengths]
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    file = DirectFile(path)
    if not direct:
        os.close(file._descriptor)
        file._descriptor, file._direct = os.open(path, os.O_WRONLY), False
    for part in parts:
        file.write(part)
    file.finish()
    file.sync()
    file.close()
    file.close()
    assert path.read_bytes() == b"".join(parts)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"precious"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
def test_a_forked_process_does_not_write_into_its_parents_file(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from neuronlake.store.direct import DirectFile

def write(name, text):
    file = DirectFile(Path(name))
    file.write(text)
    return file

parents = write("parents", b"parent" * 1000)
if (child := os.fork()) == 0:
    childs = write("childs", b"child" * 1000)
    childs.finish(), childs.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
parents.finish(), parents.close()
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "childs").read_bytes() == b"child" * 1000
    assert (tmp_path / "parents").read_bytes() == b"parent" * 1000
