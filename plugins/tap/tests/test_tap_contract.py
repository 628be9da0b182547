"""A tap keeps the contract of backends, in each form in which it can be opened."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any
from unittest import SkipTest

import pytest
from vnic.loop import Loop
from vnic.testing.bench import GUEST_MAC
from vnic.testing.contract import BackendContract, Outside
from vnic_tap import MacvtapPlugin, Plugin

ETH_P_ALL = 3
MTU = 65521  # with the Ethernet header, the longest frame there is
SNDBUF = 65536
SLOW = ("rate", "1mbit", "burst", "4k", "limit", "10m")
FAST = ("rate", "10gbit", "burst", "1m", "limit", "10m")


class HostSide(Outside):
    """The outside of a tap is its interface, in a network namespace."""

    plugin: type = Plugin
    name = "tap0"
    options: Any = Plugin.Options(mtu=MTU, sndbuf=SNDBUF)
    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 9014, 65535)
    holds = 400
    wrong: Sequence[tuple[str, Any]] = (("tap/0", Plugin.Options()), ("lo", Plugin.Options()))
    interface = "tap0"
    """What is looked at."""

    def __init__(self, world: Any, tc: Callable[..., None], clock: Any) -> None:
        self.world = world
        self.tc = tc
        self.clock = clock
        self.wire: Any = None

    def open(self, call: Callable[[], None]) -> None:
        self.world.netns.call(call)
        self.look()

    def look(self) -> None:
        if self.wire is None:
            self.wire = self.world.wire(self.interface)
        else:
            self.wire.socket.bind((self.interface, ETH_P_ALL))  # the one of that name made now
            self.wire.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # the old one's end

    def arrive(self, frames: Sequence[bytes]) -> None:
        with contextlib.suppress(OSError):  # the interface went with the backend
            for frame in frames:
                self.wire.send(frame)

    def departed(self) -> list[bytes]:
        frames = []
        while select.select([self.wire.socket], [], [], 0)[0]:
            frames.append(self.wire.recv()[0])
        return frames

    def fill(self) -> None:
        # Frames count against the send buffer until they leave a slow queue behind the tap.
        self.world.netns.add_veth("slow", "fast")
        self.world.netns.up("slow")
        self.world.netns.up("fast")
        self.tc("qdisc", "add", "dev", "slow", "root", "tbf", *SLOW)
        self.tc("qdisc", "add", "dev", self.interface, "ingress")
        match = ("protocol", "all", "u32", "match", "u32", "0", "0")
        action = ("action", "mirred", "egress", "redirect", "dev", "slow")
        self.tc("filter", "add", "dev", self.interface, "parent", "ffff:", *match, *action)

    def drain(self) -> None:
        self.tc("qdisc", "del", "dev", self.interface, "ingress")

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        self.wire.send(frame, header)

    def refuse(self) -> None:
        self.world.netns.down(self.interface)  # EIO

    def accept(self) -> None:
        self.world.netns.up(self.interface)
        self.look()

    def hang_up(self) -> None:
        self.world.netns.delete(self.interface)


class OfAnyName(HostSide):
    """It has a name that doesn't begin with tap."""

    name = "tap:vm7"
    interface = "vm7"


class Persistent(HostSide):
    """It is there before and after."""

    options = Plugin.Options(mtu=MTU, sndbuf=SNDBUF, persist=True)


class InAnotherNamespace(HostSide):
    """It is opened from where it isn't."""

    wrong = (("tap0", Plugin.Options(netns="/dev/null")),)

    def __init__(self, world: Any, tc: Callable[..., None], clock: Any) -> None:
        super().__init__(world, tc, clock)
        self.options = Plugin.Options(mtu=MTU, sndbuf=SNDBUF, netns=world.netns.path)

    def open(self, call: Callable[[], None]) -> None:
        call()
        self.look()


class PassedOn(HostSide):
    """Its descriptor is somebody else's."""

    options = Plugin.Options(sndbuf=SNDBUF)
    wrong = (("tap:fd=123456", Plugin.Options()), ("tap:fd=0", Plugin.Options(persist=True)))

    def __init__(self, world: Any, tc: Callable[..., None], clock: Any) -> None:
        super().__init__(world, tc, clock)
        self.name = f"tap:fd={world.open_tap()}"
        world.netns.up("tap0", mtu=MTU)

    def open(self, call: Callable[[], None]) -> None:
        call()
        self.look()


class BehindAMacvtap(HostSide):
    """The outside of a macvtap is what its parent is connected to."""

    plugin = MacvtapPlugin
    name = "macvtap:lan0"
    options = MacvtapPlugin.Options(parent="up0", mac=GUEST_MAC, mtu=MTU, sndbuf=SNDBUF)
    wrong = (
        ("macvtap:up0", MacvtapPlugin.Options()),
        ("macvtap:lan1", MacvtapPlugin.Options(parent="up1")),
        ("macvtap:lan1", MacvtapPlugin.Options(parent="up0", mtu=65535)),
    )
    interface = "end"

    def __init__(self, world: Any, tc: Callable[..., None], clock: Any) -> None:
        super().__init__(world, tc, clock)
        world.make_parent(MTU)

    def look(self) -> None:
        self.world.ip("link", "set", "lan0", "txqueuelen", "1000")  # as a tap has; it has 500
        super().look()

    def fill(self) -> None:
        self.tc("qdisc", "add", "dev", "up0", "root", "tbf", *SLOW)

    def refuse(self) -> None:
        raise SkipTest("a macvtap refuses nothing: what can't leave it, the kernel drops")

    def hang_up(self) -> None:
        self.world.netns.delete("lan0")
        self.clock.now_s += 1  # it is looked at once a second, for it doesn't tell

    def drain(self) -> None:
        self.tc("qdisc", "change", "dev", "up0", "root", "tbf", *FAST)


class OnAPassedMacvtap(BehindAMacvtap):
    """Its descriptor is somebody else's."""

    options = MacvtapPlugin.Options(mac=GUEST_MAC, sndbuf=SNDBUF)
    wrong = (("macvtap:fd=123456", options),)

    def __init__(self, world: Any, tc: Callable[..., None], clock: Any) -> None:
        super().__init__(world, tc, clock)
        world.make_macvtap("lan0", "address", GUEST_MAC.hex(":"))
        world.netns.up("lan0", mtu=MTU)
        self.name = f"macvtap:fd={world.open_macvtap('lan0')}"


class _InAWorld(BackendContract):
    outside: type[HostSide]

    @pytest.fixture(autouse=True)
    def in_a_world(self, world: Any, tc: Any) -> None:
        self.world, self.tc = world, tc

    def make(self, loop: Loop) -> Outside:
        return self.outside(self.world, self.tc, loop.clock)


@pytest.mark.root
class TestTap(_InAWorld):
    outside = HostSide


@pytest.mark.root
class TestTapOfAnyName(_InAWorld):
    outside = OfAnyName


@pytest.mark.root
class TestPersistentTap(_InAWorld):
    outside = Persistent


@pytest.mark.root
class TestTapInAnotherNamespace(_InAWorld):
    outside = InAnotherNamespace


@pytest.mark.root
class TestPassedTap(_InAWorld):
    outside = PassedOn


@pytest.mark.root
class TestMacvtap(_InAWorld):
    outside = BehindAMacvtap


@pytest.mark.root
class TestPassedMacvtap(_InAWorld):
    outside = OnAPassedMacvtap
