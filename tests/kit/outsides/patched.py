"""What is behind a switch that is patched to a tap: the tap's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from vnic.loop import Loop
from vnic.patch import Patch
from vnic.testing.bench import from_guest, to_guest
from vnic_netmap import Vale

from kit.outsides import DROPS, REFUSES_NOTHING, STAYS
from kit.outsides.tap import MTU, HostSide
from kit.outsides.vale import EMBEDDED, show_guest


class Uplink(HostSide):
    """The switch is the embedded one, the NIC another port of it."""

    plugin = Vale
    name = "vale0:1"
    options = EMBEDDED
    wrong = (("vale0", EMBEDDED), ("vale0:up", EMBEDDED))
    cannot: ClassVar = {"fill": DROPS, "refuse": REFUSES_NOTHING, "hang_up": STAYS}

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.patch = self.netns.call(Patch, "vale0:up", "tap0", loop)
        self._close.callback(self.patch.close)
        self.netns.up("tap0", mtu=MTU)
        self.look()
        self.arrive(to_guest(1))  # shows itself
        self.loop.dispatch()

    def open(self, call: Callable[[], None]) -> None:
        call()
        show_guest()
        assert self.departed() == from_guest(1)

    def n_lost(self) -> int:
        return sum(n for name, n in self.patch.counters().items() if "_drop_" in name)
