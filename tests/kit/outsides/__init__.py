"""The worlds behind the project's backends: for the contract suite, and for the matrix."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar
from unittest import SkipTest

from vnic.loop import Loop
from vnic.testing import contract

PLAIN = bytes(12)
"""A virtio-net header that asks for nothing."""

NO_HEADER = "it has no virtio-net header"
NEVER_FULL = "it is never full"
DROPS = "it drops instead of being full"
REFUSES_NOTHING = "it refuses no frame"
STAYS = "it can't be taken away"

EVERY_SIZE = (14, 15, 60, 64, 65, 590, 1500, 1514, 9014, 65535)


class Outside(contract.Outside):
    """The world behind a backend; to the author's `vnic.testing.contract.Outside` it adds a little.

    It is made with the loop that the backend will be on.
    """

    cannot: ClassVar[dict[str, str]] = {}
    """What can't be had of it, by the method's name: why, in words, as who calls it is told."""
    needs_root = False
    comes_back = False
    """Whether what leaves the guest comes back to it, and goes nowhere else."""
    sizes: Sequence[int] = EVERY_SIZE

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def __init_subclass__(cls) -> None:
        for name, why in cls.cannot.items():
            setattr(cls, name, functools.partialmethod(_skip, why))

    def departed_offloaded(self) -> list[tuple[bytes, bytes]]:
        """Return what left as `departed` does, each frame with its virtio-net header."""
        return [(frame, PLAIN) for frame in self.departed()]

    def n_lost(self) -> int:
        """Return how many frames that left were lost out there, where that is counted."""
        return 0

    def pass_second(self) -> None:
        """Move the clock: some backends look once a second whether their network is there."""
        clock: Any = self.loop.clock
        clock.now_s += 1


def _skip(self: Outside, why: str, *args: object) -> None:
    raise SkipTest(why)
