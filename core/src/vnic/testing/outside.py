"""The world behind a backend under test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import SkipTest


class Outside:
    """The world behind a backend under test; what the author of the backend writes.

    It is made for one test, before the backend is opened, and closed after it.
    """

    plugin: type
    """The backend's class."""
    name: str
    """What is opened, as the user would type it."""
    options: Any = None
    sizes: Sequence[int] = (14, 15, 60, 64, 65, 590, 1500, 1514)
    """Lengths of frames that must cross.  A frame has 14 to 65535 bytes."""
    holds: int = 256
    """How many short frames can wait for a guest that has no room, with none lost."""
    wrong: Sequence[tuple[str, Any]] = ()
    """Names and options that can't be opened."""

    def arrive(self, frames: Sequence[bytes]) -> None:
        """Have frames come in from the outside, in this order; to nobody once it is closed."""
        raise NotImplementedError

    def departed(self) -> list[bytes]:
        """Return the frames that left since the last call, oldest first.  Doesn't wait."""
        raise NotImplementedError

    def fill(self) -> None:
        """Take no more frames: with enough of them the backend gets full.  Optional."""
        raise SkipTest("the outside doesn't say how to make it full: Outside.fill, Outside.drain")

    def drain(self) -> None:
        """Undo `fill`.  What departed meanwhile is still there to be seen."""
        raise NotImplementedError

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        """Have a frame come in whose virtio-net header asks for something.  Optional."""
        raise SkipTest("the outside doesn't say how to offload: Outside.arrive_offloaded")

    def refuse(self) -> None:
        """Refuse what the guest sends, for good: as the kernel answers EIO or EINVAL.  Optional."""
        raise SkipTest("the outside doesn't say how to refuse: Outside.refuse, Outside.accept")

    def accept(self) -> None:
        """Undo `refuse`."""
        raise NotImplementedError

    def hang_up(self) -> None:
        """Take the host network away: delete the interface, close the other end.  Optional."""
        raise SkipTest("the outside doesn't say how to hang up: Outside.hang_up")

    def open(self, call: Callable[[], None]) -> None:
        """Make the call that opens the backend: where that must be done somewhere special."""
        call()

    def close(self) -> None:
        """Take the outside away; the backend is closed already."""
