"""Progress of an extraction on the terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from neuronlake.cli.common import size
from neuronlake.extractor.settings import Observer


class ExtractProgress:
    """A bar with tokens (or frames: `unit`) per second, bytes written, time left; without a terminal, one line per step."""

    def __init__(self, console: Console, *, unit: str = "token"):
        self._console = console
        self._unit = unit
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[written]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._planning: TaskID | None = None
        self._extracting: TaskID | None = None
        self.observer = Observer(say=self._say, planned=self._planned, start=self._start, advance=self._advance)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _say(self, message: str) -> None:
        self._console.print(f"[dim]{message}…[/dim]")

    def _planned(self, sentences: int) -> None:
        if self._planning is None:
            self._planning = self._bar.add_task("planning", total=None, rate="", written="")
        self._bar.advance(self._planning, sentences)
        done = int(self._bar.tasks[self._bar.task_ids.index(self._planning)].completed)
        self._bar.update(self._planning, rate=f"{done:,} sentences")

    def _start(self, total_tokens: int, done_tokens: int) -> None:
        if self._planning is not None:
            self._bar.remove_task(self._planning)
            self._planning = None
        if done_tokens:
            self._say(f"{done_tokens:,} of {total_tokens:,} {self._unit}s are committed already")
        self._say(f"extracting {total_tokens - done_tokens:,} {self._unit}s")
        self._extracting = self._bar.add_task("extracting", total=total_tokens - done_tokens, rate="", written="")

    def _advance(self, tokens: int, bytes_written: int) -> None:
        if self._extracting is None:
            return
        self._bar.advance(self._extracting, tokens)
        task = self._bar.tasks[self._bar.task_ids.index(self._extracting)]
        rate = f"{task.speed:,.0f} {self._unit}s/s" if task.speed else ""
        self._bar.update(self._extracting, rate=rate, written=f"{size(bytes_written)} written")
