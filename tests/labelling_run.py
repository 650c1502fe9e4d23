"""A small labelling of a small lake, to try faults on; it imports little, so that a process of it can be forked."""

from pathlib import Path

import pyarrow as pa
from faults import Faults, die

from neuronlake.store import LabelSettings, label_from_table

WORDS = 100
TABLE = pa.table({"word": range(WORDS), "x": [f"x{word % 3}" for word in range(WORDS)], "y": ["y"] * WORDS})


def label(root: Path, name: str = "mine", prefix: str = "") -> None:
    """Add the table's labels."""
    label_from_table(root, TABLE, LabelSettings(name=name, prefix=prefix))


def label_until_killed(root: str, number: int, when: str) -> None:
    """Add the table's labels, and end the process at call `number` (see `die`)."""
    with Faults(Path(root).parent, lambda call: die(when) if call.number == number else None, sync=False):
        label(Path(root))
