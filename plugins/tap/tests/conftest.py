"""Real taps in a network namespace that each test has for itself, and what looks at their wire."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
from kit.netns import Netns
from vnic import Features
from vnic.features import NONE
from vnic.link import Link
from vnic.loop import Loop
from vnic_tap import Macvtap, Tap

DEADLINE_S = 5.0
PLAIN = bytes(12)

SO_SNDBUFFORCE = 32
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3


class FakeRoom:
    """Room for ``n_max`` frames; what was delivered is in ``frames``, headers in ``headers``."""

    def __init__(self, n_max: int = 10_000) -> None:
        self.n_max = n_max
        self.frames: list[bytes] = []
        self.headers: list[bytes] = []
        self.full = False

    def put_frame(self, frame: bytes, header: bytes | None = None) -> bool:
        if len(self.frames) == self.n_max:
            self.full = True
            return False
        self.frames.append(bytes(frame))
        self.headers.append(header or PLAIN)
        return True

    def readv(self, fd: int, limit: int = 256, header: bool = True) -> tuple[int, int]:
        n = 0
        while n < limit:
            if len(self.frames) == self.n_max:
                self.full = True
                break
            try:
                data = os.read(fd, 70_000)
            except BlockingIOError:
                break
            except OSError as error:
                return n, error.errno or 0
            self.put_frame(data[12:], data[:12])
            n += 1
        return n, 0


class Nic:
    """As little of a frontend as a link needs; keeps all it is given, and counts its calls."""

    def __init__(self, loop: Loop, link: Link) -> None:
        self.loop = loop
        self.link = link
        self.room = FakeRoom()
        self.n_readable = self.n_writable = 0
        self.ups: list[bool] = []
        self.received_at_once: list[int] = []
        link.on_readable = self._readable
        link.on_writable = self._writable
        link.on_changed = self.ups.append

    def _readable(self) -> None:
        self.n_readable += 1
        self.received_at_once.append(self.link.recv(self.room))

    def _writable(self) -> None:
        self.n_writable += 1

    def run_until(self, what: Callable[[], Any]) -> None:
        """Run the loop until it is so; fail after a while."""
        deadline = time.monotonic() + DEADLINE_S
        while not what():
            assert time.monotonic() < deadline, "it didn't come to that"
            self.loop.dispatch(0.05)

    def settle(self) -> None:
        """Run the loop through all that is ready."""
        for _ in range(20):
            self.loop.dispatch(0.0)


@attrs.frozen
class Wire:
    """The host's side of a tap: a packet socket with a virtio-net header of 10 bytes."""

    socket: socket.socket

    def send(self, frame: bytes, header: bytes = PLAIN) -> None:
        self.socket.send(header[:10] + frame)

    def recv(self) -> tuple[bytes, bytes]:
        """Return the next frame that came out of the tap, and its header."""
        data = self.socket.recv(70_000)
        return data[10:], data[:10] + bytes(2)

    def recv_frames(self, n: int) -> list[bytes]:
        return [self.recv()[0] for _ in range(n)]


class World:
    """A namespace, and NICs on taps in it."""

    def __init__(self, netns: Netns) -> None:
        self.netns = netns
        self._close = contextlib.ExitStack()

    def close(self) -> None:
        self._close.close()

    def ip(self, *command: str) -> str:
        return self.netns.run(["ip", *command])

    def make_tap(self, name: str = "tap0", *words: str, mode: str = "tap") -> None:
        """Make a persistent tap, as root would for somebody else."""
        self.ip("tuntap", "add", name, "mode", mode, *words)

    def make_macvtap(self, name: str = "lan0", *words: str) -> None:
        """Make a macvtap on ``up0``, as root would for somebody else.

        Its index is none that other namespaces have as well: /dev, they share.
        """
        index = str(random.randrange(1 << 24, 1 << 28))
        what = ("name", name, "index", index, *words)
        self.ip("link", "add", "link", "up0", *what, "type", "macvtap", "mode", "bridge")

    def make_parent(self, mtu: int = 1500) -> None:
        """Make ``up0``, which macvtaps can be on; what they send is seen at ``end``."""
        self.netns.add_veth("up0", "end")
        self.netns.up("up0", mtu=mtu)
        self.netns.up("end", mtu=mtu)

    def move(self, name: str, other: Netns) -> None:
        """Move an interface to another namespace."""
        with open(other.path) as namespace:  # noqa: PTH123 - a magic link
            fd = namespace.fileno()
            self.netns.call(
                lambda: self.netns._ip.link(
                    "set", index=self.netns._index_inside(name), net_ns_fd=fd
                )
            )

    def open_tap(self, name: str = "tap0") -> int:
        """Open a tap as somebody would who passes it on, and closes his descriptor in the end."""
        fd = self.netns.open_tap(name)
        self._close.callback(os.close, fd)
        return fd

    def open_macvtap(self, name: str = "lan0") -> int:
        """Open a macvtap, in the same way."""
        path = f"/dev/tap{self.netns.interfaces()[name]}"
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._close.callback(os.close, fd)
        return fd

    def nic(
        self,
        name: str = "tap0",
        features: Features = NONE,
        *,
        by: Any = None,
        inside: bool = True,
        loop: Loop | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> Nic:
        """Open a link on a tap, in the namespace or outside; ``by``: what makes the call."""
        loop = loop or Loop(clock=clock)
        self._close.callback(loop.close)
        link = Link("nic0", loop)
        plugin = Macvtap if name.startswith("macvtap") else Tap
        layers: Sequence[Any] = [(plugin(), name, plugin.Options(**options))]
        call = self.netns.call if inside else _call
        call(by or _call, link.open, layers)
        self._close.callback(link.close)
        link.set_features(features)
        link.recv_enable()
        return Nic(loop, link)

    def wire(self, name: str = "tap0") -> Wire:
        """Look at what comes out of a tap, or, at ``end``, of the macvtaps on ``up0``."""
        wire = self.netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._close.callback(wire.close)
        wire.settimeout(DEADLINE_S)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        wire.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 26)
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        wire.bind((name, ETH_P_ALL))
        return Wire(wire)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def without_capabilities(function: Callable[..., Any], *args: Any) -> Any:
    """Call in a thread of its own that has dropped all it was allowed: capset is per thread."""

    def drop() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        version_3 = struct.pack("=Ii", 0x20080522, 0)
        if libc.capset(version_3, bytes(24)) != 0:
            raise OSError(ctypes.get_errno(), "capset")

    with ThreadPoolExecutor(1, initializer=drop) as thread:
        return thread.submit(function, *args).result()


@pytest.fixture
def world() -> Iterator[World]:
    """Its tests carry the marker ``root``."""
    with Netns() as netns:
        world = World(netns)
        os.close(netns.open_tap("probe"))
        try:
            yield world
        finally:
            world.close()


@pytest.fixture
def bare() -> Callable[..., Any]:
    """What makes a call without any capability."""
    return without_capabilities


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@attrs.frozen
class Packet:
    """A TCP or UDP packet over IPv4 or IPv6, as long as wanted, its checksum left to offload."""

    version: int
    protocol: int
    payload: bytes
    gso_size: int = 0

    TCP = 6
    UDP = 17

    @property
    def l4_at(self) -> int:
        return 14 + (20 if self.version == 4 else 40)

    @property
    def headers_len(self) -> int:
        return self.l4_at + (20 if self.protocol == self.TCP else 8)

    def frame(self) -> bytes:
        if self.protocol == self.TCP:
            l4 = struct.pack("!HHIIBBHHH", 1000, 2000, 7, 9, 0x50, 0x10, 4096, 0, 0)
        else:
            l4 = struct.pack("!HHHH", 1000, 2000, 8 + len(self.payload), 0)
        n = len(l4) + len(self.payload)
        if self.version == 4:
            src, dst = bytes([10, 9, 0, 1]), bytes([10, 9, 0, 2])
            ip = struct.pack(
                "!BBHHHBBH4s4s", 0x45, 0, 20 + n, 1, 0x4000, 64, self.protocol, 0, src, dst
            )
            ip = ip[:10] + struct.pack("!H", 0xFFFF ^ _checksum(ip)) + ip[12:]
        else:
            src, dst = bytes([0xFD, *range(15)]), bytes([0xFD, *range(15)])
            ip = struct.pack("!IHBB16s16s", 6 << 28, n, self.protocol, 64, src, dst)
        pseudo = _checksum(src + dst + struct.pack("!II", n, self.protocol))
        at = 16 if self.protocol == self.TCP else 6
        l4 = l4[:at] + struct.pack("!H", pseudo) + l4[at + 2 :]
        kind = 0x0800 if self.version == 4 else 0x86DD
        ethernet = bytes.fromhex("02aabbccdd01 02aabbccdd02") + struct.pack("!H", kind)
        return ethernet + ip + l4 + self.payload

    def header(self) -> bytes:
        """Return the virtio-net header that asks for what is left to do."""
        gso_type = {(4, 6): 1, (6, 6): 4, (4, 17): 5, (6, 17): 5}[self.version, self.protocol]
        return struct.pack(
            "<BBHHHHH",
            1,
            gso_type if self.gso_size else 0,
            self.headers_len if self.gso_size else 0,
            self.gso_size,
            self.l4_at,
            16 if self.protocol == self.TCP else 6,
            0,
        )

    def payload_of(self, segment: bytes) -> bytes:
        """Return what a segment of it carries, once its checksum is found right."""
        addresses = segment[26:34] if self.version == 4 else segment[22:54]
        if self.version == 4:
            length = struct.unpack_from("!H", segment, 16)[0] - 20
        else:
            length = struct.unpack_from("!H", segment, 18)[0]
        l4 = segment[self.l4_at : self.l4_at + length]
        assert _checksum(addresses + struct.pack("!II", length, self.protocol) + l4) == 0xFFFF
        return segment[self.headers_len : self.l4_at + length]


@pytest.fixture
def packet() -> type[Packet]:
    return Packet


@pytest.fixture
def tc(world: World) -> Callable[..., None]:
    """Run iproute2's ``tc`` in the namespace; skip where the kernel has not what it takes."""

    def run(*command: str) -> None:
        try:
            world.netns.run(["tc", *command])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"tc {' '.join(command)}: {error.stderr.strip()}")
        except FileNotFoundError:
            pytest.skip("no tc; apt-get install iproute2")

    return run
