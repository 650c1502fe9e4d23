"""Which blocks are being extracted at this moment: so that several processes share the work, not so that it is right.

A claim is ``flock`` on a file per block, which the kernel releases when its process ends, however it ends: nothing expires
and no clock is asked. Where there are no locks, nobody is told apart: blocks are then taken in an order of chance, so that
two processes rarely meet at one. If they do they write the same bytes, each file at once, and the commit is one of theirs.
"""

import contextlib
import fcntl
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from neuronlake.store.commits import is_committed
from neuronlake.store.lock import CLAIMS, held_descriptors, is_at
from neuronlake.store.objects import LakePath


class Claims:
    """The blocks that this process is at. Use it as a context: what is claimed is given back at the end.

    Parameters
    ----------
    root
        The lake.
    locks
        Whether the lake has locks, see `neuronlake.store.lock.writing`.
    """

    def __init__(self, root: LakePath, *, locks: bool):
        self._root = root
        self._folder = root / CLAIMS if locks and isinstance(root, Path) else None
        self._held: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
        if self._folder is not None:
            with contextlib.suppress(OSError):  # others have claims in it
                self._folder.rmdir()

    def left(self, blocks: Iterable[int]) -> Iterator[int]:
        """Yield those of the blocks that are not committed when their turn comes and that nobody else is at; claimed.

        Those that others are at are asked for again as long as something else was found to do: others may have died.
        """
        pending = list(blocks)
        if self._folder is None:
            random.SystemRandom().shuffle(pending)
        found = True
        while found and pending:
            found, others = False, []
            for block in pending:
                if is_committed(self._root, block):
                    continue
                if not self.take(block):
                    others.append(block)
                elif is_committed(self._root, block):  # between the look and the claim
                    self.release(but=set(self._held) - {block})
                else:
                    found = True
                    yield block
            pending = others

    def take(self, block: int) -> bool:
        """Claim a block: False if another process is at it. True where there is nothing to claim with."""
        if self._folder is None:
            return True
        path = self._folder / f"{block:06d}"
        while True:
            try:
                self._folder.mkdir(exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:  # the folder was removed, empty, between the two calls
                continue
            except OSError:  # a claim only spares work
                return True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError:
                os.close(descriptor)
                return True
            if is_at(descriptor, path):
                break
            os.close(descriptor)  # given back, and the file removed, after we had opened it
        held_descriptors.add(descriptor)
        self._held[block] = descriptor
        return True

    def release(self, *, but: Iterable[int] = ()) -> None:
        """Give all blocks back, except some: call it when they are committed."""
        assert self._folder is not None or not self._held
        for block in set(self._held) - set(but):
            descriptor = self._held.pop(block)
            if self._folder is None or descriptor not in held_descriptors:  # a forked child unwinds
                continue
            with contextlib.suppress(OSError):
                (self._folder / f"{block:06d}").unlink()
            held_descriptors.discard(descriptor)
            with contextlib.suppress(OSError):
                os.close(descriptor)
