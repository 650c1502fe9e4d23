"""Label sets of merged lakes: of those that all of them have, under the same name and for the same columns."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import neuronlake.store.layout as layout
import neuronlake.store.tables as tables
from neuronlake.store.files import storage_error, write_plain
from neuronlake.store.kept import publish, staging
from neuronlake.store.label_sets import LABELS, UNITS, LabelSet, content_digest, label_file, label_set_names
from neuronlake.store.lake import Lake, open_lake
from neuronlake.store.merged_plan import Offsets, renumbered
from neuronlake.store.objects import LakePath
from neuronlake.store.plan_record import PlanRecord


def merge_labels(
    target: LakePath, plan: PlanRecord, lakes: Sequence[Lake], offsets: Sequence[Offsets], done: list[str], left: list[str]
) -> None:
    """Write the label sets that all lakes have, and say of the others that they were left.

    A set that only some of them have would give the others' words no label, as if they had been looked at.

    Raises
    ------
    DamageError
        When the labels of a source are damaged.
    StorageError
        When a store refuses.
    """
    known = [{labels.name: labels for labels in lake.label_sets} for lake in lakes]
    there = label_set_names(target)
    for name in sorted({name for sets in known for name in sets}):
        having = [sets[name] for sets in known if name in sets]
        if len(having) < len(lakes):
            left.append(f"{LABELS}/{name}: only {len(having)} of the {len(lakes)} lakes have it")
        elif len({(labels.of, labels.record["prefix"], labels.columns) for labels in having}) > 1:
            left.append(f"{LABELS}/{name}: not the same columns in all of the lakes")
        elif clash := {column.casefold() for column in having[0].columns} & {
            column.casefold() for column in plan.label_columns
        }:
            left.append(f"{LABELS}/{name}: another lake has {', '.join(sorted(clash))} in its plan")
        else:
            if name not in there:
                _write(target, plan, name, lakes, having, offsets)
            done.append(f"{LABELS}/{name}")


def _write(
    target: LakePath,
    plan: PlanRecord,
    name: str,
    lakes: Sequence[Lake],
    having: Sequence[LabelSet],
    offsets: Sequence[Offsets],
) -> None:
    unit = UNITS[having[0].of]
    merged, told = open_lake(target), []
    labelled: Counter[str] = Counter()
    with staging(target, name, kept=LABELS) as folder:
        for lake, labels, offset in zip(lakes, having, offsets, strict=True):
            labelled.update(labels.labelled)
            for block in range(lake.plan.blocks):
                number = block + offset.block
                table = renumbered(labels.table(block), offset)
                path = folder / label_file(number)
                try:
                    write_plain(path, [tables.to_parquet(table)], sync=True)
                except OSError as error:
                    raise storage_error(error, path, "write") from error
                of = layout.table_path(unit.table, number)
                content = content_digest(merged.read_table(unit.table, number, list(unit.content)), unit)
                told.append({"path": of, "xxh3": plan.files[of].xxh3, "content": content})
        sources = [labels.source for labels in having]
        record: dict[str, Any] = {
            "lake": plan.fingerprint,
            "of": having[0].of,
            "source": sources[0]
            if all(source == sources[0] for source in sources)
            else {"kind": "merged", "parts": sources},
            "prefix": having[0].record["prefix"],
            "columns": list(having[0].columns),
            "labelled": dict(sorted(labelled.items())),
            "lines": sum(labels.lines for labels in having),
            "tables": told,
        }
        publish(folder, name, record, sync=True)
