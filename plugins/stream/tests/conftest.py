"""A NIC on a socket, on a loop whose clock stands still; its peers are in the same process."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.fakes import FakeFrontend
from kit.loops import LoopBench
from kit.peers import StreamPeer
from vnic.burst import Burst
from vnic.config import structure
from vnic.link import Link
from vnic_stream.listener import REST_S


class Line:
    """One link on a socket, and as much of a frontend as it needs."""

    def __init__(self, bench: LoopBench, plugin: type, name: str, options: dict[str, Any]) -> None:
        self.bench = bench
        self.backend = plugin()
        self.link = Link("nic0", bench.loop)
        (structured,) = structure(options, name, plugin.Options)
        self.link.open([(self.backend, name, structured)])
        self.guest = FakeFrontend(self.link)
        self.link.recv_enable()
        bench.settle()

    @property
    def counts(self) -> dict[str, int]:
        return self.link.counters()

    def send(self, *frames: bytes) -> int:
        """Have the guest send; returns how many frames were taken."""
        taken = self.link.send(Burst.of(frames))
        self.bench.settle()
        return taken

    def fill(self, frame: bytes) -> int:
        """Have the guest send until a frame is not taken; returns how many were."""
        for n in range(100_000):
            if not self.link.send(Burst.of([frame])):
                return n
        raise AssertionError("it never was full")

    def got(self) -> list[bytes]:
        """Return what the guest has received since the last call."""
        self.bench.settle()
        frames, self.guest.room.frames = self.guest.room.frames, []
        return frames

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.bench.clock.now_s += seconds
        self.bench.loop.dispatch()
        self.bench.settle()


class World:
    """A folder for sockets, and what has been opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bench = LoopBench()
        self._close = contextlib.ExitStack()
        self._close.callback(self.bench.close)

    def line(self, plugin: type, name: str, **options: Any) -> Line:
        """Open a NIC."""
        line = Line(self.bench, plugin, name, options)
        self._close.callback(line.link.close)
        return line

    def listener(self, path: str) -> socket.socket:
        """Listen, as somebody else."""
        listener = socket.socket(socket.AF_UNIX)
        self._close.callback(listener.close)
        listener.bind(path)
        self._close.callback(Path(path).unlink)
        listener.listen()
        listener.settimeout(5.0)
        return listener

    def accept(self, listener: socket.socket) -> StreamPeer:
        """Accept whom a NIC's call is waiting from."""
        peer = StreamPeer(listener.accept()[0])
        self._close.callback(peer.close)
        self.bench.settle()
        return peer

    def call(self, path: str) -> StreamPeer:
        """Call a NIC that listens, some time after the last one has."""
        self.bench.clock.now_s += REST_S
        self.bench.loop.dispatch()
        sock = socket.socket(socket.AF_UNIX)
        self._close.callback(sock.close)
        sock.connect(path)
        self.bench.settle()
        return StreamPeer(sock)

    def close(self) -> None:
        self._close.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Nothing is left open when a test has ended."""
    before = _n_descriptors()
    world = World(tmp_path)
    yield world
    world.close()
    assert _n_descriptors() <= before
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".sock"]


@pytest.fixture
def frame() -> Callable[..., bytes]:
    """Make a frame that says its number."""
    return lambda number, length=60: number.to_bytes(4, "big").rjust(14, b"f").ljust(length, b".")


def _n_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
