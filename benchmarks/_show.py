"""Progress while a benchmark runs, and its table at the end."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks import Row


@contextlib.contextmanager
def progress(name: str, seconds: float) -> Iterator[Callable[[], None]]:
    """Show how much of the time has passed, on a terminal; yields what brings it up to date.

    It is drawn then and at no other time, so that a window is not disturbed.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    since = time.monotonic()
    with Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(name, total=seconds)

        def advance() -> None:
            bar.update(task, completed=time.monotonic() - since, refresh=True)

        yield advance


def show(title: str, rows: Sequence[Row], note: str) -> None:
    """Print rows of the same columns as a table."""
    table = Table(title=title, caption=note, box=box.SIMPLE_HEAD, title_justify="left")
    table.caption_justify = "left"
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*map(_text, row.values()))
    # To a file or pipe, as wide as it takes.
    console = Console()
    Console(width=None if console.is_terminal else 150).print(table)


def _text(value: object) -> str:
    match value:
        case float() if math.isnan(value):
            return "-"
        case float():
            return f"{value:.3g}" if value < 100 else f"{value:.0f}"
        case list():
            return " ".join(map(str, value))
        case _:
            return str(value)
