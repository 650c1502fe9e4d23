"""Dask schedulers and workers as processes of their own, with whatever environment a test needs."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def process(kind: str, *arguments: str, path: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A ``dask scheduler`` or ``dask worker``; `path` comes first on its PYTHONPATH. Gone when the block ends."""
    environment: Mapping[str, str] = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            str(Path(each).absolute())
            for each in (path, Path(__file__).parent, *os.environ.get("PYTHONPATH", "").split(os.pathsep))
            if each
        ),
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
    }
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", "127.0.0.1", "--no-dashboard", *arguments]
    # `python -m` searches the folder it is started in first; an editable installation's metadata lie in this one.
    running = subprocess.Popen(
        command,
        env=environment,
        cwd=path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@contextmanager
def scheduler(**options: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler: its address, once it listens, and its process."""
    port = free_port()
    with process("scheduler", "--port", str(port), **options) as running:
        until = time.monotonic() + 60
        while True:
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert running.poll() is None, "the scheduler ended"
            assert time.monotonic() < until, "the scheduler does not listen"
            time.sleep(0.1)
        yield f"tcp://127.0.0.1:{port}", running


@contextmanager
def worker(address: str, **options: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of one thread without a nanny: killed, it does not come back."""
    with process("worker", address, "--nthreads", "1", "--no-nanny", **options) as running:
        yield running
