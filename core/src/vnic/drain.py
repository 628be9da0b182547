"""The drain: where frames go for which there is no receiver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vnic.burst import Burst, Room

if TYPE_CHECKING:
    from typing_extensions import Buffer

_DISCARD_MAX: Final = 256
"""Frames thrown away per call, where a backend has no verb of its own for it: a burst."""


class Drain:
    """A room by its verbs that keeps nothing, and is full after a burst: others have their turn."""

    def __init__(self) -> None:
        self._room = Room()
        self._left = 0

    @property
    def full(self) -> bool:
        """Whether this was enough for once."""
        return self._left == 0

    def open(self) -> None:
        """Begin."""
        self._left = _DISCARD_MAX

    def put(self, burst: Burst, start: int = 0) -> int:
        """Throw away frames of a burst; return how many."""
        n = min(max(0, len(burst) - start), self._left)
        self._left -= n
        return n

    def put_frame(self, buffer: Buffer, header: Buffer | None = None) -> bool:
        """Throw away a frame."""
        taken = self._left > 0
        self._left -= taken
        return taken

    def readv(self, fd: int, limit: int = _DISCARD_MAX, header: bool = True) -> tuple[int, int]:
        """Read frames from a descriptor and throw them away, as `Room.readv` returns it."""
        n, error = self._room.readv(fd, min(limit, self._left), header)
        self._left -= n
        return n, error
