"""The comparison: what stands beside other tools and the machine's limits, in one run, into one Markdown file.

Each part is a benchmark in a process of its own, with a limit of time and a folder for temporary files that is removed with
it. The limits add up to what the command promises: an hour, or five minutes with ``--quick``. A part that fails is in the
file with its error, and what has ended is in the file whenever the command ends.
"""

import ast
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks import common

FILE = "comparison.md"
_GRACE_S = 10.0
"""Between asking a part to end and ending it."""
_INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One benchmark of the comparison."""

    title: str
    about: str = ""
    """What is measured and how, shown above the figures."""
    command: tuple[str, ...]
    """Prints Markdown; what it says while it runs goes to its standard error."""
    limit_s: float


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a part ended."""

    seconds: float
    output: str
    error: str | None = None
    """Why its figures are missing or incomplete: one line."""


_LAKE = """
import time
from benchmarks.common import ewt_lake
for encoding in ("int8a", "float16"):
    start = time.perf_counter()
    root = ewt_lake(encoding)
    print(f"{root.name}: {time.perf_counter() - start:.0f} s, or less than it takes where it is there already")
"""
LAKE = "The lakes that the others read"
PARTS = (
    # benchmark, title, seconds at most in full and quick: on two cores, half as much again as they take
    ("peers", "Extraction beside other tools", 1500, 110),
    ("storage", "Storage", 480, 60),
    ("replay", "At memory speed", 420, 40),
    ("analysis", "Analysis", 420, 50),
    ("growth", "Growth", 480, 40),
)
LAKE_S = 300


def parts(size: str, folder: Path) -> list[Part]:
    """Return the parts of the full or quick comparison, whose records go into `folder`."""
    own = (sys.executable, "-m", "benchmarks", "--size", size, "--results", str(folder))
    found = [
        Part(title=title, about=about(name), command=(*own, name), limit_s=full if size == "full" else quick)
        for name, title, full, quick in PARTS
    ]
    # which lie under build/ afterwards; small lakes are made by whoever is the first to want them
    return [Part(title=LAKE, command=(sys.executable, "-c", _LAKE), limit_s=LAKE_S), *found] if size == "full" else found


def about(name: str) -> str:
    """Return what a benchmark's module says of itself, without the seconds that importing it takes."""
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def compare(chosen: Sequence[Part], path: Path, *, patience: float = 1.0) -> int:
    """Run the parts one after the other; write `path` after each.

    Parameters
    ----------
    patience
        Factor of all limits, for a slower machine.

    Returns
    -------
    int
        Exit status: 0 when every part ran, 1 when one did not, 130 when it was interrupted.
    """
    ended: dict[str, Ended] = {}
    machine = common.machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _terminated_as_interrupted(), tempfile.TemporaryDirectory(prefix="neuronlake-benchmark-") as lakes:
        for part in chosen:
            _say(f"{part.title} (at most {part.limit_s * patience:.0f} s)")
            ended[part.title] = found = _run(part, part.limit_s * patience, lakes)
            print(f"\n## {part.title}\n\n{tidy(found.output)}".rstrip(), flush=True)
            _say(f"{part.title}: {_outcome(found)}, {found.seconds:.0f} s")
            _write(path, report(machine, chosen, ended))
            if found.error == _INTERRUPTED:
                break
    _say(str(path))
    errors = [found.error for found in ended.values() if found.error]
    return 130 if _INTERRUPTED in errors else int(bool(errors))


# ---- one part -----------------------------------------------------------------------------------------------------------


def _run(part: Part, limit_s: float, lakes: str) -> Ended:
    """Run a part to its end, or to that of its time; small lakes are shared by all in the folder `lakes`."""
    start = time.monotonic()
    said: deque[str] = deque(maxlen=50)
    with tempfile.TemporaryDirectory(prefix="neuronlake-benchmark-") as scratch, tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            part.command,
            cwd=common.ROOT,
            env={**os.environ, "TMPDIR": scratch, "NEURONLAKE_SMALL_LAKES": lakes, "PYTHONUNBUFFERED": "1"},
            stdout=printed,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # with what it starts it is a group, which is ended as one
        )
        teller = threading.Thread(target=_tell, args=(process.stderr, said), daemon=True)
        teller.start()
        error: str | None = None
        try:
            if process.wait(limit_s):
                error = ""
        except subprocess.TimeoutExpired:
            error = f"not done after {limit_s:.0f} s"
        except KeyboardInterrupt:
            error = _INTERRUPTED
        _end(process)
        teller.join(_GRACE_S)
        printed.seek(0)
        output = printed.read().decode(errors="replace")
    if error == "":
        error = said[-1] if said else f"exit status {process.returncode}"
    return Ended(seconds=time.monotonic() - start, output=output, error=error)


def _tell(lines: IO[str], said: deque[str]) -> None:
    for line in lines:
        sys.stderr.write(line)
        sys.stderr.flush()
        if line.strip():
            said.append(line.strip())


def _end(process: "subprocess.Popen[str]") -> None:
    """End a part and whatever it started: let it clean up for a moment first."""
    with contextlib.suppress(ProcessLookupError):
        try:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(_GRACE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the comparison as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    print(f"[compare] {line}", file=sys.stderr, flush=True)


# ---- the file -----------------------------------------------------------------------------------------------------------


def report(machine: Mapping[str, Any], chosen: Sequence[Part], ended: Mapping[str, Ended]) -> str:
    """Return the Markdown of what has ended, and of what has not."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    total = sum(found.seconds for found in ended.values())
    lines = [
        "# Comparison",
        "",
        f"{machine['date']}; {machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB of "
        f"memory; Python {machine['python']}, {versions}.",
        "",
        "| part | wall time | |",
        "|---|---|---|",
        *(
            f"| {part.title} | {ended[part.title].seconds:.0f} s | {_outcome(ended[part.title])} |"
            if part.title in ended
            else f"| {part.title} | | not run |"
            for part in chosen
        ),
        f"| all | {total:.0f} s | |",
    ]
    for part in chosen:
        if part.title in ended:
            found = ended[part.title]
            paragraphs = (f"## {part.title}", part.about, f"{_outcome(found)}." if found.error else "", tidy(found.output))
            lines += [line for paragraph in paragraphs if paragraph for line in ("", paragraph)]
    return "\n".join(lines) + "\n"


def _outcome(found: Ended) -> str:
    return "ran" if found.error is None else f"not run: {found.error.replace('|', ' ')}"


def tidy(output: str) -> str:
    """Set tables and other lines apart, as Markdown wants it, without more blank lines than that."""
    lines: list[str] = []
    for line in output.splitlines():
        in_table = line.startswith("|") and bool(lines) and lines[-1].startswith("|")
        if lines and lines[-1] and not in_table:
            lines.append("")
        if line.strip():
            lines.append(line.rstrip())
    return "\n".join(lines).strip()


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
