"""Machines on one embedded switch, whose guests have as much room as a test gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import attrs
from vnic.burst import Burst
from vnic.link import Link
from vnic.loop import Loop
from vnic.testing.bench import Clock
from vnic_netmap import Vale

from kit.fakes import FakeFrontend

ALL = b"\xff" * 6
LOTS = 100_000


@attrs.define(eq=False)
class Machine:
    """One port of the switch and who is behind it."""

    name: str
    mac: bytes
    link: Link
    guest: FakeFrontend

    def frame(self, to: Machine | bytes, number: int = 0, length: int = 60) -> bytes:
        """Return a frame of this machine's."""
        mac = to.mac if isinstance(to, Machine) else to
        return (mac + self.mac + b"\x88\xb5" + number.to_bytes(4, "big")).ljust(length, b".")

    def send(self, *frames: bytes) -> int:
        """Send them; return how many were taken."""
        return self.link.send(Burst.of(frames))

    def send_to(self, to: Machine | bytes, n: int = 1, first: int = 0) -> int:
        """Send numbered frames; return how many were taken."""
        return self.send(*(self.frame(to, i) for i in range(first, first + n)))

    def got(self) -> list[tuple[bytes, int]]:
        """Return source and number of what has arrived since the last call."""
        frames, self.guest.room.frames = self.guest.room.frames, []
        return [(frame[6:12], int.from_bytes(frame[14:18], "big")) for frame in frames]

    def heard(self, sender: Machine) -> list[int]:
        """Return the numbers of what has arrived, all of which is from that sender."""
        got = self.got()
        assert all(mac == sender.mac for mac, _ in got)
        return [number for _, number in got]

    def room(self, n: int) -> None:
        """Post room for ``n`` more frames."""
        self.guest.refill(n)

    def count(self, name: str) -> int:
        """Return a counter of its link."""
        return self.link.counters().get(name, 0)


@attrs.define
class Lan:
    """A switch, with a clock that stands still."""

    clock: Clock = attrs.Factory(Clock)
    loop: Loop = attrs.Factory(lambda self: Loop(clock=self.clock), takes_self=True)
    machines: list[Machine] = attrs.Factory(list)

    def add(
        self, name: str, *filters: Any, room: int = LOTS, switch: str = "vale0", full: str = "wait"
    ) -> Machine:
        """Attach a machine."""
        link = Link(name, self.loop)
        vale = (Vale(), f"{switch}:{name}", Vale.Options(full=full))
        link.open([*((f, "filter", None) for f in filters), vale])
        mac = bytes([2, 0, 0, 0, 0, len(self.machines)])
        machine = Machine(name, mac, link, FakeFrontend(link, room))
        self.machines.append(machine)
        link.recv_enable()
        return machine

    def acquainted(
        self, names: str, rooms: Sequence[int] | None = None, full: str = "wait"
    ) -> list[Machine]:
        """Attach machines whose addresses the switch knows; each has the room that is given."""
        machines = [self.add(name, full=full) for name in names]
        for machine in machines:
            machine.send(machine.frame(machine))
        for machine, room in zip(machines, rooms or [LOTS] * len(machines), strict=True):
            machine.link.counts.clear()
            machine.got()
            machine.guest.room.n_max = room
        return machines

    def run(self, seconds: float = 0.0) -> None:
        """Move the clock, and run what is due."""
        self.clock.now_s += seconds
        for _ in range(5):
            self.loop.dispatch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take all apart."""
        for machine in self.machines:
            machine.link.close()
        self.loop.close()
