"""The lakes that are shown: opened once, opened again when they have changed, missed when they are gone."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from neuronlake.analysis.kept_statistics import kept_labels
from neuronlake.analysis.labels import LabelRequest, check_label
from neuronlake.analysis.rankers import PROBE, RANKERS
from neuronlake.analysis.ranking import score
from neuronlake.analysis.statistics import kept_statistics
from neuronlake.store.errors import DamageError, InputError, NeuronlakeError
from neuronlake.store.kept import KEPT
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.objects import LakePath, lake_path
from neuronlake.store.reader import Cache

METHODS = tuple(name for name, ranker in RANKERS.items() if not ranker.also and PROBE not in ranker.needs)
"""Rankings that kept statistics answer without reading activations."""
DEFAULT_METHOD = "auroc"
_REMEMBERED = 8  # tables of statistics and scores per lake: 60 MB each for 17 tags of 46,080 neurons
_REMEMBERED_SMALL = 64  # answers of some kilobytes
_LOOK_S = 1.0  # how often a folder is looked at
_LOOK_REMOTE_S = 60.0  # and an object store
_TAKEN = ("static", ".", "..")  # in addresses
_WATCHED = ("plan/plan.json", "commits", "labels", *KEPT)


class GoneError(InputError):
    """A lake that was there when the server started is not there now, or is another one."""


class NotKeptError(InputError):
    """What a page shows is not kept in the lake yet; the message says what makes it."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A lake as it is now, at one site, with the answers given lately."""

    name: str
    """In addresses."""
    lake: Lake
    labels: tuple[str, ...]
    """Those whose statistics are kept."""
    _answers: Cache[Any] = field(default_factory=lambda: Cache(_REMEMBERED), repr=False)
    _small: Cache[Any] = field(default_factory=lambda: Cache(_REMEMBERED_SMALL), repr=False)

    def remember(self, key: Any, make: Callable[[], Any], *, small: bool = False) -> Any:
        """Return what was made for that key, or make it; `small` answers do not push tables out."""
        return (self._small if small else self._answers).get(key, make)

    def label(self, by: str | None) -> str:
        """Return the label asked for, or the one to begin with.

        Raises
        ------
        NotKeptError
            When there is none whose statistics are kept.
        InputError
            When the lake has no such label.
        """
        if by:
            by = LabelRequest(by=by).by
            if by not in self.labels:
                check_label(self.lake, by)
            return by
        if not self.labels:
            raise NotKeptError(
                "no statistics are kept in this lake yet: run "
                f"`neuronlake rank {self.lake.path} --by LABEL` once, then reload (labels: {_some(self.lake.label_columns)})"
            )
        return "upos" if "upos" in self.labels else self.labels[0]

    def statistics(self, by: str) -> xr.Dataset:
        """Return a label's statistics, from what is kept.

        Raises
        ------
        NotKeptError
            When they are not kept, or not of all committed blocks.
        """

        def load() -> xr.Dataset:
            if (found := kept_statistics(self.lake, by)) is None:
                raise NotKeptError(
                    f"statistics of {by!r} are not kept for all {len(self.lake.blocks)} committed blocks: run "
                    f"`neuronlake rank {self.lake.path} --by {by!r}` once, then reload"
                )
            return found

        found: xr.Dataset = self.remember(("statistics", by), load)
        return found

    def scores(self, by: str, method: str) -> xr.Dataset:
        """Return every neuron's score for every tag, in memory.

        Raises
        ------
        InputError
            When the method is unknown, or needs more than is kept.
        """
        if method not in METHODS:
            raise InputError(f"unknown ranking {method!r}: known here are {', '.join(METHODS)}")
        found: xr.Dataset = self.remember(
            ("scores", by, method), lambda: score(self.statistics(by), method).transpose("tag", "layer", "neuron", ...)
        )
        return found


class Shelf:
    """Lakes by the names that addresses use.

    Raises
    ------
    InputError
        When one cannot be opened, or holds no committed block.
    """

    def __init__(self, lakes: Sequence[str | Path]):
        self.paths: dict[str, LakePath] = {}
        for where in lakes:
            path = lake_path(where).absolute()
            if isinstance(path, Path) and ".." in path.parts:
                path = path.resolve()  # for its name
            self.paths[_free_name(path.name.removesuffix(".lake") or "lake", self.paths)] = path
        self._lock = threading.Lock()
        self._looked: dict[str, float] = {}
        self._stamps: dict[str, Any] = {}
        self._open: dict[tuple[str, str | None], Opened] = {}
        self._fingerprints = {name: _whole(path).fingerprint for name, path in self.paths.items()}

    def open(self, name: str, site: str | None = None) -> Opened:
        """Return a lake as it is now.

        Raises
        ------
        GoneError
            When it was moved, removed or replaced by another one.
        InputError
            When there is no lake of that name, or no such site.
        """
        if name not in self.paths:
            raise InputError(f"no lake {name!r} here: there are {', '.join(self.paths)}")
        path = self.paths[name]
        with self._lock:
            now = time.monotonic()
            if now - self._looked.get(name, -1e9) >= (_LOOK_S if isinstance(path, Path) else _LOOK_REMOTE_S):
                stamp = self._look(name, path)
                if stamp != self._stamps.get(name) or not isinstance(path, Path):
                    self._open = {key: opened for key, opened in self._open.items() if key[0] != name}
                self._stamps[name], self._looked[name] = stamp, now
            if (name, site) not in self._open:
                lake = self._reopen(name, path).at(site)
                try:
                    labels = tuple(kept_labels(lake))
                except DamageError:
                    labels = ()
                self._open[name, site] = Opened(name=name, lake=lake, labels=labels)
            return self._open[name, site]

    def missing(self, name: str) -> GoneError | None:
        """Return what to say where a lake is not where it was; None if it is."""
        path = self.paths.get(name)
        if not isinstance(path, Path) or (path / "plan" / "plan.json").exists():
            return None
        return GoneError(f"the lake {path} is not there any more: it was moved or removed; put it back, then reload")

    def warm_up(self) -> None:
        """Load what the first pages take: statistics, and the code that decodes activations."""
        for name in self.paths:
            with suppress(NeuronlakeError):  # a page says it
                opened = self.open(name)
                opened.lake.read(
                    layer=opened.lake.layers[0], rows=[opened.lake.blocks[0] * opened.lake.block_rows], neurons=[0]
                )
                opened.scores(opened.label(None), DEFAULT_METHOD)

    def _look(self, name: str, path: LakePath) -> Any:
        """What changes when a lake changes."""
        if not isinstance(path, Path):
            return None
        if (gone := self.missing(name)) is not None:
            self._looked.pop(name, None)
            self._stamps.pop(name, None)
            raise gone
        return [(path / part).stat().st_mtime_ns if (path / part).exists() else None for part in _WATCHED]

    def _reopen(self, name: str, path: LakePath) -> Lake:
        lake = _whole(path)
        if lake.fingerprint != self._fingerprints[name]:
            raise GoneError(f"another lake is at {path} now: start `neuronlake serve` again to see it")
        return lake


def _whole(path: LakePath) -> Lake:
    lake = open_lake(path)
    if not lake.blocks:
        raise InputError(f"{path} has no committed block yet: run the `neuronlake extract` that began it again")
    return lake


def _free_name(wanted: str, taken: Mapping[str, Any]) -> str:
    number, name = 2, wanted
    while name in taken or name in _TAKEN:
        name, number = f"{wanted}-{number}", number + 1
    return name


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
