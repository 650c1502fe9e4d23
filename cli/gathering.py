"""Statistics and lists of top tokens per tag, on the way of an extraction."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from neuronlake.store import DamageError, InputError, open_lake
from neuronlake.store.lock import writer_of
from neuronlake.store.objects import LakePath
from neuronlake.store.writer import Tap

if TYPE_CHECKING:
    from neuronlake.analysis import StatisticsBuilder, TagListsBuilder
    from neuronlake.extractor import ExtractReport

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
        self._started = False

    def start(self, lake: LakePath) -> Tap | None:
        """Prepare, once the lake is planned.

        Raises
        ------
        InputError
            When a label was asked for and is unknown, or memory does not suffice.
        """
        from neuronlake.analysis import StatisticsBuilder, TagListsBuilder

        self._started = True
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

    def finish(self, report: "ExtractReport", *, alone: bool) -> None:
        """Keep them, with those of the blocks that others have extracted; while others are still at it, leave that to them.

        Where nothing was left to extract, what a run that was killed while it kept them left undone is computed from what is
        stored.

        Parameters
        ----------
        alone
            Whether the run was to extract what nobody else would.
        """
        root = report.lake
        if not self._started:
            if report.committed == report.blocks and writer_of(root) is None:
                self._catch_up(root)
            return
        if report.committed < report.blocks and not (alone and writer_of(root) is None):
            if self._builders:
                self._say("others extract the rest: the last one keeps statistics and top tokens")
            self._builders.clear()
        elif report.overtaken:  # what was gathered is not of what is stored
            self._builders.clear()
        if self._builders:
            self._say("keeping what was gathered on the way")
        while self._builders:  # each leaves its memory to the next
            self._builders.pop().finish()

    def compute(self, report: "ExtractReport") -> None:
        """Compute them from what is stored, if a label was asked for and the lake is complete."""
        self._builders.clear()  # they have found the label to be one of the plan
        if self._label is not None and report.committed == report.blocks:
            self._catch_up(report.lake)

    def _catch_up(self, path: LakePath) -> None:
        from neuronlake.analysis import complete_tag_lists, compute_statistics
        from neuronlake.analysis.statistics import are_kept
        from neuronlake.analysis.tag_building import are_listed

        if self._label == "none" or (self._label is None and not _has_default(path)):
            return
        label, lake = self._label or _DEFAULT, open_lake(path)
        if are_kept(lake, label) and are_listed(lake, label):
            return
        self._say(f"computing statistics and top tokens of {label} from what is stored")
        compute_statistics(lake, label)
        complete_tag_lists(lake, label)

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
