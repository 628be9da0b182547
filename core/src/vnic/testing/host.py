"""A host made of software: memory of its own, interrupts that are counted."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from vnic.loop import Loop
from vnic.memory import Memory

DEFAULT_SIZE: Final = 64 << 20

HIGH_GPA: Final = 4 << 30
"""Where the second half of the memory lies, as on a PC, whose devices sit below 4 GiB."""


class SoftwareHost:
    """A `vnic.hookspecs.Host` for tests, benchmarks and the demo; nothing of it leaves the process.

    Its memory has two regions with a gap between them, unless ``regions`` says otherwise.
    """

    def __init__(
        self,
        loop: Loop,
        size: int = DEFAULT_SIZE,
        *,
        regions: Sequence[tuple[int, int]] | None = None,
        huge_pages: bool = False,
    ) -> None:
        """Make the memory: ``size`` bytes, or regions given as (gpa, size).

        ``huge_pages`` asks for them, as a VMM that cares for speed does; each page then costs
        its first user about 100 µs.
        """
        if regions is None:
            half = size // 2 // mmap.PAGESIZE * mmap.PAGESIZE
            regions = ((0, half), (HIGH_GPA, size - half))
        self.loop = loop
        self.memory = Memory()
        self.size = sum(n for _, n in regions)
        self.failures: list[str] = []
        """What `failed` was told, oldest first."""
        self.interrupts: Counter[int] = Counter()
        """Message-signalled interrupts by vector."""
        self.irq_level = False
        self.irq_edges = 0
        """How often the pin's level rose."""
        self.on_interrupt: Callable[[int], None] | None = None
        """Called with the vector, or -1 as the pin rises.  It may `schedule`, not call a NIC."""
        self._free: dict[int, tuple[int, int]] = {}
        for gpa, n in regions:
            pages = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if huge_pages:
                pages.madvise(mmap.MADV_HUGEPAGE)
            self.memory.add(gpa, n, buffer=pages)
            self._free[gpa] = (gpa, gpa + n)

    def alloc(self, n: int, align: int = 16) -> int:
        """Return the gpa of ``n`` bytes that nobody uses, in one region, zero until written.

        The region with the most room gives them, so that what is allocated together lies apart.
        They are never given back.

        Raises: MemoryError.
        """
        base, (start, end) = max(self._free.items(), key=lambda item: item[1][1] - item[1][0])
        gpa = -(-start // align) * align
        if gpa + n > end:
            raise MemoryError(
                f"software host: {n} bytes don't fit in what is left of its {self.size} "
                f"({end - start} in one piece); make it with a larger size"
            )
        self._free[base] = (gpa + n, end)
        return gpa

    # ---- vnic.hookspecs.Host

    def interrupt(self, vector: int) -> None:
        """Count a message-signalled interrupt."""
        self.interrupts[vector] += 1
        if self.on_interrupt is not None:
            self.on_interrupt(vector)

    def set_irq(self, level: bool) -> None:
        """Note the level of the pin."""
        rose = level and not self.irq_level
        self.irq_level = level
        if rose:
            self.irq_edges += 1
            if self.on_interrupt is not None:
                self.on_interrupt(-1)

    def schedule(self, callback: Callable[[], None]) -> None:
        """Have the callback called soon, on the loop."""
        self.loop.schedule(callback)

    def failed(self, reason: str) -> None:
        """Note that the device has stopped."""
        self.failures.append(reason)
