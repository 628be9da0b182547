"""A tap keeps the contract of backends."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from vnic.loop import Loop
from vnic.testing.contract import BackendContract, Outside
from vnic_tap import Plugin

ETH_P_ALL = 3


class HostSide(Outside):
    """The outside of a tap is its interface, in a network namespace."""

    plugin = Plugin
    name = "tap0"
    options = Plugin.Options(mtu=65521, sndbuf=65536)
    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 9014, 65535)
    holds = 500
    wrong = (("tap/0", Plugin.Options()), ("lo", Plugin.Options()))

    def __init__(self, world: Any, tc: Callable[..., None]) -> None:
        self.world = world
        self.tc = tc
        self.wire: Any = None

    def open(self, call: Callable[[], None]) -> None:
        self.world.netns.call(call)
        if self.wire is None:
            self.wire = self.world.wire()
        else:
            self.wire.socket.bind(("tap0", ETH_P_ALL))  # to the interface of that name made now
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
        self.world.netns.add_veth("slow", "end")
        self.world.netns.up("slow")
        self.world.netns.up("end")
        rate = ("rate", "1mbit", "burst", "4k", "limit", "10m")
        self.tc("qdisc", "add", "dev", "slow", "root", "tbf", *rate)
        self.tc("qdisc", "add", "dev", "tap0", "ingress")
        match = ("protocol", "all", "u32", "match", "u32", "0", "0")
        action = ("action", "mirred", "egress", "redirect", "dev", "slow")
        self.tc("filter", "add", "dev", "tap0", "parent", "ffff:", *match, *action)

    def drain(self) -> None:
        self.tc("qdisc", "del", "dev", "tap0", "ingress")

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        self.wire.send(frame, header)


@pytest.mark.root
class TestTap(BackendContract):
    @pytest.fixture(autouse=True)
    def in_a_world(self, world: Any, tc: Any) -> None:
        self.world, self.tc = world, tc

    def make(self, loop: Loop) -> Outside:
        return HostSide(self.world, self.tc)
