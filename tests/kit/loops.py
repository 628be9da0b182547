"""A loop under test: its clock stands still, and its descriptors are socket pairs."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

import attrs
from vnic.loop import Loop
from vnic.testing.bench import Clock


@attrs.define
class LoopBench:
    """A loop with a clock that stands still."""

    clock: Clock = attrs.Factory(Clock)
    loop: Loop = attrs.Factory(lambda self: Loop(clock=self.clock), takes_self=True)
    called: list[Any] = attrs.Factory(list)
    _sockets: list[socket.socket] = attrs.Factory(list)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Return a pair of sockets; neither blocks."""
        pair = socket.socketpair()
        for end in pair:
            end.setblocking(False)
        self._sockets += pair
        return pair

    def note(self, what: object) -> Callable[..., None]:
        """Return a callback that notes its call in `called`."""
        return lambda *_: self.called.append(what)

    def idle(self) -> bool:
        """Whether a loop around this one would leave it alone."""
        return not select.select([self.loop.fileno()], [], [], 0)[0]

    def settle(self) -> int:
        """Dispatch until it is idle; return how often that took."""
        for n in range(100):
            if self.idle():
                return n
            self.loop.dispatch()
        raise AssertionError("it spins")

    def close(self) -> None:
        """Close the loop and all sockets."""
        self.loop.close()
        for end in self._sockets:
            end.close()
