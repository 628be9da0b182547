"""A software guest on a tap, beside a bare C loop of writev and readv on the same descriptor.

The loop makes the same system calls, with buffers that lie like the guest's, and does nothing else.
Two figures of vnic are put beside it: what the NIC's calls of the link take (``link.send`` and
``link.recv``: the tap, and the guest's receive buffers), and all that the NIC takes, rings and loop
included.  The guest's driver is polled on the same loop, and its time is taken off.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from contextlib import ExitStack
from operator import truediv
from typing import TYPE_CHECKING, Any, Final

import attrs
from kit.missing import Missing
from kit.netns import Netns
from vnic.features import OFFLOADS, Features
from vnic.loop import Loop
from vnic.nic import open_spec
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import DRIVER_FEATURES, Driver, Shape

from benchmarks._frames import DST_MAC, GSO_HEADER, frame
from benchmarks._native import Reader, Slots, Writer, library
from benchmarks._show import progress, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnic_virtio_net.testing.driver_kernel import Queue

    from benchmarks import Row

SECONDS: Final = 25.0
"""Measured for, unless told otherwise."""

WINDOW_S: Final = 0.05
"""One of vnic, one of the bare loop, and so on: whatever else the machine does meets both."""

SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h
SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15  # linux/if_packet.h
PACKET_HDR_LEN: Final = 10
"""Of a virtio-net header on a packet socket: without num_buffers."""


USUAL: Final = Shape(1024)

TO: Final = "to the tap"
FROM: Final = "from the tap"


@attrs.frozen(kw_only=True)
class Case:
    """A line of the table for each way that frames go."""

    frame_len: int
    burst: int
    """Frames that the guest hands over at a time, and that wait for it in the tap."""
    ways: tuple[str, ...] = (TO, FROM)
    rx: Shape = USUAL
    tx: Shape = USUAL
    features: Features = DRIVER_FEATURES
    header: bytes = bytes(12)

    @property
    def frame(self) -> bytes:
        """A frame that nobody on the host wants: not its address, and of no protocol it knows."""
        return frame(self.frame_len, ethertype=b"\x08\x00" if any(self.header) else b"\x88\xb5")


LONG: Final = Case(
    frame_len=65536 - 2,
    burst=16,
    tx=Shape(32),
    features=DRIVER_FEATURES | OFFLOADS,
    header=GSO_HEADER,
)

CASES: Final = (
    Case(frame_len=64, burst=256),
    Case(frame_len=1500, burst=256),
    LONG,
    # As Linux's driver posts them once long frames come: a page each.  Before that 1536 bytes.
    attrs.evolve(LONG, ways=(FROM,), rx=Shape(1024, cuts=(4096,))),
)


@attrs.frozen
class Window:
    """What ``n_frames`` took of this thread's time on its core; that of others is not in it."""

    n_frames: int
    calls_ns: int
    """In system calls and around them: `link.send`, `link.recv`, or the bare loop."""
    total_ns: int
    """That, and all else that the NIC does."""


class Bench:
    """A tap in a namespace, a software guest on it, and what feeds it from the host's side."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._opened = ExitStack()
        self._step: Callable[[], bool] = bool
        self._calls_ns = self._driver_ns = 0
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        case, opened = self.case, self._opened
        self.netns = opened.enter_context(Netns())
        fd = self.netns.open_tap("tap0")
        opened.callback(os.close, fd)
        self.netns.up("tap0")
        self.loop = Loop()
        opened.callback(self.loop.close)
        host = SoftwareHost(self.loop, 64 << 20)
        self.nic = open_spec(f"virtio-net,tap:fd={fd},mac={DST_MAC.hex(':')}", host)
        opened.callback(self.nic.close)
        for name in ("send", "recv"):
            setattr(self.nic.link, name, self._timed(getattr(self.nic.link, name)))
        self.driver = Driver(
            self.nic, host, features=case.features, rx=case.rx, tx=case.tx, polling=True
        )
        opened.callback(self.driver.stop)
        poller = self.loop.poll(self._guest, lambda: False)
        opened.callback(poller.close)
        for _ in range(8):
            self.loop.dispatch()  # before that the queues' start is pending, and nobody receives

        tx, rx = (self._slots(host, queue) for queue in (self.driver.tx, self.driver.rx))
        self._writer = Writer(fd, tx, case.header, case.frame_len)
        self._reader = Reader(fd, rx, case.frame_len)
        wire = self.netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.callback(wire.close)
        wire.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 30)
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.bind(("tap0", 0))
        self._feeder = Writer(wire.fileno(), tx, case.header[:PACKET_HDR_LEN], case.frame_len)
        self._meet()
        self.driver.prepare_bulk([case.frame], [case.header])

    def close(self) -> None:
        self._opened.close()

    def _slots(self, host: SoftwareHost, queue: Queue) -> Slots:
        """Buffers as a queue of the driver has them, with frames in them, in the same memory."""
        n, capacity = queue.n_slots, queue.capacity
        # As the driver's kernel lays them out: eight guard bytes, an odd number of lines.
        stride = ((capacity + 8 + 63) // 64 | 1) * 64
        memory = host.memory.view(host.alloc(stride * n, 64), stride * n)
        memory[:] = (bytes(12) + self.case.frame)[:capacity].ljust(stride, b"\0") * n
        return Slots(memory, n, stride, capacity, 12)

    def _meet(self) -> None:
        """See that a frame arrives whole, header and all, by either way."""
        self._feeder.write(2)
        self._reader.read(1)
        self.loop.dispatch()
        [(received, header)] = self.driver.recv()
        if received != self.case.frame or header[:10] != self.case.header[:10]:
            raise RuntimeError(f"a frame of {len(received)} bytes did not arrive as it was sent")

    def _timed(self, call: Callable[[Any], int]) -> Callable[[Any], int]:
        def timed(argument: Any) -> int:
            self._calls_ns -= time.thread_time_ns()
            n = call(argument)
            self._calls_ns += time.thread_time_ns()
            return n

        return timed

    def _guest(self) -> bool:
        """The driver's turn, once a round of the loop."""
        self._driver_ns -= time.thread_time_ns()
        busy = self._step()
        self._driver_ns += time.thread_time_ns()
        return busy

    def _run(self, turn: Callable[[], bool], n_done: Callable[[], int]) -> Window:
        """Run the loop for a window, with the driver's turn; ``n_done``: frames until now."""
        self.loop.timer(WINDOW_S, self.loop.stop)
        self._step, self._calls_ns, self._driver_ns = turn, 0, 0
        n_before, total_ns = n_done(), -time.thread_time_ns()
        self.loop.run()
        total_ns += time.thread_time_ns()
        self._step = bool
        return Window(n_done() - n_before, self._calls_ns, total_ns - self._driver_ns)

    def _bare(self, call: Callable[[int], None], after: Callable[[int], None]) -> Window:
        """Call for a burst, again and again for a window; what comes after doesn't count."""
        deadline_ns = time.perf_counter_ns() + int(WINDOW_S * 1e9)
        n = total_ns = 0
        while time.perf_counter_ns() < deadline_ns:
            total_ns -= time.thread_time_ns()
            call(self.case.burst)
            total_ns += time.thread_time_ns()
            n += self.case.burst
            after(self.case.burst)
        return Window(n, total_ns, total_ns)

    # ---- the contestants, in both directions

    def contestants(self, way: str) -> tuple[Callable[[], Window], Callable[[], Window]]:
        if way == TO:
            return self.vnic_sends, self.loop_writes
        return self.vnic_receives, self.loop_reads

    def vnic_sends(self) -> Window:
        def turn() -> bool:
            self.driver.send_bulk(self.case.burst)
            return True

        return self._run(turn, lambda: self.nic.counters()["tx_frames"])

    def loop_writes(self) -> Window:
        return self._bare(self._writer.write, lambda _: None)

    def vnic_receives(self) -> Window:
        """As many frames as the guest has received wait for it again after its turn."""

        def turn() -> bool:
            n = self.driver.recv_bulk(self.case.burst)
            self._feeder.write(n)
            return n > 0

        self._feeder.write(self.case.burst)
        window = self._run(turn, lambda: self.driver.n_received)
        self._reader.read(self.case.burst - self.driver.recv_bulk(self.case.burst))
        return window

    def loop_reads(self) -> Window:
        self._feeder.write(self.case.burst)
        window = self._bare(self._reader.read, self._feeder.write)
        self._reader.read(self.case.burst)
        return window

    def n_lost(self) -> int:
        """Return how many frames were dropped anywhere."""
        counts = self.nic.counters()
        n_lost = sum(n for key, n in counts.items() if "_drop_" in key)
        return n_lost + self.netns.counters("tap0")["tx_dropped"]


def row(bench: Bench, way: str, windows: list[tuple[Window, Window]]) -> Row:
    """Return one line: medians over pairs of neighbouring windows."""
    queue = bench.driver.tx if way == TO else bench.driver.rx
    calls = [vnic.calls_ns / vnic.n_frames for vnic, _ in windows]
    total = [vnic.total_ns / vnic.n_frames for vnic, _ in windows]
    bare = [each.total_ns / each.n_frames for _, each in windows]
    return {
        "frames": way,
        "bytes": bench.case.frame_len,
        "buffers": -(-(bench.case.frame_len + 12) // queue.capacity),
        "Mframes/s": 1e3 / statistics.median(total),
        "Gbit/s": 8 * bench.case.frame_len / statistics.median(total),
        "ratio": statistics.median(map(truediv, bare, calls)),
        "whole NIC": statistics.median(map(truediv, bare, total)),
        "bare loop ns": statistics.median(bare),
        "link ns": statistics.median(calls),
        "NIC ns": statistics.median(total),
        "lost": bench.n_lost(),
    }


def main(seconds: float | None = None) -> list[Row]:
    n_rows = sum(len(case.ways) for case in CASES)
    n_pairs = max(1, round((seconds or SECONDS) / n_rows / (2 * WINDOW_S)))
    rows: list[Row] = []
    try:
        library()
        with progress("tap", seconds or SECONDS) as advance:
            for case in CASES:
                bench = Bench(case)
                for way in case.ways:
                    vnic, bare = bench.contestants(way)
                    vnic(), bare()
                    windows = []
                    for _ in range(n_pairs):
                        windows.append((vnic(), bare()))
                        advance()
                    rows.append(row(bench, way, windows))
                bench.close()
    except Missing as missing:
        print(f"tap: skipped: {missing}")
        return []
    show(
        "A software guest on a tap, beside a bare C loop of writev and readv on it, on one core",
        rows,
        f"Medians of {n_pairs} windows of {WINDOW_S:g} s, each beside one of the bare loop.  "
        "'link': send and recv as the NIC calls them; 'NIC': its rings and loop as well.",
    )
    return rows
