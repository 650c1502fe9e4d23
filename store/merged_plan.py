"""The plan of merged lakes: theirs, one after the other, numbered on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

import neuronlake.store.layout as layout
import neuronlake.store.tables as tables
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.files import FileRecord, write_file
from neuronlake.store.lake import Lake
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import TABLES, PlanRecord
from neuronlake.store.spec import LakeSpec

MERGED = "merged"
"""Kind of the corpus of a merged lake."""
_NUMBERED = {"row": "row", "document": "document", "sentence": "sentence", "word": "word"}


@dataclass(frozen=True, kw_only=True)
class Offsets:
    """What is added to the numbers of a part."""

    block: int = 0
    row: int = 0
    document: int = 0
    sentence: int = 0
    word: int = 0


def merge_spec(lakes: Sequence[Lake]) -> LakeSpec:
    """Return the settings of the merged lake.

    Raises
    ------
    InputError
        When two lakes differ in anything but their text, or share some of it.
    """
    first = lakes[0]
    expected = _comparable(first.spec)
    for lake in lakes[1:]:
        if (other := _comparable(lake.spec)) != expected:
            names = [name for name in expected | other if expected.get(name) != other.get(name)]
            shown = "; ".join(f"{name}: {_short(expected.get(name))} and {_short(other.get(name))}" for name in names[:3])
            raise InputError(
                f"{first.path} and {lake.path} do not go together ({shown}): only lakes of the same model and "
                "settings can be merged without encoding again"
            )
    parts = [part for lake in lakes for part in _parts(lake)]
    seen: dict[str, str] = {}
    for part in parts:
        for mark, name in _marks(part):
            if mark in seen:
                raise InputError(
                    f"the lakes overlap: {name} is in two of them, and its words would count twice; leave one of them out"
                )
            seen[mark] = name
    corpus = {
        "kind": MERGED,
        "files": [file for part in parts for file in part["corpus"].get("files", [])],
        "parts": parts,
    }
    spec = first.spec
    return LakeSpec(
        model=spec.model,
        capture=spec.capture,
        plan={**spec.plan, "corpus": corpus},
        sites=spec.sites,
        layers=spec.layers,
        neurons=spec.neurons,
        block_rows=spec.block_rows,
        chunk_neurons=spec.chunk_neurons,
        encoding=spec.encoding,
        widths=spec.widths,
    )


class MergedPlan:
    """Tables and record of lakes one after the other."""

    def __init__(self, lakes: Sequence[Lake], spec: LakeSpec):
        self._lakes, self._spec = lakes, spec
        self.offsets: list[Offsets] = []
        """Of every lake."""
        labels: dict[str, str] = {}
        at = Offsets()
        for lake in lakes:
            self.offsets.append(at)
            counts = lake.plan.counts
            blocks = at.block + lake.plan.blocks
            at = Offsets(
                block=blocks,
                row=blocks * spec.block_rows,
                document=at.document + counts["documents"],
                sentence=at.sentence + counts["sentences"],
                word=at.word + counts["words"],
            )
            for label in lake.plan.label_columns:
                if (other := labels.setdefault(label.casefold(), label)) != label:
                    raise InputError(f"the lakes have label columns {other!r} and {label!r}, which SQL cannot tell apart")
        self._ends = [*self.offsets[1:], at]
        self.blocks = at.block
        """Of all of them."""
        self._labels = tuple(sorted(labels.values()))

    def write(self, target: LakePath, root: FileRecord) -> PlanRecord:
        """Write all tables with their new numbers, and return what is to be published."""
        files = {root.path: root}
        for lake, offsets, end in zip(self._lakes, self.offsets, self._ends, strict=True):
            for block in range(lake.plan.blocks):
                for name in TABLES:
                    table = renumbered(lake.read_table(name, block), offsets)
                    _check_numbers(table, end, f"{lake.path / layout.table_path(name, block)}")
                    path = layout.table_path(name, block + offsets.block)
                    files[path] = write_file(target, path, [tables.to_parquet(table)])
        counts: Counter[str] = Counter()
        special: dict[str, str] = {}
        for lake in self._lakes:
            counts.update(lake.plan.counts)
            special |= lake.plan.special_tokens
        return PlanRecord(
            fingerprint=self._spec.fingerprint,
            blocks=self.blocks,
            label_columns=self._labels,
            counts=dict(counts),
            special_tokens=special,
            files=files,
        )


def renumbered(table: pa.Table, offsets: Offsets) -> pa.Table:
    """Return a table with its rows, documents, sentences and words numbered on; −1, which is none of them, stays."""
    for name, kind in _NUMBERED.items():
        if name in table.column_names and (offset := getattr(offsets, kind)):
            numbers = table.column(name).to_numpy()
            moved = np.where(numbers < 0, numbers, numbers + offset)
            place, field = table.column_names.index(name), table.schema.field(name)
            table = table.set_column(place, field, pa.array(moved, field.type))
    return table


def _check_numbers(table: pa.Table, end: Offsets, what: str) -> None:
    """Raise DamageError where a table's numbers reach into the next part's: the plan record would count too few."""
    for name, kind in _NUMBERED.items():
        if name in table.column_names and table.num_rows:
            last = int(table.column(name).to_numpy().max())
            if last >= getattr(end, kind):
                raise DamageError(
                    f"{what}: {name} goes on to {last}, beyond what the plan record counts ({getattr(end, kind)})"
                )


def _comparable(spec: LakeSpec) -> dict[str, Any]:
    """Return everything that must be equal: all but the text, and the sites that are not there any more."""
    whole = {**spec.as_dict(), "sites": list(spec.sites), "neurons": spec.neurons, "widths": dict(spec.widths)}
    flat = {name: value for name, value in whole.items() if name not in ("model", "capture", "plan")}
    return {
        **{f"model.{name}": value for name, value in spec.model.items() if name != "name"},
        **{f"capture.{name}": value for name, value in spec.capture.items()},
        **{f"plan.{name}": value for name, value in spec.plan.items() if name != "corpus"},
        **flat,
    }


def _parts(lake: Lake) -> list[dict[str, Any]]:
    """Return what a lake's text is of: itself, or the parts it was merged from."""
    corpus = lake.spec.plan["corpus"]
    if corpus.get("kind") == MERGED:
        return list(corpus["parts"])
    return [{"lake": lake.fingerprint, "corpus": dict(corpus)}]


def _marks(part: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what tells that two parts share text, with a name for it: the lake, and the checksums of its files."""
    files = part["corpus"].get("files", [])
    marks = {file["sha256"]: file.get("name", "a file") for file in files if "sha256" in file}
    return [(part["lake"], f"lake {part['lake'][:16]}"), *marks.items()]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
