"""What a power cut may leave behind: every disk state that POSIX allows after a log of calls.

The model is the weakest one that the standard permits. A file's content lasts from its `fsync` on; until then any of it
may be missing, cut, zero or garbage. An entry of a folder (a new file, a new folder, either half of a rename, a removal)
lasts from the folder's own `fsync` on; until then each may have happened or not, independently of all others. Real file
systems are kinder, each in its own way.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from faults import Call

State = dict[str, bytes | None]
"""Path → content; None for a folder."""
_NOTHING = -1


@dataclass(kw_only=True)
class _File:
    content: bytearray = field(default_factory=bytearray)
    lasting: bytes = b""
    """Content at the last `fsync`."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A change of a folder: `name` now means the node, or nothing."""

    name: str
    node: int


@dataclass(kw_only=True)
class _Folder:
    entries: dict[str, int] = field(default_factory=dict)
    lasting: dict[str, int] = field(default_factory=dict)
    pending: list[_Entry] = field(default_factory=list)

    def change(self, name: str, node: int) -> None:
        self.pending.append(_Entry(name=name, node=node))
        if node == _NOTHING:
            self.entries.pop(name, None)
        else:
            self.entries[name] = node


class Disk:
    """Replays calls on files and folders; `states` are what may be found after the power is back."""

    def __init__(self) -> None:
        self._nodes: list[_File | _Folder] = [_Folder()]
        self._handles: dict[int, int] = {}

    def apply(self, call: Call) -> None:
        """Take one call into account."""
        if call.failed:
            return
        getattr(self, f"_{call.name}")(call)

    @property
    def pending(self) -> int:
        """Entry changes that a power cut may undo."""
        return sum(len(node.pending) for node in self._nodes if isinstance(node, _Folder))

    def worst(self) -> State:
        """Everything that may be lost is lost."""
        return self._state(lambda _: False, lambda file: file.lasting)

    def states(self, rng: np.random.Generator, *, random_states: int, each: bool) -> Iterator[State]:
        """Yield states: all changes lost, all kept (with every kind of content), and random ones.

        Parameters
        ----------
        each
            Also every state in which a single change is lost, and in which a single one is kept.
        """
        yield self.worst()
        for content in _CONTENTS:
            yield self._state(lambda _: True, lambda file, content=content: content(file, rng))
        if each:
            for number in range(self.pending):
                yield self._state(lambda index, number=number: index != number, lambda file: file.lasting)
                yield self._state(lambda index, number=number: index == number, lambda file: bytes(file.content))
        for _ in range(random_states):
            kept = rng.random(self.pending) < rng.random()
            choice = lambda file: _CONTENTS[rng.integers(len(_CONTENTS))](file, rng)  # noqa: E731
            yield self._state(lambda index, kept=kept: bool(kept[index]), choice)

    def _state(self, keeps: Callable[[int], bool], content: Callable[[_File], bytes]) -> State:
        names: list[dict[str, int]] = []
        index = 0
        for node in self._nodes:
            entries = dict(node.lasting) if isinstance(node, _Folder) else {}
            for change in node.pending if isinstance(node, _Folder) else ():
                if keeps(index):
                    entries[change.name] = change.node
                index += 1
            names.append({name: node for name, node in entries.items() if node != _NOTHING})
        contents: dict[int, bytes] = {}  # two names of one file show the same
        state: State = {}

        def visit(node: int, path: str) -> None:
            here = self._nodes[node]
            if isinstance(here, _File):
                if node not in contents:
                    whole = bytes(here.content)
                    contents[node] = whole if whole == here.lasting else content(here)
                state[path] = contents[node]
                return
            if path:
                state[path] = None
            for name, below in names[node].items():
                visit(below, f"{path}/{name}" if path else name)

        visit(0, "")
        return state

    # ---- calls ------------------------------------------------------------------------------------------------------

    def _open(self, call: Call) -> None:
        folder, name = self._place(call.path)
        if name and name not in folder.entries:
            assert call.flags & os.O_CREAT
            folder.change(name, self._add(_File()))
        self._handles[call.number] = self._node(call.path)

    def _write(self, call: Call) -> None:
        file = self._file(call)
        end = call.offset + len(call.data)
        file.content.extend(bytes(max(0, end - len(file.content))))
        file.content[call.offset : end] = call.data

    _pwrite = _write

    def _ftruncate(self, call: Call) -> None:
        file = self._file(call)
        file.content.extend(bytes(max(0, call.size - len(file.content))))
        del file.content[call.size :]

    def _fsync(self, call: Call) -> None:
        node = self._nodes[self._handles[call.handle]]
        if isinstance(node, _File):
            node.lasting = bytes(node.content)
        else:
            node.lasting, node.pending = dict(node.entries), []

    def _close(self, call: Call) -> None:
        del self._handles[call.handle]

    def _mkdir(self, call: Call) -> None:
        folder, name = self._place(call.path)
        folder.change(name, self._add(_Folder()))

    def _unlink(self, call: Call) -> None:
        folder, name = self._place(call.path)
        folder.change(name, _NOTHING)

    _rmdir = _unlink

    def _rename(self, call: Call) -> None:
        node = self._node(call.path)
        folder, name = self._place(call.target)
        folder.change(name, node)
        folder, name = self._place(call.path)
        folder.change(name, _NOTHING)

    def _add(self, node: _File | _Folder) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _place(self, path: str) -> tuple[_Folder, str]:
        """Return the folder that holds `path`, and the name in it ("" for the watched folder itself)."""
        if path == ".":
            return self._folder(0), ""
        parts = PurePosixPath(path)
        return self._folder(self._node(str(parts.parent))), parts.name

    def _node(self, path: str) -> int:
        node = 0
        for name in PurePosixPath(path).parts:
            node = self._folder(node).entries[name]
        return node

    def _folder(self, node: int) -> _Folder:
        folder = self._nodes[node]
        assert isinstance(folder, _Folder)
        return folder

    def _file(self, call: Call) -> _File:
        file = self._nodes[self._handles[call.handle]]
        assert isinstance(file, _File)
        return file


def _kept(file: _File, _: np.random.Generator) -> bytes:
    return bytes(file.content)


def _empty(*_: object) -> bytes:
    return b""


def _lost(file: _File, _: np.random.Generator) -> bytes:
    return file.lasting


def _cut(file: _File, rng: np.random.Generator) -> bytes:
    return bytes(file.content[: int(rng.integers(len(file.content) + 1))])


def _zeros(file: _File, _: np.random.Generator) -> bytes:
    return bytes(len(file.content))


def _garbage(file: _File, rng: np.random.Generator) -> bytes:
    return rng.bytes(len(file.content))


_CONTENTS: tuple[Callable[[_File, np.random.Generator], bytes], ...] = (_kept, _empty, _lost, _cut, _zeros, _garbage)


def materialise(state: State, folder: Path) -> None:
    """Make a state's files and folders."""
    for path, content in state.items():  # a folder comes before what is in it
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A power cut: what was promised before it, and what may be found after it."""

    after: int
    """Calls made."""
    promised: frozenset[int]
    """Blocks whose commit was reported as done."""
    state: State


def cuts(
    log: list[Call | str], rng: np.random.Generator, *, random_states: int, each: bool, points: range | None = None
) -> Iterator[Cut]:
    """Yield the distinct outcomes of a power cut after every call of a log (or only after those of `points`)."""
    disk, promised, seen, calls = Disk(), set[int](), set[int](), 0
    for entry in log:
        if isinstance(entry, str):
            if entry.startswith("committed "):
                promised.add(int(entry.split()[1]))
        else:
            disk.apply(entry)
            calls += 1
        if points is not None and calls not in points:
            continue
        for state in disk.states(rng, random_states=random_states, each=each):
            key = hash((frozenset(promised), frozenset(state.items())))
            if key not in seen:
                seen.add(key)
                yield Cut(after=calls, promised=frozenset(promised), state=state)
