"""A small real writing run, as an extraction does it, to try faults on: what it must leave, and how to finish it."""

import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from faults import Faults, die
from forks import ForkServer
from lakes import make_spec, plan_lake, random_sentences
from numpy.typing import NDArray

import neuronlake.store.layout as layout
from neuronlake.store import BlockWriter, InputError, LakeSpec, create_lake, open_lake, verify
from neuronlake.store.commits import committed_blocks, settle_commits
from neuronlake.store.kept import KEPT
from neuronlake.store.lock import writing
from neuronlake.store.plan_record import read_plan_record


@dataclass(kw_only=True)
class Work:
    """A small lake to be written: three blocks of two layers, sentences with labels."""

    encoding: str = "float16"
    tokens: int = 40
    block_rows: int = 16
    neurons: int = 10
    spec: LakeSpec = field(init=False)
    values: NDArray[np.float32] = field(init=False)
    """(layers, tokens, neurons)"""
    rows: NDArray[np.int64] = field(init=False)
    """Row of every token."""
    whole: dict[str, bytes] = field(init=False)
    """Path → content of the lake when nothing goes wrong, folders as None."""
    stored: NDArray[np.float32] = field(init=False)
    """(layers, rows of the plan, neurons) as an undisturbed lake gives them."""

    def prepare_values(self) -> Self:
        """Choose settings and values."""
        rng = np.random.default_rng(7)
        layers = 2
        self.spec = make_spec(
            layers=layers, neurons=self.neurons, block_rows=self.block_rows, chunk_neurons=4, encoding=self.encoding
        )
        self.values = rng.standard_normal((layers, self.tokens, self.neurons)).astype(np.float32)
        return self

    def prepare(self, folder: Path) -> Self:
        """Write the lake once, undisturbed, below `folder`."""
        self.prepare_values()
        _, self.rows = plan_lake(folder / "plan.lake", self.spec, self._sentences())
        self.write(folder / "whole.lake")
        self.whole = contents(folder / "whole.lake")
        lake = open_lake(folder / "whole.lake")
        self.stored = np.stack([lake.read(layer=layer) for layer in lake.layers])
        return self

    def write(self, root: Path, mark: Callable[[str], None] = lambda label: None) -> None:
        """Write the lake, or finish it, as an extraction does; `mark` hears what has been promised."""
        with writing(root):
            create_lake(root, self.spec)
            plan = read_plan_record(root)
            if plan is None:
                plan, _ = plan_lake(root, self.spec, self._sentences())
            mark("planned")
            settle_commits(root)
            done = committed_blocks(root)
            for block in done:
                mark(f"committed {block}")
            with BlockWriter(root, self.spec, threads=2, overlap_encoding=False) as writer:
                for block in range(plan.blocks):
                    if block not in done:
                        self._write_block(writer, block)
                        writer.flush()
                        mark(f"committed {block}")

    def warm_up(self) -> None:
        """Import and compile what writing needs; all threads that this starts have ended."""
        with tempfile.TemporaryDirectory() as folder:
            _, self.rows = plan_lake(Path(folder) / "plan.lake", self.spec, self._sentences())
            self.write(Path(folder) / "whole.lake")

    def check(self, root: Path, *, planned: bool, promised: set[int]) -> set[int]:
        """Assert that what is there is right, and return the committed blocks.

        Parameters
        ----------
        planned
            Whether planning was reported as done.
        promised
            Blocks whose commit was reported as done.
        """
        try:
            lake = open_lake(root)
        except InputError as error:
            if planned:
                raise AssertionError(f"the plan is gone: {error}") from error
            return set()
        assert promised <= set(lake.blocks), f"blocks {promised - set(lake.blocks)} are gone"
        report = verify(root, full=True)
        assert report.ok, report.damage
        for block in lake.blocks:
            rows = slice(block * self.block_rows, (block + 1) * self.block_rows)
            for layer in lake.layers:
                np.testing.assert_array_equal(lake.read(layer=layer, rows=rows), self.stored[layer, rows])
        return set(lake.blocks)

    def finish(self, root: Path) -> None:
        """Write what is left, undisturbed, and assert that every byte is that of an undisturbed lake."""
        with Faults(root.parent, sync=False):
            self.write(root)
        assert_same(contents(root), self.whole)

    def _sentences(self) -> list[Any]:
        return random_sentences(np.random.default_rng(3), self.tokens, tags=("ADJ", "NOUN", "VERB"))

    def _write_block(self, writer: BlockWriter, block: int) -> None:
        mine = np.flatnonzero(self.rows // self.block_rows == block)
        buffer = writer.buffer(len(mine))
        for layer in self.spec.layers:
            buffer.put(
                layout.DEFAULT_SITE,
                layer,
                np.ascontiguousarray(self.values[layer][mine]),
                np.arange(len(mine)),
                self.rows[mine] % self.block_rows,
            )
        writer.submit(block, len(mine), buffer, {"backend": "synthetic"})


def contents(root: Path) -> dict[str, bytes]:
    """Return every file's content by path, and every folder as b"" under its path with a slash.

    Results are left out: they are made again from the blocks, and depend on which blocks were added up together.
    """
    return {
        path.relative_to(root).as_posix() + ("/" if path.is_dir() else ""): b"" if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
        if path.relative_to(root).parts[0] not in KEPT
    }


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Compare two results of `contents`; the message names the first difference."""
    if found != expected:
        paths = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
        path = paths[0]
        state = "missing" if path not in found else "not expected" if path not in expected else "different"
        raise AssertionError(f"{path} is {state} ({len(paths)} such files)")


def write_until_killed(work: Work, root: Path, number: int, when: str) -> None:
    """Write the lake, and end the process at call `number` (see `die`); leaves an empty file per promise."""

    def mark(label: str) -> None:
        (root.parent.parent / label).touch()

    with Faults(root.parent, lambda call: die(when) if call.number == number else None, sync=False):
        work.write(root, mark)


def killing_server(work: Work, folder: Path) -> ForkServer:
    """Return a server whose requests (``root``, ``number``, ``when``) are those of `write_until_killed`."""
    (folder / "work.pickle").write_bytes(pickle.dumps(work))
    return ForkServer(
        "import pickle, writing_run\nfrom pathlib import Path\n"
        f"it = pickle.loads(Path({str(folder / 'work.pickle')!r}).read_bytes())\nit.warm_up()\n"
        "def work(request):\n"
        "    writing_run.write_until_killed(it, Path(request['root']), request['number'], request['when'])\n"
    )


def promises(folder: Path) -> set[int]:
    """Return the blocks that `write_until_killed` noted as committed in `folder`, two above the lake."""
    return {int(path.name.split()[1]) for path in folder.glob("committed *")}
