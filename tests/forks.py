"""Processes to be killed, forked from one that has everything imported."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

_ARROWS = 1
"""Arrow's I/O thread, started by the first Parquet file that is read: Arrow starts it again in a child."""


class ForkServer:
    """A process with everything imported that forks a child per request: a run without the seconds of imports.

    Forking is safe only from a process without other threads, for a lock that one of them holds stays locked in the child
    for ever. So the server is started afresh (this process may have any number of threads), leaves no thread behind, and
    counts its threads before each fork.

    Parameters
    ----------
    preparation
        Python source that defines ``work(request)``, run once in the server.
    """

    def __init__(self, preparation: str):
        code = f"import forks\n{preparation}\nforks.serve(work)"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            "OPENBLAS_NUM_THREADS": "1",  # its threads start when NumPy is imported
            "JE_ARROW_MALLOC_CONF": "background_thread:false",  # starts when pyarrow is imported
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, **request: Any) -> int:
        """Fork a child for the request and return its process id."""
        self._child = self._ask(request)
        return self._child

    def wait(self, child: int | None = None) -> int:
        """Wait for a child, the last one by default; return its exit status, negative for a signal."""
        return self._ask({"wait for": self._child if child is None else child})

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the fork server has ended; see its error above")
        return int(line)


def serve(work: Callable[[dict[str, Any]], None]) -> None:
    """Fork for each request (a line of JSON on the standard input) and answer with the process id, or wait for one."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait for" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait for"], 0)[1]), flush=True)
            continue
        tasks = Path("/proc/self/task")
        threads = len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()
        if threads > 1 + _ARROWS:
            raise RuntimeError(f"{threads} threads: forking now could leave a lock locked")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(request)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
