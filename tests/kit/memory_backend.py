"""A backend in forty lines, and the world behind it: two queues in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

from vnic.burst import Burst, Room
from vnic.errors import ConfigError
from vnic.features import Features
from vnic.hookspecs import hookimpl
from vnic.link import Joint
from vnic.testing.contract import Outside


class Wire:
    """Two queues by name: what comes from the guest, what goes to it."""

    all: ClassVar[dict[str, Wire]] = {}

    def __init__(self, name: str) -> None:
        self.all[name] = self
        self.from_guest: deque[bytes] = deque()
        self.to_guest: deque[bytes] = deque()
        self.limit = 1 << 30
        self.refuses = False
        self.plugin: Memory | None = None


class Memory:
    """The backend behind ``memory``."""

    link: Joint
    wire: Wire

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        if name not in Wire.all:
            raise ConfigError(f"{name}: no such wire; make one first")
        self.link, self.wire = link, Wire.all[name]
        self.wire.plugin = self

    @hookimpl
    def cleanup(self) -> None:
        if hasattr(self, "wire"):
            self.wire.plugin = None

    @hookimpl
    def send(self, burst: Burst) -> int:
        if self.wire.refuses:
            self.link.count("memory_drop_refused", len(burst))
            return len(burst)
        n = min(len(burst), self.wire.limit - len(self.wire.from_guest))
        self.wire.from_guest += [bytes(burst[i]) for i in range(n)]
        return n

    @hookimpl
    def recv(self, room: Room) -> int:
        n = 0
        while self.wire.to_guest and room.put_frame(self.wire.to_guest[0]):
            self.wire.to_guest.popleft()
            n += 1
        return n

    def gone(self) -> None:
        self.link.down("the wire was cut")

    @hookimpl
    def get_capabilities(self) -> Features:
        return Features.CSUM | Features.GUEST_CSUM


class BehindMemory(Outside):
    """The far end of a wire."""

    plugin: type = Memory
    name = "memory0"
    sizes = (14, 15, 60, 1514, 9014, 65535)
    holds = 3000
    wrong = (("memory9", None),)

    def __init__(self) -> None:
        self.wire = Wire(self.name)

    def arrive(self, frames: Sequence[bytes]) -> None:
        if self.wire.plugin is not None:
            self.wire.to_guest += frames
            self.wire.plugin.link.readable()

    def departed(self) -> list[bytes]:
        frames = [bytes(frame) for frame in self.wire.from_guest]
        self.wire.from_guest.clear()
        return frames

    def fill(self) -> None:
        self.wire.limit = 10

    def drain(self) -> None:
        self.wire.limit = 1 << 30
        assert self.wire.plugin is not None
        self.wire.plugin.link.writable()

    def refuse(self) -> None:
        self.wire.refuses = True

    def accept(self) -> None:
        self.wire.refuses = False

    def hang_up(self) -> None:
        assert self.wire.plugin is not None
        self.wire.plugin.gone()

    def close(self) -> None:
        Wire.all.clear()
