"""What is behind a tap or a macvtap: the host's side of its wire, in a network namespace."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from vnic.loop import Loop
from vnic.testing.bench import GUEST_MAC
from vnic_tap import Macvtap, Tap

from kit.missing import Missing
from kit.netns import Netns
from kit.outsides import REFUSES_NOTHING, Outside

ETH_P_ALL = 3
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
HEADER_LEN = 10
"""Of a packet socket's virtio-net header: there is no number of buffers."""

MTU = 65521  # with the Ethernet header, the longest frame there is
SNDBUF = 65536
SLOW = ("rate", "1mbit", "burst", "4k", "limit", "10m")
FAST = ("rate", "10gbit", "burst", "1m", "limit", "10m")


class HostSide(Outside):
    """The interface of a tap, and a packet socket that looks at it."""

    plugin: type = Tap
    name = "tap0"
    options: Any = Tap.Options(mtu=MTU, sndbuf=SNDBUF)
    holds = 400
    wrong: Sequence[tuple[str, Any]] = (("tap/0", Tap.Options()), ("lo", Tap.Options()))
    needs_root = True
    interface = "tap0"
    """What is looked at."""

    def __init__(self, loop: Loop) -> None:
        """Raises: Missing, for a machine without taps or namespaces."""
        super().__init__(loop)
        self.socket: socket.socket | None = None
        self._close = contextlib.ExitStack()
        with self._close:
            self.netns = self._close.enter_context(Netns())
            self.make()
            self._close = self._close.pop_all()

    def make(self) -> None:
        """Make what has to be there before the backend is opened."""
        os.close(self.netns.open_tap("probe"))

    def open(self, call: Callable[[], None]) -> None:
        self.netns.call(call)
        self.look()

    def look(self) -> None:
        """Look at the interface of that name made now."""
        if self.socket is not None:
            self.socket.bind((self.interface, ETH_P_ALL))
            self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # the old one's end
            return
        wire = self.netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._close.callback(wire.close)
        wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        wire.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 26)
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        wire.bind((self.interface, ETH_P_ALL))
        self.socket = wire

    def arrive(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.arrive_offloaded(frame, bytes(HEADER_LEN))

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        assert self.socket is not None
        with contextlib.suppress(OSError):  # the interface went with the backend
            self.socket.send(header[:HEADER_LEN] + frame)

    def departed(self) -> list[bytes]:
        return [frame for frame, _ in self.departed_offloaded()]

    def departed_offloaded(self) -> list[tuple[bytes, bytes]]:
        frames = []
        while self.socket is not None and select.select([self.socket], [], [], 0)[0]:
            try:
                data = self.socket.recv(70_000)
            except OSError:
                continue  # the interface's end; what came before it is still there
            frames.append((data[HEADER_LEN:], data[:HEADER_LEN] + bytes(2)))
        return frames

    def fill(self) -> None:
        # Frames count against the send buffer until they leave a slow queue behind the tap.
        self.netns.add_veth("slow", "fast")
        self.netns.up("slow")
        self.netns.up("fast")
        self.tc("qdisc", "add", "dev", "slow", "root", "tbf", *SLOW)
        self.tc("qdisc", "add", "dev", self.interface, "ingress")
        match = ("protocol", "all", "u32", "match", "u32", "0", "0")
        action = ("action", "mirred", "egress", "redirect", "dev", "slow")
        self.tc("filter", "add", "dev", self.interface, "parent", "ffff:", *match, *action)

    def drain(self) -> None:
        self.tc("qdisc", "del", "dev", self.interface, "ingress")

    def refuse(self) -> None:
        self.netns.down(self.interface)  # EIO

    def accept(self) -> None:
        self.netns.up(self.interface)
        self.look()

    def hang_up(self) -> None:
        self.netns.delete(self.interface)

    def close(self) -> None:
        self._close.close()

    def tc(self, *command: str) -> None:
        """Set a queue up.

        Raises: Missing, where the kernel or the system has not what that takes.
        """
        try:
            self.netns.run(["tc", *command])
        except subprocess.CalledProcessError as error:
            why = error.stderr.strip()
            raise Missing(f"tc {' '.join(command)}", why, "take a kernel that has it") from None
        except FileNotFoundError:
            raise Missing("tc", "there is no such program", "apt-get install iproute2") from None


class OfAnyName(HostSide):
    """It has a name that doesn't begin with tap."""

    name = "tap:vm7"
    interface = "vm7"


class Persistent(HostSide):
    """It is there before and after."""

    options = Tap.Options(mtu=MTU, sndbuf=SNDBUF, persist=True)


class InAnotherNamespace(HostSide):
    """It is opened from where it isn't."""

    wrong = (("tap0", Tap.Options(netns="/dev/null")),)

    def make(self) -> None:
        super().make()
        self.options = Tap.Options(mtu=MTU, sndbuf=SNDBUF, netns=self.netns.path)

    def open(self, call: Callable[[], None]) -> None:
        call()
        self.look()


class PassedOn(HostSide):
    """Its descriptor is somebody else's."""

    options = Tap.Options(sndbuf=SNDBUF)
    wrong = (("tap:fd=123456", Tap.Options()), ("tap:fd=0", Tap.Options(persist=True)))

    def make(self) -> None:
        fd = self.netns.open_tap("tap0")
        self._close.callback(os.close, fd)
        self.name = f"tap:fd={fd}"
        self.netns.up("tap0", mtu=MTU)

    def open(self, call: Callable[[], None]) -> None:
        call()
        self.look()


class BehindAMacvtap(HostSide):
    """What the parent of a macvtap is connected to."""

    plugin = Macvtap
    name = "macvtap:lan0"
    options = Macvtap.Options(parent="up0", mac=GUEST_MAC, mtu=MTU, sndbuf=SNDBUF)
    wrong: Sequence[tuple[str, Any]] = (
        ("macvtap:up0", Macvtap.Options()),
        ("macvtap:lan1", Macvtap.Options(parent="up1")),
        ("macvtap:lan1", Macvtap.Options(parent="up0", mtu=65535)),
    )
    cannot: ClassVar = {"refuse": REFUSES_NOTHING}  # what can't leave it, the kernel drops
    interface = "end"

    def make(self) -> None:
        super().make()
        self.netns.add_veth("up0", "end")
        self.netns.up("up0", mtu=MTU)
        self.netns.up("end", mtu=MTU)

    def look(self) -> None:
        self.ip("link", "set", "lan0", "txqueuelen", "1000")  # as a tap has; it has 500
        super().look()

    def ip(self, *command: str) -> None:
        """Run iproute2's ``ip`` in the namespace."""
        self.netns.run(["ip", *command])

    def fill(self) -> None:
        self.tc("qdisc", "add", "dev", "up0", "root", "tbf", *SLOW)

    def drain(self) -> None:
        self.tc("qdisc", "change", "dev", "up0", "root", "tbf", *FAST)

    def hang_up(self) -> None:
        self.netns.delete("lan0")
        self.pass_second()


class OnAPassedMacvtap(BehindAMacvtap):
    """Its descriptor is somebody else's."""

    options = Macvtap.Options(mac=GUEST_MAC, sndbuf=SNDBUF)
    wrong = (("macvtap:fd=123456", options),)

    def make(self) -> None:
        super().make()
        # Its index is none that other namespaces have as well: /dev, they share.
        index = str(random.randrange(1 << 24, 1 << 28))
        what = ("name", "lan0", "index", index, "address", GUEST_MAC.hex(":"))
        self.ip("link", "add", "link", "up0", *what, "type", "macvtap", "mode", "bridge")
        self.netns.up("lan0", mtu=MTU)
        fd = os.open(f"/dev/tap{self.netns.interfaces()['lan0']}", os.O_RDWR | os.O_CLOEXEC)
        self._close.callback(os.close, fd)
        self.name = f"macvtap:fd={fd}"
