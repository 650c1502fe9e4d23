"""Statistics on the way of an extraction."""

from collections.abc import Callable
from pathlib import Path

from neuronlake.store import DamageError, InputError, open_lake
from neuronlake.store.writer import Tap

_DEFAULT = "upos"


class Gathering:
    """Gathers the statistics of one label while a lake is extracted.

    Parameters
    ----------
    label
        As `compute_statistics` takes it; ``none`` for none; None for upos where the corpus has it and memory allows.
    say
        Called with remarks.
    """

    def __init__(self, label: str | None, say: Callable[[str], None]):
        from neuronlake.analysis import StatisticsBuilder

        self._label, self._say = label, say
        self._builder: StatisticsBuilder | None = None

    def start(self, lake: Path) -> Tap | None:
        """Prepare, once the lake is planned.

        Raises
        ------
        InputError
            When a label was asked for and is unknown, or memory does not suffice.
        """
        from neuronlake.analysis import StatisticsBuilder

        if self._label == "none":
            return None
        try:
            if self._label is None and _DEFAULT not in open_lake(lake).label_columns:
                return None
            self._builder = StatisticsBuilder(lake, self._label or _DEFAULT)
        except (InputError, DamageError) as error:  # labels that were added later may be damaged: blocks need none
            if self._label is not None:
                raise
            self._say(f"no statistics on the way ({error}); the first question computes them")
            return None
        return self._builder.add

    def finish(self) -> None:
        """Keep them."""
        if self._builder is not None:
            self._say("keeping the statistics gathered on the way")
            self._builder.finish()
