"""A NIC whose backend is a test's own, and memory of which no byte beyond a region may change."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import attrs
from vnic import hookimpl
from vnic.burst import Burst, Room
from vnic.config import parse_nic
from vnic.features import OFFLOADS, Features
from vnic.link import Joint, Link
from vnic.loop import Loop
from vnic.nic import Nic
from vnic.testing import SoftwareHost
from vnic_virtio_net import Plugin

PLAIN: Final = bytes(12)
GUARD: Final = 1 << 16
"""Bytes on either side of each region: more than a frame, so that none reaches past them."""
ROUNDS_MAX: Final = 200
"""Dispatches after which a loop that still has work is said to spin."""


class Wire:
    """A backend in plain Python: what the guest sent is in `sent`, what it shall get is pending."""

    link: Joint

    def __init__(self, capabilities: Features = OFFLOADS) -> None:
        self.capabilities = capabilities
        self.sent: list[tuple[bytes, bytes]] = []
        self.pending: deque[tuple[bytes, bytes | None]] = deque()
        self.takes: int | None = None
        """How many frames a call of ``send`` takes; None: all."""
        self.fd = -1
        """A descriptor that ``recv`` reads from besides; what errors it gave is in `errors`."""
        self.errors: list[int] = []
        self.on_recv: Callable[[Room], int] | None = None

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        self.link = link

    @hookimpl
    def cleanup(self) -> None:
        self.pending.clear()

    @hookimpl
    def send(self, burst: Burst) -> int:
        n = len(burst) if self.takes is None else min(self.takes, len(burst))
        self.sent += [(bytes(burst[i]), burst.header(i)) for i in range(n)]
        return n

    @hookimpl
    def recv(self, room: Room) -> int:
        if self.on_recv is not None:
            return self.on_recv(room)
        n = 0
        while self.pending:
            frames = [self.pending[i] for i in range(min(256, len(self.pending)))]
            burst = Burst.of([frame for frame, _ in frames], [header for _, header in frames])
            taken = room.put(burst)
            for _ in range(taken):
                self.pending.popleft()
            n += taken
            if taken < len(frames):
                return n
        if self.fd >= 0:
            taken, error = room.readv(self.fd)
            n += taken
            if error:
                self.errors.append(error)
        return n

    @hookimpl
    def get_capabilities(self) -> Features:
        return self.capabilities

    def deliver(self, *frames: bytes, header: bytes | None = None) -> None:
        """Have the guest get these, all with this header, as soon as it takes them."""
        self.pending += [(frame, header) for frame in frames]
        self.link.readable()


def open_wire(
    host: SoftwareHost, wire: Wire | None = None, name: str = "wire0"
) -> tuple[Nic, Wire]:
    """Return a virtio-net NIC that lives in the host, and the wire that it hangs on."""
    wire = wire or Wire()
    link = Link(name, host.loop)
    nic = Nic(parse_nic(f"virtio-net,{name}"), Plugin(), Plugin.Options(), link)
    link.open([(wire, name, None)])
    nic.attach(host)
    return nic, wire


def settle(loop: Loop) -> None:
    """Dispatch until the loop would sleep.

    Raises: AssertionError, for one that never would.
    """
    fd = loop.fileno()
    loop.dispatch()
    for _ in range(ROUNDS_MAX):
        if not select.select([fd], [], [], 0)[0]:
            return
        loop.dispatch()
    raise AssertionError(f"the loop still had work after {ROUNDS_MAX} dispatches: it spins")


@contextmanager
def running() -> Iterator[Loop]:
    """Give a loop, for the time of a test."""
    loop = Loop()
    try:
        yield loop
    finally:
        loop.close()


@contextmanager
def sockets() -> Iterator[tuple[socket.socket, int]]:
    """A socket to write frames to, and the descriptor that they come from."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        left.setblocking(False)
        right.setblocking(False)
        yield left, right.fileno()


# ---- guest memory between guards -----------------------------------------------------------------


@attrs.define
class Guards:
    """Regions of guest memory, in one stretch of ours, apart from each other by guards."""

    pages: mmap.mmap
    spans: list[tuple[int, int]]
    """Offset and size of each region."""

    @classmethod
    def around(cls, host: SoftwareHost, *, shared: bool = False) -> Guards:
        """Move the memory of a host, still unused, between guards.

        Its regions' sizes are multiples of the page size.  ``shared``: with children of a fork.
        """
        regions = [(region.gpa, region.size) for region in host.memory.regions]
        size = sum(n for _, n in regions) + GUARD * (len(regions) + 1)
        kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        pages = mmap.mmap(-1, size, flags=kind | mmap.MAP_ANONYMOUS)
        spans, at = [], GUARD
        for gpa, n in regions:
            host.memory.remove(gpa, n)
            host.memory.add(gpa, n, buffer=memoryview(pages)[at : at + n])
            spans.append((at, n))
            at += n + GUARD
        guards = cls(pages, spans)
        for start, end in guards._outside():
            pages[start:end] = b"\xa5" * (end - start)
        return guards

    def _outside(self) -> Iterable[tuple[int, int]]:
        at = 0
        for start, n in self.spans:
            yield at, start
            at = start + n
        yield at, len(self.pages)

    def check(self) -> None:
        """Raises: AssertionError, where a byte between the regions has changed."""
        for start, end in self._outside():
            now = self.pages[start:end]
            assert now.count(b"\xa5") == len(now), f"bytes {start:#x}..{end:#x} were written to"

    def forbid(self) -> None:
        """From now on, a read or write between the regions ends the process by SIGSEGV."""
        libc = ctypes.CDLL(None, use_errno=True)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        for start, end in self._outside():
            if libc.mprotect(ctypes.c_void_p(base + start), end - start, 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
