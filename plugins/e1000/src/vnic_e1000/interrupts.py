"""Interrupts: causes, their mask, and when the pin may rise.

Spec: 8254x Family Software Developer's Manual, "Interrupt Register Descriptions"; "Interrupt
Moderation".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vnic_e1000.registers import CAUSES, Cause

if TYPE_CHECKING:
    from vnic.loop import Loop, Timer

ITR_UNIT_S: Final = 256e-9
DELAY_UNIT_S: Final = 1.024e-6
"""Of RDTR, RADV, TIDV and TADV."""

HANDLER_S: Final = 500e-6
"""How long the pin stays down after the driver took the causes, if it says nothing more.

What comes in the meantime its handler will find without another interrupt: it is about to disable
them and to look at the rings.  A pin that rose before that would cost the guest a second handler.
"""


class Interrupts:
    """Causes are raised; the pin follows those that are enabled, no more often than ITR allows."""

    def __init__(self, loop: Loop, set_irq: Callable[[bool], None]) -> None:
        self._loop = loop
        self._set_irq = set_irq
        self._timer: Timer | None = None
        self._level = False
        self._risen_s = float("-inf")
        self._handled_s = float("-inf")  # when the driver's handler is over, as far as known
        self.cause = 0
        self.mask = 0
        self.interval_s = 0.0
        """The least time between two rises of the pin."""

    def reset(self) -> None:
        """Nothing is raised, nothing enabled."""
        self.cause = self.mask = 0
        self.interval_s = 0.0
        self._risen_s = self._handled_s = float("-inf")
        self._update()

    def raise_cause(self, cause: int) -> None:
        """Add causes; those that a driver leaves standing, as one that polls does, are no news."""
        new = cause & CAUSES & ~self.cause
        if new:
            self.cause |= int(new)
            self._update()

    def take_cause(self) -> int:
        """Return the causes and clear them, as a read of ICR does."""
        cause, self.cause = self.cause, 0
        if self._level:
            self._handled_s = self._loop.clock() + HANDLER_S
        self._update()
        return cause

    def clear_cause(self, cause: int) -> None:
        """Clear some causes."""
        self.cause &= ~cause
        self._update()

    def enable(self, cause: int) -> None:
        """Let causes interrupt."""
        self.mask |= int(cause) & CAUSES
        self._handled_s = float("-inf")
        self._update()

    def disable(self, cause: int) -> None:
        """Keep causes from interrupting."""
        self.mask &= ~cause
        self._handled_s = float("-inf")
        self._update()

    def _update(self) -> None:
        wanted = bool(self.cause & self.mask)
        if wanted == self._level:
            return
        if not wanted:
            self._set_level(False)
            return
        due_s = max(self._risen_s + self.interval_s, self._handled_s)
        wait_s = due_s - self._loop.clock()
        if wait_s <= 0:
            self._set_level(True)
        elif self._timer is None:
            self._timer = self._loop.timer(wait_s, self._expire)

    def _set_level(self, level: bool) -> None:
        self._level = level
        if level:
            self._risen_s = self._loop.clock()
        self._set_irq(level)

    def _expire(self) -> None:
        self._timer = None
        self._update()


class Delay:
    """A cause that waits for company: some time from the last event, at most some from the first.

    Without a time from the last, it doesn't wait.
    """

    def __init__(self, loop: Loop, interrupts: Interrupts, cause: Cause) -> None:
        self._loop = loop
        self._interrupts = interrupts
        self._cause = int(cause)
        self._timer: Timer | None = None
        self._due_s = 0.0
        self._latest_s = float("inf")
        self.packet = 0
        """From the last event, in `DELAY_UNIT_S`: RDTR or TIDV."""
        self.absolute = 0
        """From the first, likewise, or 0 for no end: RADV or TADV."""

    def event(self) -> None:
        """Something happened that the driver will want to hear of."""
        if self.packet == 0:
            if self._timer is not None:
                self.cancel()
            self._interrupts.raise_cause(self._cause)
            return
        now_s = self._loop.clock()
        self._due_s = now_s + self.packet * DELAY_UNIT_S
        if self._timer is None:
            absolute_s = self.absolute * DELAY_UNIT_S
            self._latest_s = now_s + absolute_s if self.absolute else float("inf")
            self._start(now_s)

    def flush(self) -> None:
        """Raise the cause now, if it waits."""
        if self._timer is not None:
            self.cancel()
            self._interrupts.raise_cause(self._cause)

    def cancel(self) -> None:
        """Forget what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, now_s: float) -> None:
        self._timer = self._loop.timer(min(self._due_s, self._latest_s) - now_s, self._expire)

    def _expire(self) -> None:
        now_s = self._loop.clock()
        if now_s < min(self._due_s, self._latest_s):
            self._start(now_s)
        else:
            self.flush()
