"""What the e1000's tests share: a NIC on a wire of their own, with memory between guards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import pytest
from kit.wire import Guards, Wire
from vnic.config import parse_nic
from vnic.link import Link
from vnic.loop import Loop
from vnic.nic import Nic
from vnic.testing import SoftwareHost
from vnic_e1000 import Plugin
from vnic_e1000.testing import HostileGuest

ROUNDS = 12
MAC = b"\x52\x54\x00\x12\x34\x56"


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@attrs.define
class Bench:
    """One e1000, its guest by hand, and the other end of its wire."""

    clock: Clock
    loop: Loop
    host: SoftwareHost
    guards: Guards
    nic: Nic
    wire: Wire
    guest: HostileGuest

    def settle(self) -> None:
        """Run the loop, long enough for all that is due; with a clock that stands, timers wait."""
        for _ in range(ROUNDS):
            self.loop.dispatch()

    def pass_s(self, seconds: float) -> None:
        """Let time pass, and what is due happen."""
        self.clock.now_s += seconds
        self.settle()

    def send(self, *descs: tuple[int, int]) -> list[tuple[bytes, bytes]]:
        """Hand over transmit descriptors behind those before; return what left the NIC."""
        guest = self.guest
        self.wire.sent.clear()
        tail = guest.read("TDT")
        for desc in descs:
            guest.tx_desc(tail, *desc)
            tail = (tail + 1) % guest.size
        guest.write("TDT", tail)
        self.settle()
        return list(self.wire.sent)

    def receive(self, *frames: bytes, header: bytes | None = None) -> None:
        """Have frames come over the wire."""
        self.wire.deliver(*frames, header=header)
        self.settle()

    def counter(self, name: str) -> int:
        """Return one of the NIC's counters."""
        return self.nic.counters().get(name, 0)

    def check_alive(self) -> None:
        """After a reset the NIC carries a frame each way, and nothing was written outside."""
        guest = self.guest
        guest.write("CTRL", 1 << 31)  # the PHY, which a reset of the device leaves alone
        guest.write("CTRL", 1 << 26)
        guest.start()
        self.wire.pending.clear()
        self.settle()
        (gpa,) = guest.post(2048)
        self.receive(MAC + bytes(54))
        assert guest.rx_word(0) >> 32 & 3 == 3
        assert guest.bytes_at(gpa, 6) == MAC
        frame = bytes(60)
        assert self.send((guest.buffer(frame), 60 | 0x0B << 24)) == [(frame, bytes(12))]
        assert guest.tx_status(0) == 1
        self.guards.check()
        assert not self.host.failures


def make(
    options: Plugin.Options | None = None, wire: Wire | None = None, size: int = 8
) -> tuple[Bench, Callable[[], None]]:
    clock = Clock()
    loop = Loop(clock=clock)
    host = SoftwareHost(loop, 1 << 22)
    guards = Guards.around(host)
    wire = wire or Wire()
    link = Link("wire0", loop)
    nic = Nic(parse_nic("e1000,wire0"), Plugin(), options or Plugin.Options(mac=MAC), link)
    link.open([(wire, "wire0", None)])
    nic.attach(host)
    guest = HostileGuest(nic, host, size)
    bench = Bench(clock, loop, host, guards, nic, wire, guest)
    bench.settle()

    def close() -> None:
        nic.close()
        loop.close()
        guards.check()

    return bench, close


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench, close = make()
    yield bench
    close()


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    closes: list[Callable[[], None]] = []

    def made(*args: object, **options: object) -> Bench:
        bench, close = make(*args, **options)  # type: ignore[arg-type]
        closes.append(close)
        return bench

    yield made
    for close in closes:
        close()
