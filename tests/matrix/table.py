"""The table: a row for each step, a column for each backend, a mark for each frontend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

MARKS = {"passed": "✓", "failed": "✗"}
DOES_NOT_APPLY = "not applicable"


@attrs.define
class Matrix:
    """What became of each cell.  A reason stands in the table as a letter, and below it."""

    backends: Sequence[str]
    frontends: Sequence[str]
    steps: list[str] = attrs.field(factory=list, init=False)
    _outcomes: dict[tuple[str, str, str], str] = attrs.field(factory=dict, init=False)
    _reasons: dict[tuple[str, str, str], str] = attrs.field(factory=dict, init=False)

    def note(self, step: str, frontend: str, backend: str, outcome: str, reason: str = "") -> None:
        """Note an outcome; a cell that failed once has failed."""
        cell = (step, frontend, backend)
        if self._outcomes.get(cell) != "failed":
            self._outcomes[cell] = outcome
            self._reasons[cell] = reason

    def does_not_apply(self, step: str, backend: str, reason: str) -> None:
        """Note that a backend can't have a step, whatever the frontend."""
        for frontend in self.frontends:
            self.note(step, frontend, backend, DOES_NOT_APPLY, reason)

    def lines(self) -> Iterator[str]:
        """Yield the table: names in steps above their columns, marks, reasons, the sum."""
        tried = [cell for cell, what in self._outcomes.items() if what != DOES_NOT_APPLY]
        steps = [step for step in self.steps if any(step == cell[0] for cell in tried)]
        backends = [name for name in self.backends if any(name == cell[2] for cell in tried)]
        width = max(map(len, steps), default=0) + 1
        gap = len(self.frontends)
        for i, backend in enumerate(backends):
            yield " " * width + ("│" + " " * gap) * i + backend
        notes: list[str] = []
        for step in steps:
            cells = (
                "".join(self._mark(step, f, b, notes) for f in self.frontends) for b in backends
            )
            yield f"{step:{width}}{' '.join(cells)}".rstrip()
        yield ""
        yield f"In each column, from left to right: {', '.join(self.frontends)}."
        for i, note in enumerate(notes):
            yield f"  {_letter(i)}  {note}"
        outcomes = [self._outcomes[c] for c in self._outcomes if c[0] in steps and c[2] in backends]
        counted = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
        yield f"{len(outcomes)} cells: {counted}"

    def _mark(self, step: str, frontend: str, backend: str, notes: list[str]) -> str:
        cell = (step, frontend, backend)
        outcome = self._outcomes.get(cell)
        if outcome is None:
            return " "
        if outcome in MARKS:
            return MARKS[outcome]
        reason = self._reasons[cell]
        if reason not in notes:
            notes.append(reason)
        return _letter(notes.index(reason))


def _letter(i: int) -> str:
    return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[i]
