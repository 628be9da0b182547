"""``loop``: sends back to the guest whatever it sends, in order, headers and all."""

from __future__ import annotations

import re
from collections import deque

from vnic import ConfigError, Features, hookimpl
from vnic.burst import BURST_MAX, Burst, Room
from vnic.features import OFFLOADS
from vnic.link import Joint


class Loopback:
    """The backend behind ``loop``; a number only tells several apart: ``loop0``.

    It holds a burst of frames at the most, and is full until the guest has room for some of them.
    Each frame is a turn of Python, which makes a million a second; whoever has a descriptor or
    memory of its own gives the room more at a time, by ``room.readv`` or ``room.put``.
    """

    @hookimpl
    def init(self, name: str, options: None, link: Joint) -> None:
        """Begin with nothing on its way back."""
        if not re.fullmatch(r"loop\d*", name):
            raise ConfigError(f'{name}: takes no name; write "loop", or "loop0", "loop1" and so on')
        self._link = link
        self._frames: deque[tuple[memoryview, bytes]] = deque()
        self._refused = False  # a send was short, so the guest waits to hear of room

    @hookimpl
    def cleanup(self) -> None:
        """Forget what is on its way.  Before ``init`` there is nothing to forget."""
        self._frames = deque()

    @hookimpl
    def send(self, burst: Burst) -> int:
        """Take as many as there is space for.

        A burst is on loan until this returns: ``burst[i]`` is a copy, and may be kept.  They go
        back from the loop and not from here, where the NIC is in the middle of sending.
        """
        n = min(len(burst), BURST_MAX - len(self._frames))
        self._frames.extend((burst[i], burst.header(i)) for i in range(n))
        self._refused = n < len(burst)
        self._link.loop.schedule(self._announce)
        return n

    @hookimpl
    def recv(self, room: Room) -> int:
        """Deliver for as long as there is room; the rest is asked for when there is more."""
        n = 0
        while self._frames and room.put_frame(*self._frames[0]):
            self._frames.popleft()
            n += 1
        if n and self._refused:
            self._refused = False
            self._link.writable()
        return n

    @hookimpl
    def get_capabilities(self) -> Features:
        """Return all: a frame goes back with its header, which asks of the guest what it asked.

        For a guest that doesn't take what it sends, its own room does the work.
        """
        return OFFLOADS

    def _announce(self) -> None:
        if self._frames:
            self._link.readable()
