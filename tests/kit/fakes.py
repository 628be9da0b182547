"""A backend that does what it is told, a filter that passes on, and as much of a frontend."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from vnic.burst import Burst, Room
from vnic.features import Features
from vnic.hookspecs import hookimpl
from vnic.link import Joint, Link
from vnic.loop import Loop

from kit.loops import LoopBench


class SmallBackend:
    """The four hooks that all have; calls are noted, and a hook named in `raises` raises."""

    link: Joint

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.raises: set[str] = set()
        self.fault: Exception | None = None
        """What such a hook raises; None: an error that names it."""
        self.sent: list[bytes] = []
        self.headers: list[bytes] = []
        """Those of what was sent."""
        self.pending: deque[bytes] = deque()
        self.takes: int | None = None
        """How many frames a send takes; None: all."""
        self.capabilities = Features(0)
        self.features: list[Features] = []
        self.on_recv: Callable[[], None] | None = None

    def _called(self, hook: str) -> None:
        self.calls.append(hook)
        if hook in self.raises:
            raise self.fault or RuntimeError(f"{hook} on purpose")

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        self.link = link
        self._called("init")

    @hookimpl
    def cleanup(self) -> None:
        self._called("cleanup")

    @hookimpl
    def send(self, burst: Burst) -> int:
        self._called("send")
        n = len(burst) if self.takes is None else min(self.takes, len(burst))
        self.sent += [bytes(burst[i]) for i in range(n)]
        self.headers += [burst.header(i) for i in range(n)]
        return n

    @hookimpl
    def recv(self, room: Room) -> int:
        self._called("recv")
        if self.on_recv is not None:
            self.on_recv()
        n = 0
        while self.pending and room.put_frame(self.pending[0]):
            self.pending.popleft()
            n += 1
        return n

    def deliver(self, *frames: bytes) -> None:
        """Have frames come in."""
        self.pending += frames
        self.link.readable()


class FakeBackend(SmallBackend):
    """All hooks."""

    @hookimpl
    def recv_discard(self) -> int:
        self._called("recv_discard")
        n = len(self.pending)
        self.pending.clear()
        return n

    @hookimpl
    def recv_enable(self) -> None:
        self._called("recv_enable")

    @hookimpl
    def recv_disable(self) -> None:
        self._called("recv_disable")

    @hookimpl
    def get_capabilities(self) -> Features:
        self._called("get_capabilities")
        return self.capabilities

    @hookimpl
    def set_capabilities(self, features: Features) -> None:
        self._called("set_capabilities")
        self.features.append(features)


class OnSocket(FakeBackend):
    """Watches a socket; ``recv`` reads one frame of it."""

    def __init__(
        self,
        bench: LoopBench,
        error: Callable[[], None] | None = None,
        writable: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.ours, self.theirs = bench.pair()
        self.error = error
        self.writable = writable

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        super().init(name, options, link)
        self.watch = link.watch(self.ours.fileno(), error=self.error, writable=self.writable)

    @hookimpl
    def recv(self, room: Any) -> int:
        self._called("recv")
        try:
            return int(room.put_frame(self.ours.recv(60)))
        except BlockingIOError:
            return 0

    @hookimpl
    def recv_discard(self) -> int:
        self._called("recv_discard")
        try:
            return len(self.ours.recv(60)) // 60
        except BlockingIOError:
            return 0


class PassingFilter:
    """The least that a filter is."""

    link: Joint
    beneath: Any

    def __init__(self) -> None:
        self.calls: list[str] = []

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        self.link, self.beneath = link, link.beneath
        self.name = name

    @hookimpl
    def cleanup(self) -> None:
        self.calls.append("cleanup")

    @hookimpl
    def send(self, burst: Burst) -> int:
        taken: int = self.beneath.send(burst)
        return taken

    @hookimpl
    def recv(self, room: Room) -> int:
        n: int = self.beneath.recv(room)
        return n


class FakeRoom:
    """Room for ``n_max`` frames, by its verbs."""

    def __init__(self, n_max: int = 10_000) -> None:
        self.n_max = n_max
        self.frames: list[bytes] = []
        self.full = False

    def put_frame(self, buffer: bytes, header: bytes | None = None) -> bool:
        """Take a frame, if there is room."""
        self.full = len(self.frames) >= self.n_max
        if not self.full:
            self.frames.append(bytes(buffer))
        return not self.full

    def put(self, burst: Burst, start: int = 0) -> int:
        """Take frames for as long as there is room."""
        n = 0
        for i in range(start, len(burst)):
            if not self.put_frame(bytes(burst[i])):
                break
            n += 1
        return n

    def readv(self, fd: int, limit: int = 256, header: bool = True) -> tuple[int, int]:
        """Read frames from a descriptor for as long as there is room."""
        for n in range(limit):
            self.full = len(self.frames) >= self.n_max
            if self.full:
                return n, 0
            try:
                data = os.read(fd, 70_000)
            except BlockingIOError:
                return n, 0
            except OSError as error:
                return n, error.errno or 0
            self.frames.append(data[12 if header else 0 :])
        return limit, 0


class FakeFrontend:
    """Takes what it is told of, into `room`; notes what it is told."""

    def __init__(self, link: Link, n_max: int = 10_000) -> None:
        self.link = link
        self.room = FakeRoom(n_max)
        self.n_readable = self.n_writable = 0
        self.ups: list[bool] = []
        link.on_readable = self.readable
        link.on_writable = self.writable
        link.on_changed = self.ups.append

    @property
    def frames(self) -> list[bytes]:
        """What has been received."""
        return self.room.frames

    def readable(self) -> None:
        """Take what there is."""
        self.n_readable += 1
        self.receive()

    def receive(self) -> int:
        """Ask for frames; return how many were consumed."""
        self.room.full = False
        return self.link.recv(self.room)  # type: ignore[arg-type]  # a room by its verbs

    def writable(self) -> None:
        """Note it."""
        self.n_writable += 1

    def refill(self, n: int) -> list[bytes]:
        """Empty the room, make it hold ``n``, and go on; return what was in it."""
        frames, self.room.frames = self.room.frames, []
        self.room.n_max = n
        self.link.recv_enable()
        self.receive()
        return frames


def open_fake(
    loop: Loop, *filters: Any, backend: SmallBackend | None = None, n_max: int = 10_000
) -> tuple[Link, FakeFrontend, Any]:
    """Open a link on a fake backend, with filters above it, and a frontend that receives."""
    backend = backend or FakeBackend()
    link = Link("nic0", loop)
    layers = [(layer, f"filter{i}", None) for i, layer in enumerate(filters)]
    link.open([*layers, (backend, "fake0", None)])
    frontend = FakeFrontend(link, n_max)
    link.recv_enable()
    backend.calls.clear()
    return link, frontend, backend
