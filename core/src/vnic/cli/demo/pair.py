"""Two ends of the demo's network: whether they understand each other, and how fast."""

from __future__ import annotations

import contextlib
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from vnic.cli.demo.stream import ShortfallError, Stream
from vnic.testing import DriverError

if TYPE_CHECKING:
    from vnic.cli.demo.network import Network
    from vnic.testing.guest import Guest
    from vnic.testing.stack import Datagram

SHORT: Final = 64
LONG: Final = 1514
"""Lengths of frames: for frames/s, and for Gbit/s, where it is what an MTU of 1500 makes."""

_PINGS: Final = 50
_PING_PAYLOAD: Final = bytes(range(56))
UDP_LENGTHS: Final = (0, 1, 1472)
_ECHO_PORT: Final = 7
_ETHERTYPE: Final = b"\x88\xb5"
"""IEEE 802's "Local Experimental Ethertype 1": no stack takes the frames for its own."""
_COMPARED_BYTES: Final = 32 << 20
"""Per direction."""
BURST: Final = 256
_ROUNDS: Final = 8
"""Bursts between two looks at the clock."""
IDLE_S: Final = 1.0
"""Nothing has arrived for so long: what is missing is lost."""


@attrs.define(kw_only=True)
class Row:
    """What was found out about a pair; None where it fell short before that."""

    pair: tuple[str, str]
    round_trip_us: float | None = None
    """The median of some pings, both stacks included."""
    frames_per_s: float | None = None
    """Short frames, one direction after the other."""
    gbit_per_s: float | None = None
    """Long frames, without preamble, FCS and gap."""
    compared_bytes: int = 0
    """Bytes of frames compared on arrival, both directions."""
    drops: int = 0
    """Frames that were dropped and counted meanwhile."""


@attrs.define
class Flow:
    """How much arrived, and how long it took."""

    n_frames: int = 0
    seconds: float = 0.0

    def add(self, other: Flow) -> None:
        """Count another's as well."""
        self.n_frames += other.n_frames
        self.seconds += other.seconds

    @property
    def frames_per_s(self) -> float:
        """The rate."""
        return self.n_frames / self.seconds if self.seconds else 0.0


class Pair(ABC):
    """Two ends, and the steps that each pair goes through."""

    N_STEPS: Final = 3
    N_RATES: Final = 4
    """Rates measured: two lengths, two directions."""

    def __init__(self, network: Network, a: str, b: str) -> None:
        self.network = network
        self.name = f"{a} - {b}"
        self.row = Row(pair=(a, b))

    def run(self, seconds: float, step: Callable[[str], None]) -> list[str]:
        """Go through the steps, rates in ``seconds``; return what fell short, with the pair.

        After that it goes no further.  ``step`` is told what is done next.
        """
        failures: list[str] = []
        before = self.network.drops()
        for what, do in (
            ("ARP, ICMP, UDP", self.talk),
            ("comparing every byte", self.compare),
            ("measuring", lambda: self._measure(seconds / self.N_RATES)),
        ):
            step(f"{self.name}: {what}")
            try:
                do()
                self.network.settle()
            except (ShortfallError, DriverError, OSError) as error:
                failures.append(f"{self.name}: {error}")
                self._clear()
                break
        self.row.drops = self.network.drops() - before
        return failures

    @abstractmethod
    def talk(self) -> None:
        """Have both answer each other, and take the round trip's time.

        Raises: ShortfallError, here and below.
        """

    @abstractmethod
    def compare(self) -> None:
        """Move bulk both ways, comparing every byte on arrival."""

    @abstractmethod
    def rate(self, length: int, seconds: float) -> Flow:
        """Move frames of a length, ``seconds`` each way, counting them."""

    def _measure(self, seconds: float) -> None:
        self.row.frames_per_s = self.rate(SHORT, seconds).frames_per_s
        self.row.gbit_per_s = self.rate(LONG, seconds).frames_per_s * LONG * 8 / 1e9

    def _clear(self) -> None:
        """Leave nothing behind for the next pair to stumble over."""
        with contextlib.suppress(DriverError):
            self.network.settle()
        for guest in self.network.guests:
            guest.datagrams.clear()

    # ---- what both kinds of pairs do

    def ping(self, guest: Guest, ip: str, name: str) -> float:
        """Ping once; return the seconds that it took."""
        start = time.perf_counter()
        ping = guest.ping(ip, _PING_PAYLOAD)
        what = f"{guest.name}'s ping of {name} ({ip}) was not answered with its own bytes"
        self.network.until(lambda: ping.answered, what)
        return time.perf_counter() - start

    def take_round_trip(self, guest: Guest, ip: str, name: str) -> None:
        """Ping many times; the first, with its ARP, doesn't count."""
        self.ping(guest, ip, name)
        times_s = [self.ping(guest, ip, name) for _ in range(_PINGS)]
        self.row.round_trip_us = statistics.median(times_s) * 1e6

    def account(self, name: str, n_sent: int, n_arrived: int, drops_before: int) -> None:
        """See that whatever was lost was counted.

        Raises: ShortfallError, if not; and if more arrived than was sent.
        """
        n_lost, n_counted = n_sent - n_arrived, self.network.drops() - drops_before
        if n_lost > n_counted:
            raise ShortfallError(
                f"{name}: of {n_sent:,} frames {n_lost:,} were lost, {n_counted:,} were counted"
            )
        if n_lost < 0:
            raise ShortfallError(f"{name}: of {n_sent:,} frames {n_arrived:,} arrived")


class GuestPair(Pair):
    """Two guests on the switch."""

    def __init__(self, network: Network, a: Guest, b: Guest) -> None:
        super().__init__(network, a.name, b.name)
        self._ways = ((a, b), (b, a))

    def talk(self) -> None:
        """Ping both ways, and send datagrams of several lengths both ways."""
        for source, target in self._ways:
            self.ping(source, str(target.ip), target.name)
            for n in UDP_LENGTHS:
                sent = bytes(i % 251 for i in range(n))
                source.udp_send(target.ip, _ECHO_PORT, sent)
                what = f"a datagram of {n} bytes from {source.name} did not reach {target.name}"
                datagram = self._datagram(target, what)
                if (datagram.src, datagram.data) != (source.ip, sent):
                    raise ShortfallError(f"{what} as it was sent")
        a, b = self._ways[0]
        self.take_round_trip(a, str(b.ip), b.name)

    def _datagram(self, guest: Guest, what: str) -> Datagram:
        self.network.until(lambda: guest.datagrams, what)
        return guest.datagrams.popleft()

    def compare(self) -> None:
        """Send numbered frames through the drivers, and compare each as a whole."""
        for source, target in self._ways:
            self._compare(source, target)

    def _compare(self, source: Guest, target: Guest) -> None:
        head = target.driver.mac + source.driver.mac + _ETHERTYPE
        stream = Stream(f"{source.name} to {target.name}", head, LONG)
        n, n_sent, before = _COMPARED_BYTES // LONG, 0, self.network.drops()
        last = time.monotonic()
        while stream.next < n and time.monotonic() - last < IDLE_S:
            frames = stream.frames(n_sent, min(n, n_sent + BURST // 2))
            n_sent += source.driver.send(frames)
            self.network.loop.dispatch()
            arrived = target.driver.recv(BURST)
            for frame, header in arrived:
                if frame.startswith(head):
                    stream.check(frame)
                else:
                    target.stack.receive(frame, header)
            last = time.monotonic() if arrived else last
        n_arrived = stream.next - stream.n_missing
        self.row.compared_bytes += n_arrived * LONG
        self.account(stream.name, n_sent, n_arrived, before)
        if n_sent < n:
            raise ShortfallError(f"{stream.name}: stalled after {n_sent:,} of {n:,} frames")

    def rate(self, length: int, seconds: float) -> Flow:
        """Send prepared frames in bursts, all work per frame in kernels."""
        flow = Flow()
        for source, target in self._ways:
            flow.add(self._rate(source, target, length, seconds))
        return flow

    def _rate(self, source: Guest, target: Guest, length: int, seconds: float) -> Flow:
        sender, receiver, loop = source.driver, target.driver, self.network.loop
        head = receiver.mac + sender.mac + _ETHERTYPE
        sender.prepare_bulk([head.ljust(length, b"\x5a")])
        n_before, drops_before, n_sent = receiver.n_received, self.network.drops(), 0
        start = now = time.perf_counter()
        while now - start < seconds:
            for _ in range(_ROUNDS):
                n_sent += sender.send_bulk(BURST)
                loop.dispatch()
                receiver.recv_bulk(BURST)
            now = time.perf_counter()
        flow = Flow(receiver.n_received - n_before, now - start)
        last = time.monotonic()
        while receiver.n_received - n_before < n_sent and time.monotonic() - last < IDLE_S:
            loop.dispatch()
            last = time.monotonic() if receiver.recv_bulk(BURST) else last
        name = f"{source.name} to {target.name}, {length} B"
        self.account(name, n_sent, receiver.n_received - n_before, drops_before)
        return flow
