"""netmap ports keep the contract of backends: a NIC, a pipe, and a port of the kernel's switch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vnic.burst import Burst
from vnic.features import GUEST_OFFLOADS
from vnic.link import Link
from vnic.loop import Loop
from vnic.testing.bench import Guest
from vnic.testing.contract import BackendContract, Outside
from vnic_netmap import Netmap, Vale, system
from vnic_netmap.testing import StandIn

OPTIONS = Netmap.Options()
KERNEL = Vale.Options(engine="kernel")


class WithModule(Outside):
    """A host with the netmap module."""

    def __init__(self) -> None:
        self.stand_in = StandIn()
        self._before = system.current
        system.current = self.stand_in

    def close(self) -> None:
        left = self.stand_in.left_open
        self.stand_in.shut_down()
        system.current = self._before
        assert not left


class Wire(WithModule):
    """What a NIC is connected to."""

    plugin = Netmap
    name = "netmap:eth0"
    options = OPTIONS
    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 2047, 2048)
    wrong = (
        ("netmap:", OPTIONS),
        ("netmap:eth1", OPTIONS),
        ("netmap:eth0-1", OPTIONS),
        ("netmap:eth0", Netmap.Options(header=12)),
    )

    def __init__(self) -> None:
        super().__init__()
        self.nic = self.stand_in.add_nic("eth0")

    def arrive(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.nic.from_wire(frame)

    def departed(self) -> list[bytes]:
        frames = list(self.nic.to_wire)
        self.nic.to_wire.clear()
        return frames

    def fill(self) -> None:
        self.nic.stalled = True

    def drain(self) -> None:
        self.nic.resume()

    def hang_up(self) -> None:
        self.stand_in.delete("eth0")


class AnotherPort(WithModule):
    """Another port of the module, open in the same way, with a guest of its own."""

    other: str
    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 2035, 2036, 2037, 2048, 9014, 65535)

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.link = Link("outside", loop)
        self.link.open([(self.plugin(), self.other, self.options)])
        self.guest = Guest(self.link, offloads=GUEST_OFFLOADS)
        self.guest.start()

    def arrive(self, frames: Sequence[bytes]) -> None:
        self.guest.send(frames)

    def departed(self) -> list[bytes]:
        frames = self.guest.frames[:]
        self.guest.frames.clear()
        return frames

    def close(self) -> None:
        self.link.close()
        super().close()


class OtherEnd(AnotherPort):
    """The other end of a pipe, which pushes back."""

    plugin = Netmap
    name = "netmap:p{7"
    other = "netmap:p}7"
    options = OPTIONS
    wrong = (("netmap:p{", OPTIONS), ("netmap:p{7", Netmap.Options(header=12)))

    def fill(self) -> None:
        self.link.recv_disable()

    def drain(self) -> None:
        self.guest.start()


class PortOfSwitch(AnotherPort):
    """Another port of the kernel's switch, which drops what it can't deliver."""

    plugin: type = Netmap
    name = "netmap:vale0:1"
    other = "netmap:vale0:2"
    options: Any = OPTIONS
    holds = 1000
    wrong: Sequence[tuple[str, Any]] = (("netmap:vale0", OPTIONS), ("netmap:vale0:lo", OPTIONS))

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        self.link.send(Burst.of([frame], [header]))


class PortOfVale(PortOfSwitch):
    """The same by the name of ``vale``."""

    plugin = Vale
    name = "vale0:1"
    other = "vale0:2"
    options = KERNEL
    wrong = (("vale0", KERNEL), ("vale0:2", KERNEL), ("vale0:lo", KERNEL))


class TestNic(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return Wire()


class TestPipe(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return OtherEnd(loop)


class TestPortOfSwitch(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return PortOfSwitch(loop)


class TestKernelsVale(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return PortOfVale(loop)
