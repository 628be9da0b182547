"""What is behind ports of netmap's module: a wire, the host, the other end of a pipe, a switch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from vnic.features import NONE
from vnic.loop import Loop
from vnic_netmap import Netmap, Vale, system
from vnic_netmap.testing import StandIn

from kit.outsides import DROPS, NEVER_FULL, NO_HEADER, REFUSES_NOTHING, STAYS, Outside
from kit.outsides.vale import AnotherLink

OPTIONS = Netmap.Options()
KERNEL = Vale.Options(engine="kernel")


class WithModule(Outside):
    """A host with the netmap module."""

    def __init__(self, loop: Loop) -> None:
        self.stand_in = StandIn()
        self._before = system.current
        system.current = self.stand_in
        super().__init__(loop)

    def close(self) -> None:
        super().close()
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
    wrong: Sequence[tuple[str, Any]] = (
        ("netmap:", OPTIONS),
        ("netmap:eth1", OPTIONS),
        ("netmap:eth0-1", OPTIONS),
        ("netmap:eth0", Netmap.Options(header=12)),
    )
    cannot: ClassVar = {
        "arrive_offloaded": NO_HEADER,
        "refuse": REFUSES_NOTHING,
    }

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
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


class HostsStack(Wire):
    """The host's network stack, as it sees a NIC that netmap has."""

    name = "netmap:eth0^"
    wrong = (("netmap:eth1^", OPTIONS),)
    cannot: ClassVar = Wire.cannot | {"fill": NEVER_FULL}

    def arrive(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.nic.from_host(frame)

    def departed(self) -> list[bytes]:
        frames = list(self.nic.to_host)
        self.nic.to_host.clear()
        return frames


class OtherEnd(WithModule, AnotherLink):
    """The other end of a pipe, which pushes back."""

    plugin = Netmap
    name = "netmap:p{7"
    other = "netmap:p}7"
    options = OPTIONS
    offloads = NONE
    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 2035, 2036, 2037, 2048, 9014, 65535)
    wrong = (("netmap:p{", OPTIONS), ("netmap:p{7", Netmap.Options(header=12)))
    cannot: ClassVar = {
        "arrive_offloaded": NO_HEADER,
        "refuse": REFUSES_NOTHING,
        "hang_up": STAYS,
    }

    def fill(self) -> None:
        self.link.recv_disable()

    def drain(self) -> None:
        self.guest.start()


class PortOfSwitch(WithModule, AnotherLink):
    """Another port of the kernel's switch, which drops what it can't deliver."""

    plugin: type = Netmap
    name = "netmap:vale0:1"
    other = "netmap:vale0:2"
    options: Any = OPTIONS
    sizes = OtherEnd.sizes
    holds = 1000
    wrong: Sequence[tuple[str, Any]] = (("netmap:vale0", OPTIONS), ("netmap:vale0:lo", OPTIONS))
    cannot: ClassVar = {
        "fill": DROPS,
        "refuse": REFUSES_NOTHING,
        "hang_up": STAYS,
    }


class PortOfVale(PortOfSwitch):
    """The same by the name of ``vale``."""

    plugin = Vale
    name = "vale0:1"
    other = "vale0:2"
    options = KERNEL
    wrong = (("vale0", KERNEL), ("vale0:2", KERNEL), ("vale0:lo", KERNEL))
