"""`neuronlake serve` as it is typed: what it says, when it ends, and that the port is free afterwards."""

import shutil
import signal
import socket
from pathlib import Path

import pytest
from explorer_pages import Serving, ask, run_serve
from lakes import GrowingLake, make_spec
from query_lakes import make_lake

pytest.importorskip("uvicorn")
pytest.importorskip("jinja2")

from neuronlake.analysis.explorer.shelf import Shelf
from neuronlake.cli.main import main
from neuronlake.store import create_lake


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve") / "[bold]my lake.lake"  # what rich would take for markup
    make_lake(root, encoding="float16", seed=1, tokens=100)
    return root


def test_from_start_to_end(root: Path) -> None:
    with Serving(root, "--port", "0") as serving:
        assert str(root) in serving.said
        assert serving.address == f"http://127.0.0.1:{serving.port}/"
        assert "password" not in serving.said
        assert ask(serving.port, "/").headers["location"] == "/%5Bbold%5Dmy%20lake/"
        assert "run `neuronlake rank " in ask(serving.port, "/%5Bbold%5Dmy%20lake/").text
        assert ask(serving.port, "/%5Bbold%5Dmy%20lake/neuron?neuron=L0.N1").status == 200
        taken = run_serve(root, "--port", serving.port)
        assert (taken.returncode, taken.stdout) == (2, "")
        assert taken.stderr.startswith(f"neuronlake: cannot listen on 127.0.0.1, port {serving.port}: ")
        assert "--port 0" in taken.stderr
        assert taken.stderr.count("\n") == 1
        idle = socket.create_connection(("127.0.0.1", serving.port))  # a browser keeps its connections open
        assert serving.stop(signal.SIGINT) == 0
        idle.close()
        assert "Traceback" not in serving.said
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", serving.port))


def test_elsewhere_and_ended_from_outside(root: Path) -> None:
    with Serving(root, root, "--port", "0", "--host", "0.0.0.0", "--name", "Lakes.Example") as serving:
        assert "no password" in serving.said
        for host in (f"127.0.0.1:{serving.port}", "lakes.example:80"):
            answer = ask(serving.port, "/", host=host)
            assert answer.status == 200
            assert len(answer.page.one("main").all("a")) == 2  # the same lake twice has two names
        assert ask(serving.port, "/", host="0.0.0.0").status == 421
        assert serving.stop(signal.SIGTERM) in (0, -signal.SIGTERM, 143)
        assert "Traceback" not in serving.said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--port", "65536"), "--port must be from 0 to 65535, got 65536"),
        (("--port", "-1"), "--port must be from 0 to 65535, got -1"),
        (("--port", "http"), "invalid int value: 'http'"),
        (("--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid"),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1, port 8421: "),
        (("--host", "x" * 70), "cannot listen on xxx"),
        (("--host", "http://localhost"), "cannot listen on http://localhost"),
        (("--host", ""), "cannot listen on"),
        (("--colour", "red"), "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_options(root: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str) -> None:
    code: object
    try:
        code = main(["serve", str(root), *options])
    except SystemExit as end:  # of argparse
        code = end.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert said in captured.err
    assert "--port 0" not in captured.err


def test_wrong_lakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    growing = GrowingLake(tmp_path / "begun.lake")  # planned; no block committed
    create_lake(
        tmp_path / "unplanned.lake", make_spec(layers=1, neurons=4, block_rows=64, chunk_neurons=4, encoding="float16")
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    wrong = {"missing": "missing", "folder": "is not a lake", "file": "file", "unplanned.lake": "its plan is not finished",
             growing.root.name: "no committed block yet"}  # fmt: skip
    for name, said in wrong.items():
        assert main(["serve", str(tmp_path / name)]) == 2, name
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["serve"])


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "jinja2"])
def test_a_package_is_missing(root: Path, package: str) -> None:
    found = run_serve(root, "--port", "0", code=f"import sys; sys.modules['{package}'] = None")
    assert (found.returncode, found.stdout) == (2, "")
    assert f"serve needs the package {package}: pip install 'neuronlake[explore]'" in found.stderr


def test_a_lake_is_named_by_where_it_is(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(root, tmp_path / "here.lake")
    (tmp_path / "here.lake" / "below").mkdir()
    for where, folder in ((".", "here.lake"), ("..", "here.lake/below"), ("../../here.lake", "here.lake/below")):
        monkeypatch.chdir(tmp_path / folder)
        assert list(Shelf([where]).paths) == ["here"]
