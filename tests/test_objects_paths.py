"""Paths of objects: names as pathlib's, reading and writing against a real server, refusals in one line."""

import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_server import FaultProxy, free_port, settings

import neuronlake.store.object_client as client
from neuronlake.store import InputError, open_lake
from neuronlake.store.errors import StorageError
from neuronlake.store.objects import ObjectPath, lake_path

NAMES = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters="/"), min_size=1, max_size=9
)
PARTS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4)


@given(PARTS, NAMES.filter(lambda name: name not in (".", "..")))
def test_names_are_those_of_pathlib(parts: list[str], name: str) -> None:
    ours, theirs = lake_path("s3://bucket/" + "/".join(parts)), PurePosixPath("/bucket", *parts)
    assert isinstance(ours, ObjectPath)
    for mine, expected in ((ours, theirs), (ours / name, theirs / name), (ours.with_name(name), theirs.with_name(name))):
        assert str(mine) == f"s3:/{expected}"
        assert (mine.name, mine.stem, mine.suffix) == (expected.name, expected.stem, expected.suffix)
        assert str(mine.parent).rstrip("/") == f"s3:/{expected.parent}"
    assert (ours / name).relative_to(ours) == PurePosixPath(name)
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert len({ours, lake_path(str(ours))}) == 1


@pytest.mark.parametrize(
    ("given", "local"),
    [
        ("a/b.lake", "a/b.lake"),
        ("/a/b", "/a/b"),
        ("file:///a/b%20c", "/a/b c"),
        ("file://localhost/a", "/a"),
        ("c:/x", "c:/x"),
    ],
)
def test_a_local_path_stays_one(given: str, local: str) -> None:
    assert lake_path(given) == Path(local)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("http://host/a.lake", "no lakes can be at http://"),
        ("s3://", "cannot be the name of a bucket"),
        ("s3://b!/x", "cannot be the name of a bucket"),
        ("s3://bucket", "names a bucket, not a lake"),
        ("s3://bucket/", "names a bucket, not a lake"),
        ("s3:/bucket/x", "expected two slashes, s3://bucket/x"),
        ("gs://bucket/../x", "have no place in an object's key"),
        ("az://bucket/a\nb", "have no place in an object's key"),
        ("file://host/x", "a file URL names no host"),
    ],
)
def test_a_url_that_cannot_be_is_refused(given: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        lake_path(given)
    assert said in str(caught.value)


def test_objects_are_written_read_and_listed(bucket: str) -> None:
    folder = lake_path(f"s3://{bucket}/a folder/ä+%20#?&.lake")
    assert isinstance(folder, ObjectPath)
    assert not folder.exists()
    large = os.urandom((2 * client.PART_BYTES) + 12345)
    contents = {"one": b"1", "none": b"", "deep/er/two.json": b"{}", "large": large, "großes Æ=1": b"x"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.sizes()} == contents
    assert {path.name for path in folder.iterdir()} == {"one", "none", "deep", "large", "großes Æ=1"}
    assert [path.name for path in folder.glob("*/*/*.json")] == ["two.json"]
    assert (folder / "large").read_range(client.PART_BYTES - 5, client.PART_BYTES + 9) == large[client.PART_BYTES - 5 :][
        : client.PART_BYTES + 9
    ]
    assert (folder / "large").read_end(7) == (len(large), large[-7:])
    assert (folder / "one").read_end(100) == (1, b"1")
    assert (folder / "deep").is_dir()
    assert not (folder / "deep").is_file()
    assert not (folder / "dee").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "three").read_bytes()
    with pytest.raises(FileNotFoundError):
        (folder / "three").stat()
    (folder / "one").write_bytes(b"1", new=True)
    with pytest.raises(FileExistsError):
        (folder / "one").write_bytes(b"2", new=True)
    assert (folder / "one").read_bytes() == b"1"
    (folder / "one").unlink()
    (folder / "one").unlink()
    assert not (folder / "one").exists()


def refusal(root: str) -> tuple[str, float]:
    begun = time.monotonic()
    with pytest.raises(StorageError) as caught:
        open_lake(root)
    assert "\n" not in str(caught.value)
    return str(caught.value), time.monotonic() - begun


def test_what_is_refused_is_said_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = f"s3://{bucket}/x.lake"
    with pytest.raises(InputError, match="no lake at s3://"):
        open_lake(lake)
    assert "no bucket 'there-is-none'" in refusal("s3://there-is-none/x.lake")[0]
    before = replace(client.TRAFFIC)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    said, seconds = refusal(lake)
    assert "no connection" in said
    assert f"after {client.PATIENCE.tries} tries" in said
    assert client.TRAFFIC.since(before).retries == client.PATIENCE.tries - 1
    assert seconds < 10
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL is 'localhost:9000'"):
        open_lake(lake)


def test_without_credentials_it_says_which_are_missing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # the credential service of a cloud's machine, which is not there
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    said, seconds = refusal(f"s3://{bucket}/x.lake")
    assert "AWS_ACCESS_KEY_ID" in said
    assert seconds < 10


@pytest.mark.parametrize("code", ["AccessDenied", "RequestTimeTooSkewed", "InvalidAccessKeyId"])
def test_what_the_store_says_is_passed_on(
    bucket: str, object_store: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    with FaultProxy(object_store) as proxy:
        proxy.refuse_with(403, f"<Error><Code>{code}</Code><Message>No, because.</Message></Error>".encode())
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        said, seconds = refusal(f"s3://{bucket}/x.lake")
        assert f"status 403: {code}: No, because" in said
        assert "AWS_SECRET_ACCESS_KEY" in said
        assert proxy.counts["requests"] == 1  # asking again would not help
    assert seconds < 5
    assert settings(object_store)["AWS_SECRET_ACCESS_KEY"] not in said


def test_without_the_package_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['obstore'] = None; from neuronlake.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "info", "s3://bucket/x.lake"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "pip install 'neuronlake[cloud]'" in done.stderr
    assert done.stderr.count("\n") == 1
