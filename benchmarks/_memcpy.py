"""Cases measured beside memcpy: a window of one, a window of the other, and so on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from kit.missing import Missing

from benchmarks._native import library
from benchmarks._show import progress, show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks import Row

WINDOW_S: Final = 0.1


class Bench(Protocol):
    """One case, set up."""

    def vnic(self, seconds: float) -> Any:
        """Move frames for so long; return what was seen."""

    def memcpy(self, seconds: float) -> Any:
        """Copy the same bytes with memcpy for so long; return what was seen."""

    def n_lost(self) -> int:
        """Return how many frames are gone."""

    def close(self) -> None:
        """Let everything go."""


def measure(
    name: str,
    title: str,
    cases: Sequence[Any],
    make: Callable[[Any], Bench],
    row: Callable[[Any, list[tuple[Any, Any]], int], Row],
    seconds: float,
) -> list[Row]:
    """Measure the cases one after the other, print their table and return its rows."""
    try:
        library()
    except Missing as missing:
        print(f"{name}: skipped: {missing}")
        return []
    n_pairs = max(1, round(seconds / len(cases) / (2 * WINDOW_S)))
    rows = []
    with progress(name, seconds) as advance:
        for case in cases:
            bench = make(case)
            bench.vnic(WINDOW_S)
            bench.memcpy(WINDOW_S)
            windows = []
            for _ in range(n_pairs):
                windows.append((bench.vnic(WINDOW_S), bench.memcpy(WINDOW_S)))
                advance()
            rows.append(row(case, windows, bench.n_lost()))
            bench.close()
    show(
        title,
        rows,
        f"Medians of {n_pairs} windows of {WINDOW_S:g} s, each with one of memcpy beside it; from "
        f"'ns a frame' on: nanoseconds.",
    )
    return rows
