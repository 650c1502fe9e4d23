"""The comparison's runner: processes that fail, take too long, are interrupted. What they print is in the file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

_RUN = """
import sys
from pathlib import Path
from benchmarks.compare import Part, compare
folder = Path(sys.argv[1])
def part(title, code, limit_s=60):
    return Part(title=title, command=(sys.executable, "-c", code, str(folder)), limit_s=limit_s)
FINE = "print('said'); print('| a | b |'); print('|---|---|'); print('| 1 | 2 |')"
"""


def _compare(folder: Path, chosen: str) -> "subprocess.Popen[str]":
    code = f"{_RUN}\nsys.exit(compare([{chosen}], folder / 'comparison.md'))"
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_failures_and_limits(tmp_path: Path) -> None:
    """A part that fails and one that takes too long are in the table with their error, beside the one that ran."""
    broken = "import sys; print('begun'); sys.exit('the disk | is full')"
    # leaves a file and a process, and neither may stay
    slow = (
        "import pathlib, subprocess, sys, tempfile, time; child = subprocess.Popen(['sleep', '1000']); "
        "left = tempfile.mkdtemp(); pathlib.Path(sys.argv[1], 'left').write_text(f'{child.pid} {left}'); time.sleep(1000)"
    )
    chosen = f"part('Fine', FINE), part('Broken', {broken!r}), part('Slow', {slow!r}, 3), part('After', FINE)"
    process = _compare(tmp_path, chosen)
    shown, said = process.communicate(timeout=100)
    assert process.returncode == 1, said
    text = (tmp_path / "comparison.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[:6]] == ["| part", "| Fine", "| Broken", "| Slow", "| After", "| all"]
    assert table[1].endswith(" s | ran |")
    assert table[2].endswith(" s | not run: the disk   is full |")
    assert table[3].endswith(" s | not run: not done after 3 s |")
    assert table[4].endswith(" s | ran |")
    assert (
        "\n## Fine\n\nsaid\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n## Broken\n\nnot run: the disk   is full.\n\nbegun\n"
        in text
    )
    assert "cores" in text
    assert "neuronlake 0." in text
    assert "| 1 | 2 |" in shown
    assert "the disk | is full" in said
    child, left = (tmp_path / "left").read_text().split()
    assert _has_ended(int(child))
    assert not Path(left).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """What has ended is kept, what a part has printed until then too, and nothing goes on."""
    slow = (
        "import os, pathlib, sys, time; print('half of it'); "
        "pathlib.Path(sys.argv[1], 'begun').write_text(str(os.getpid())); time.sleep(1000)"
    )
    process = _compare(tmp_path, f"part('Fine', FINE), part('Slow', {slow!r}), part('Never', FINE)")
    _wait_for(tmp_path / "begun")
    time.sleep(0.1)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "Traceback" not in said.partition("[compare] Slow")[0]
    text = (tmp_path / "comparison.md").read_text()
    assert "| Fine | " in text
    assert " | not run: interrupted |" in text
    assert "| Never | | not run |" in text
    assert "| 1 | 2 |" in text
    assert "half of it" in text
    assert _has_ended(int((tmp_path / "begun").read_text()))


def test_limits_keep_the_promise() -> None:
    from benchmarks.compare import parts

    assert sum(part.limit_s for part in parts("full", ROOT)) <= 3600
    assert sum(part.limit_s for part in parts("quick", ROOT)) <= 300


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["speed"], "no benchmark is named 'speed'"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["compare", "--patience", "0"], "--patience must be above 0"),
        (["fidelity", "--quick"], "fidelity has no small form"),
    ],
)
def test_wrong_arguments(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert error in capsys.readouterr().err
