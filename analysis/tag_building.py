"""Lists of the highest and lowest tokens per tag × neuron: gathered while extracting, or from what is stored."""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronlake.analysis.building import free_memory_share
from neuronlake.analysis.groups import BlockGroups, group_blocks
from neuronlake.analysis.labels import LabelRequest, LabelVector, labels_key, token_labels
from neuronlake.store.commits import commit_checksums
from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.kept import INDEX, kept_record
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.objects import LakePath
from neuronlake.store.tag_lists import LayerLists, TagLists, keep_tag_lists

MAX_TAGS = 256
_TRIES = 4  # others replace what is kept a few times at most: each time it covers more
_MAX_ROWS = 1 << 32  # a row number takes four bytes in a list
_Progress = Callable[[int, int], None]


class TagListsBuilder:
    """Lists the extreme tokens of every tag at the first site while an extraction stores it; some blocks may be there.

    Parameters
    ----------
    path
        A lake whose plan is published.
    by
        Label, as `token_labels` takes it; all tokens of a word have its tag.
    max_bytes
        Largest memory; by default a quarter of what is free.

    Raises
    ------
    InputError
        When the label is unknown, has too many tags, or the memory would not do.
    """

    def __init__(self, path: LakePath, by: str, *, max_bytes: int | None = None):
        lake = open_lake(path)
        planned = Lake(lake.path, lake.spec, lake.plan, tuple(range(lake.plan.blocks)))
        self._path, self._by, self._site = path, by, lake.site
        self._making = _Making(lake, _labels(planned, by))
        needed = len(lake.layers) * self._making.layer_bytes
        allowed = free_memory_share() if max_bytes is None else max_bytes
        if needed > allowed:
            raise InputError(
                f"listing the top tokens of {by!r} while extracting takes {needed / 1e9:.1f} GB, at most "
                f"{allowed / 1e9:.1f} GB may be used"
            )
        self._groups = self._making.groups(range(lake.plan.blocks))
        self._layers: dict[int, LayerLists] = {}
        self._seen: set[int] = set()
        self._lost = False
        self._lock = Lock()

    def add(self, site: str, layer: int, block: int, chunk: int, codes: NDArray[Any]) -> None:
        """Add a chunk: bit patterns of its stored values. Different columns may be added from different threads."""
        if site != self._site:
            return
        with self._lock:
            self._seen.add(block)
            if layer not in self._layers and not self._lost:
                try:
                    self._layers[layer] = self._making.begin(layer)
                except DamageError:
                    if not self._making.replaced:
                        raise
                    self._lost = True
        if block in self._groups and not self._lost:
            groups = self._groups[block]
            self._layers[layer].add(block, chunk, codes, groups.rows, groups.start)

    def finish(self, *, progress: _Progress = lambda done, total: None) -> None:
        """Keep the lists in the lake, now that every block that was added is committed."""
        lake = open_lake(self._path)
        if missing := self._seen - set(lake.blocks):
            raise AssertionError(f"block {min(missing)} was added but not committed")
        covered = set() if self._lost else self._seen | set(self._making.covered)
        if self._seen and not self._lost:
            self._making.keep(lake, covered, lambda layer: self._layers.pop(layer), progress)
        if not covered >= set(lake.blocks):  # of a run that was killed
            complete_tag_lists(open_lake(self._path), self._by, progress=progress)


def complete_tag_lists(lake: Lake, by: str, *, progress: _Progress = lambda done, total: None) -> int:
    """List the extreme tokens of every tag × neuron, from the activations of the blocks for which that was not done.

    Layer by layer: memory is that of one layer's lists.

    Parameters
    ----------
    progress
        Called with (layers done, layers in all).

    Returns
    -------
    int
        Blocks that were read.

    Raises
    ------
    InputError
        When the label is unknown or has too many tags.
    DamageError
        When an activation chunk is damaged.
    StorageError
        When the file system refuses.
    """
    for _ in range(_TRIES - 1):
        making = _Making(lake, _labels(lake, by))
        try:
            return _complete(lake, making, progress)
        except DamageError:
            if not making.replaced:
                raise
    return _complete(lake, _Making(lake, _labels(lake, by)), progress)


def are_listed(lake: Lake, by: str) -> bool:
    """Whether the lists of a label cover every committed block; their bytes are not looked at."""
    wanted = labels_key(lake, _request(by))
    return any(lists.labels == wanted and {*lists.blocks} >= {*lake.blocks} for lists in lake.index().tag_lists)


def _complete(lake: Lake, making: "_Making", progress: _Progress) -> int:
    missing = [block for block in lake.blocks if block not in making.covered]
    if not missing:
        return 0
    groups = making.groups(missing)

    def read(layer: int) -> LayerLists:
        lists = making.begin(layer)
        codes = np.empty(lake.reader.chunk_shape, dtype=lake.reader.encoding.stored)
        for block, rows in groups.items():
            chunks = range(lake.reader.chunks)
            found = lake.read_chunks(layer=layer, block=block, chunks=chunks, rows=1 + rows.last_row, out=codes)
            for chunk, _ in enumerate(found):
                lists.add(block, chunk, codes, rows.rows, rows.start)
        return lists

    making.keep(lake, {*making.covered, *missing}, read, progress)
    return len(missing)


class _Making:
    """What extraction and completion share: where to begin, and how to keep the result."""

    def __init__(self, lake: Lake, labels: LabelVector):
        self._lake = lake
        self._values = get_encoding(lake.encoding).values
        rows = lake.plan.blocks * lake.block_rows
        if rows > _MAX_ROWS:
            raise InputError(f"the lake has {rows} rows: top tokens per tag are listed for at most {_MAX_ROWS}")
        self._base = _kept(lake, labels.by)
        known = () if self._base is None else self._base.tags  # of a plan whose blocks are not all committed: more tags
        self._labels = labels.with_tags(tuple(sorted({*labels.tags, *known})))
        self.covered: tuple[int, ...] = () if self._base is None else self._base.blocks
        """Blocks that need not be added."""

    @property
    def replaced(self) -> bool:
        """Whether what is kept has been replaced by somebody else since this began; where locks work, nobody does."""
        return self._base is not None and not self._base.folder.exists()

    @property
    def layer_bytes(self) -> int:
        """Memory of one layer's lists."""
        return LayerLists.bytes(tags=len(self._labels.tags), neurons=self._lake.neurons, values=self._values)

    def groups(self, blocks: Collection[int]) -> dict[int, BlockGroups]:
        """Rows of some blocks by tag."""
        return {group.block: group for group in group_blocks(self._labels, folds=1, blocks=blocks)}

    def begin(self, layer: int) -> LayerLists:
        """Lists of a layer that hold what is kept."""
        lists = LayerLists(
            tags=len(self._labels.tags),
            neurons=self._lake.neurons,
            chunk_neurons=self._lake.chunk_neurons,
            values=self._values,
        )
        if self._base is not None:
            lists.go_on_from(self._base, self._lake.layers.index(layer), self._labels.tags)
        return lists

    def keep(self, lake: Lake, blocks: Iterable[int], layer: Callable[[int], LayerLists], progress: _Progress) -> None:
        """Keep the lists of these blocks; `layer` gives those of a layer."""
        covered, labels = sorted(blocks), self._labels
        codes = labels.codes.reshape(-1, labels.block_rows)
        keep_tag_lists(
            lake.path,
            lake.site,
            labels=labels_key(lake, _request(labels.by)),
            tags=labels.tags,
            blocks=commit_checksums(lake.path, covered),
            row_tags=codes[[labels.blocks.index(block) for block in covered]],
            layers=len(lake.layers),
            neurons=lake.neurons,
            values=self._values,
            layer=lambda place: layer(lake.layers[place]),
            progress=progress,
        )


def _request(by: str) -> LabelRequest:
    return LabelRequest(by=by, subword="all")


def _labels(lake: Lake, by: str) -> LabelVector:
    labels = token_labels(lake, by, subword="all", min_tokens=1)
    if len(labels.tags) > MAX_TAGS:
        raise InputError(f"{by!r} has {len(labels.tags)} values: top tokens are listed for at most {MAX_TAGS}")
    return labels


def _kept(lake: Lake, by: str) -> TagLists | None:
    """What is kept of this label, whole: damage is found now, not when half is done."""
    wanted = labels_key(lake, _request(by))
    for lists in lake.index().tag_lists:
        if lists.labels == wanted:
            with suppress(DamageError):
                kept_record(lake.path, lists.name, kept=INDEX, full=True)
                return lists
    return None
