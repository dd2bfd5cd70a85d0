"""Progress on stderr: a bar on a terminal, otherwise a line every few seconds that reads well in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sepnet.cli._output import console, duration, megabytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from sepnet.engine import Reporter

__all__ = ["counting", "training_reporter", "transferring"]

Row = dict[str, float | int | None]

# Evaluations that follow faster than this are not all printed; metrics.csv has every one. The gap grows with the run, so
# that its rows fill some screens and not some thousand lines.
ROW_SECONDS = 1.0
ROW_SHARE = 0.02
LINE_SECONDS = 5.0


def training_reporter(split: str | None, processes: int = 1) -> Reporter:
    """What follows a training run on stderr.

    Args:
        split: what is evaluated along the way, "val" or "test"; None for nothing.
        processes: how many share the work; the loop reports the images of one.
    """
    screen = console(stderr=True)
    kind = BarReporter if screen.is_terminal else LineReporter
    return kind(screen, split, processes)


class _Rows:
    """The table of evaluations, thinned to one row a second or less; the last one is always there."""

    def __init__(self, screen: Console, split: str | None) -> None:
        self.screen, self.split = screen, split
        self._header_done = False
        self._began, self._printed = time.monotonic(), float("-inf")
        self._held: Row | None = None

    def add(self, row: Row) -> bool:
        """Print ``row``, or keep it until it is known whether it is the last; True if it was printed."""
        self._held = row
        now = time.monotonic()
        if now - self._printed < max(ROW_SECONDS, ROW_SHARE * (now - self._began)):
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Print the row that was kept."""
        if self._held is None:
            return
        if not self._header_done:
            self.screen.print(self._header(), style="bold", soft_wrap=True)
            self._header_done = True
        self.screen.print(self._text(self._held), soft_wrap=True)
        self._held, self._printed = None, time.monotonic()

    def _header(self) -> str:
        names = ["iteration", "epoch", "train loss", "train %"]
        names += [f"{self.split} loss", f"{self.split} %"] if self.split else []
        return self._line([*names, "time"])

    def _text(self, row: Row) -> str:
        cells = [
            f"{row['iteration']:,}",
            _number(row["epoch"], 1),
            _number(row["train_loss"], 4),
            _number(row["train_accuracy"], 2),
        ]
        if self.split:
            cells += [_number(row.get("eval_loss"), 4), _number(row.get("eval_accuracy"), 2)]
        return self._line([*cells, duration(row["seconds"] or 0)])

    def _line(self, cells: list[str]) -> str:
        widths = (9, 7, 10, 8, 10, 8)
        return " ".join(f"{cell:>{width}}" for cell, width in zip(cells[:-1], widths, strict=False)) + f" {cells[-1]:>12}"


class BarReporter:
    """A bar with loss, accuracy, speed and time left; evaluations are rows above it."""

    def __init__(self, screen: Console, split: str | None, processes: int) -> None:
        self.processes = processes
        self.rows = _Rows(screen, split)
        self.bar = _bar(screen, "{task.fields[figures]}")
        self.task = self.bar.add_task("training", total=None, figures="")

    def start(self, done: int, total: int) -> None:
        """Show the bar."""
        self.bar.update(self.task, total=total, completed=done)
        self.bar.start()

    def step(self, iteration: int, loss: float, accuracy: float, images_per_s: float) -> None:
        """Move the bar."""
        figures = f"loss {loss:.3f}  {accuracy:.1f} %  {_speed(images_per_s * self.processes)}"
        self.bar.update(self.task, completed=iteration, figures=figures)

    def scoring(self, images: int, stopping: bool = False) -> None:
        """Tell of an evaluation in the place of the figures; the bar may be gone already."""
        self.bar.start()
        self.bar.update(self.task, figures=_scoring(images * self.processes, stopping))

    def evaluated(self, row: Row) -> None:
        """Print a row."""
        self.bar.update(self.task, completed=row["iteration"])
        self.rows.add(row)

    def end(self) -> None:
        """Take the bar away; the last row stays."""
        self.rows.flush()
        self.bar.stop()


class LineReporter:
    """For a log: a row at an evaluation, and a line with the speed and the time left every five seconds without one."""

    def __init__(self, screen: Console, split: str | None, processes: int) -> None:
        self.screen, self.processes = screen, processes
        self.rows = _Rows(screen, split)
        self.done, self.total = 0, 0
        self.stopping = False
        self.began = self.printed = time.monotonic()

    def start(self, done: int, total: int) -> None:
        """Begin to measure the time left."""
        self.done, self.total = done, total
        self.began = self.printed = time.monotonic()

    def step(self, iteration: int, loss: float, accuracy: float, images_per_s: float) -> None:
        """A line, if none was printed for a while."""
        now = time.monotonic()
        if now - self.printed < LINE_SECONDS:
            return
        self.printed = now
        left = (now - self.began) / max(1, iteration - self.done) * (self.total - iteration)
        self.screen.print(
            f"iteration {iteration:,}/{self.total:,}: loss {loss:.4f}, accuracy {accuracy:.2f} %, "
            f"{_speed(images_per_s * self.processes)}, {duration(left)} left",
            soft_wrap=True,
        )

    def scoring(self, images: int, stopping: bool = False) -> None:
        """A line, if none was printed for a while, or if the run has just been asked to stop."""
        now = time.monotonic()
        if now - self.printed < LINE_SECONDS and stopping == self.stopping:
            return
        self.printed, self.stopping = now, stopping
        self.screen.print(_scoring(images * self.processes, stopping), soft_wrap=True)

    def evaluated(self, row: Row) -> None:
        """Print a row."""
        if self.rows.add(row):
            self.printed = time.monotonic()

    def end(self) -> None:
        """Print the last row."""
        self.rows.flush()


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback for (done, total) that shows a bar, or lines in a log; nothing appears until it is called."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield _count_lines(screen, what)
        return
    bar = _bar(screen)
    task = bar.add_task(what, total=None)
    started = False

    def show(done: int, total: int) -> None:
        nonlocal started
        if not started:
            bar.start()
            started = True
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()


def _count_lines(screen: Console, what: str) -> Callable[[int, int], None]:
    printed = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal printed
        if time.monotonic() - printed >= LINE_SECONDS:
            printed = time.monotonic()
            screen.print(f"{what}: {done:,} of {total:,}", soft_wrap=True)

    return show


@contextmanager
def transferring() -> Iterator[Callable[[str, int, int], None]]:
    """A callback for (what, bytes done, bytes in all) that shows a bar for each ``what``, or lines in a log."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    screen = console(stderr=True)
    if not screen.is_terminal:
        yield _transfer_lines(screen)
        return
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=8), DownloadColumn(), TransferSpeedColumn()]
    bars = Progress(*columns, TimeRemainingColumn(compact=True), console=screen, transient=True, redirect_stdout=False)
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if not tasks:
            bars.start()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield show
    finally:
        bars.stop()


def _transfer_lines(screen: Console) -> Callable[[str, int, int], None]:
    printed, last = time.monotonic(), ""

    def show(what: str, done: int, total: int) -> None:
        nonlocal printed, last
        if what != last or time.monotonic() - printed >= LINE_SECONDS:
            printed, last = time.monotonic(), what
            screen.print(f"{what}: {megabytes(done)} of {megabytes(total)}", soft_wrap=True)

    return show


def _bar(screen: Console, *figures: str) -> Progress:
    """A bar that vanishes when it is stopped; 80 columns hold it with all its figures."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(bar_width=14), MofNCompleteColumn()]
    texts = [TextColumn(text) for text in figures]
    return Progress(*columns, *texts, TimeRemainingColumn(compact=True), console=screen, transient=True, redirect_stdout=False)


def _number(value: float | int | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _scoring(images: int, stopping: bool) -> str:
    return f"evaluating: {images:,} images done" + (", then the run stops" if stopping else "")


def _speed(images_per_s: float) -> str:
    return f"{images_per_s:,.0f} images/s"
