"""Statistics and lists of top tokens per tag, on the way of an extraction."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from neuronlake.store import DamageError, InputError, open_lake
from neuronlake.store.objects import LakePath
from neuronlake.store.writer import Tap

if TYPE_CHECKING:
    from neuronlake.analysis import StatisticsBuilder, TagListsBuilder

_DEFAULT = "upos"


class Gathering:
    """Gathers the statistics and the top tokens of one label while a lake is extracted.

    Parameters
    ----------
    label
        As `compute_statistics` takes it; ``none`` for none; None for upos where the corpus has it and memory allows.
    say
        Called with remarks.
    """

    def __init__(self, label: str | None, say: Callable[[str], None]):
        self._label, self._say = label, say
        self._builders: list[StatisticsBuilder | TagListsBuilder] = []

    def start(self, lake: LakePath) -> Tap | None:
        """Prepare, once the lake is planned.

        Raises
        ------
        InputError
            When a label was asked for and is unknown, or memory does not suffice.
        """
        from neuronlake.analysis import StatisticsBuilder, TagListsBuilder

        if self._label == "none":
            return None
        if self._label is None and not _has_default(lake):
            return None
        for what, later, make in (
            ("statistics", "the first question computes them", StatisticsBuilder),
            ("top tokens per tag", "`neuronlake index LAKE --by LABEL` lists them", TagListsBuilder),
        ):
            try:
                self._builders.append(make(lake, self._label or _DEFAULT))
            except (InputError, DamageError) as error:  # labels added later may be damaged: blocks need none
                if self._label is not None:
                    raise
                self._say(f"no {what} on the way ({error}); {later}")
        return self._add if self._builders else None

    def finish(self) -> None:
        """Keep them."""
        if self._builders:
            self._say("keeping what was gathered on the way")
        while self._builders:  # each leaves its memory to the next
            self._builders.pop().finish()

    def _add(self, *chunk: Any) -> None:
        for builder in self._builders:
            builder.add(*chunk)


def _has_default(path: LakePath) -> bool:
    lake = open_lake(path)
    if _DEFAULT in lake.plan.label_columns:
        return True
    with suppress(DamageError):  # of labels that were added later
        return _DEFAULT in lake.label_columns
    return False
