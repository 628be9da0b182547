"""What is behind ``null`` and ``loop``: nothing, and the guest itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

from vnic.backends.loop import Loopback
from vnic.backends.null import Null
from vnic.burst import BURST_MAX, Burst, Room
from vnic.hookspecs import hookimpl
from vnic.link import Joint
from vnic.loop import Loop
from vnic.testing.bench import GUEST_MAC

from kit.outsides import NEVER_FULL, REFUSES_NOTHING, STAYS, Outside


class Witnessed(Null):
    """Tells its outside what it takes, which it keeps itself from nobody else."""

    taken: ClassVar[list[tuple[bytes, bytes]]] = []

    @hookimpl
    def send(self, burst: Burst) -> int:
        n = super().send(burst)
        self.taken.extend((bytes(burst[i]), burst.header(i)) for i in range(n))
        return n


class Nowhere(Outside):
    """Nothing."""

    plugin = Witnessed
    name = "null"
    wrong = (("nullify", None),)
    cannot: ClassVar = {
        "arrive": "null has no frames for a guest",
        "arrive_offloaded": "null has no frames for a guest",
        "fill": NEVER_FULL,
        "refuse": REFUSES_NOTHING,
        "hang_up": STAYS,
    }

    def departed(self) -> list[bytes]:
        return [frame for frame, _ in self.departed_offloaded()]

    def departed_offloaded(self) -> list[tuple[bytes, bytes]]:
        taken = Witnessed.taken[:]
        Witnessed.taken.clear()
        return taken


class Watched(Loopback):
    """Tells its outside what has gone back."""

    outside: ClassVar[Back]

    @hookimpl
    def init(self, name: str, options: None, link: Joint) -> None:
        super().init(name, options, link)
        self.outside.opened = self

    @hookimpl
    def cleanup(self) -> None:
        super().cleanup()
        self.outside.opened = None

    @hookimpl
    def recv(self, room: Room) -> int:
        on_their_way = [bytes(frame) for frame, _ in self._frames]
        n = super().recv(room)
        self.outside.has_gone(on_their_way[:n])
        return n


class Back(Outside):
    """What is behind a loop is in front of it: others put frames in, as the guest does."""

    plugin = Watched
    name = "loop"
    wrong = (("loopback", None),)
    cannot: ClassVar = {
        "refuse": REFUSES_NOTHING,
        "hang_up": STAYS,
    }
    comes_back = True
    opened: Any = None

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        Watched.outside = self
        self.gone: list[bytes] = []
        self.to_come: deque[tuple[bytes, bytes | None]] = deque()

    def arrive(self, frames: Sequence[bytes]) -> None:
        self.to_come += [(frame, None) for frame in frames]
        self._put_in()

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        self.to_come.append((frame, header))
        self._put_in()

    def has_gone(self, frames: Sequence[bytes]) -> None:
        self.gone += frames
        if frames and self.to_come:
            self.loop.schedule(self._put_in)

    def _put_in(self) -> None:
        if self.opened is None or not self.to_come:
            return
        some = [self.to_come[i] for i in range(min(BURST_MAX, len(self.to_come)))]
        burst = Burst.of([frame for frame, _ in some], [header for _, header in some])
        for _ in range(self.opened.send(burst)):
            self.to_come.popleft()

    def departed(self) -> list[bytes]:
        gone, self.gone = self.gone, []
        return [frame for frame in gone if frame[6:12] == GUEST_MAC]

    def fill(self) -> None:
        self.opened._link._link.recv_disable()

    def drain(self) -> None:
        self.opened._link._link.recv_enable()
        self.opened._link.readable()
