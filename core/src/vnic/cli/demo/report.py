"""What the demo shows: progress while it works, and one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich import progress
from rich.console import Console
from rich.table import Table

from vnic.cli.demo.pair import LONG, SHORT

if TYPE_CHECKING:
    from types import TracebackType

    from vnic.cli.demo.scenario import Report


class Progress:
    """A bar on a terminal's stderr; nothing elsewhere, and nothing when ``quiet``."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("opening", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def step(self, what: str, done: int, total: int) -> None:
        """Show what is done now, after ``done`` of ``total`` steps."""
        self._progress.update(self._task, description=what, completed=done, total=total)


def print_report(report: Report) -> None:
    """Print the table, and a line for each part that was skipped."""
    guests = ", ".join(f"{name} {frontend}" for name, frontend in report.guests.items())
    table = Table(box=None, pad_edge=False, caption=guests or None, caption_justify="left")
    table.add_column("pair", no_wrap=True)
    for title in (
        "round trip\nµs",
        f"frames/s\n{SHORT} B",
        f"Gbit/s\n{LONG} B",
        "compared\nMB",
        "drops\n",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            " - ".join(row.pair),
            _shown(row.round_trip_us, ",.0f"),
            _shown(row.frames_per_s, ",.0f"),
            _shown(row.gbit_per_s, ",.2f"),
            f"{row.compared_bytes / 1e6:,.0f}",
            f"{row.drops:,}",
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    for part, why in report.skipped.items():
        console.print(f"skipped: {part}: {why}", soft_wrap=True)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
