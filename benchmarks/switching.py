"""One software guest to another through an embedded vale: everything on one core, beside memcpy.

The guests' drivers are polled on the switch's own loop, so the frame's whole way is in the figure:
the sender's ring work, the switch, the receiver's.  The yardstick copies the same bytes between
buffers that lie like the guests' own, as many and as far apart, and does nothing else.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

import attrs
from vnic.features import OFFLOADS, Features
from vnic.loop import Loop
from vnic.nic import open_spec
from vnic.testing import SoftwareHost
from vnic_e1000.testing import Driver as E1000Driver
from vnic_virtio_net.testing import DRIVER_FEATURES, Shape
from vnic_virtio_net.testing import Driver as VirtioDriver

from benchmarks._frames import DST_MAC, GSO_HEADER, SRC_MAC, frame
from benchmarks._memcpy import measure
from benchmarks._native import Copier, Slots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vnic.nic import Nic
    from vnic.testing import Driver

    from benchmarks import Row

SECONDS: Final = 30.0
"""Measured for, unless told otherwise."""
"""One of vnic, one of memcpy, and so on: whatever else the machine does meets both."""


@attrs.frozen(kw_only=True)
class Case:
    """One line of the table."""

    frontend: str = "virtio-net"
    frame_len: int
    burst: int
    """Frames that the sender hands over at a time, and the receiver takes."""
    rx: Shape
    tx: Shape
    features: Features = DRIVER_FEATURES
    header: bytes | None = None


SHORT: Final = Shape(1024)
CASES: Final = (
    Case(frame_len=64, burst=32, rx=SHORT, tx=SHORT),
    Case(frame_len=64, burst=256, rx=SHORT, tx=SHORT),
    Case(frame_len=1500, burst=32, rx=SHORT, tx=SHORT),
    Case(frame_len=1500, burst=256, rx=SHORT, tx=SHORT),
    # In buffers of 1536 bytes, 43 to a frame: the ring has room for 23.
    Case(
        frame_len=65536 - 2,
        burst=8,
        rx=Shape(1024),
        tx=Shape(32),
        features=DRIVER_FEATURES | OFFLOADS,
        header=GSO_HEADER,
    ),
    Case(frontend="e1000", frame_len=64, burst=256, rx=SHORT, tx=SHORT),
    Case(frontend="e1000", frame_len=1500, burst=256, rx=SHORT, tx=SHORT),
)


@attrs.frozen
class Window:
    """What a stretch of time was spent on, for ``n_frames``."""

    n_frames: int
    total_s: float
    """Of this thread on its core: what other processes take doesn't count."""
    send_s: float = 0.0
    """Of that, the sender's driver."""
    recv_s: float = 0.0
    """Of that, the receiver's."""


class Pair:
    """Two guests on one switch, and buffers like theirs."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.loop = Loop()
        self.hosts = [SoftwareHost(self.loop, 64 << 20) for _ in range(3)]
        macs = SRC_MAC, DST_MAC
        self.nics = [
            open_spec(f"{case.frontend},vale0:{name},mac={mac.hex(':')}", host)
            for name, mac, host in zip("ab", macs, self.hosts, strict=False)
        ]
        self.drivers = [
            self._driver(nic, host) for nic, host in zip(self.nics, self.hosts, strict=False)
        ]
        self.poller = self.loop.poll(self._step, lambda: True)
        self._deadline_ns = 0
        self._send_ns = self._recv_ns = 0
        self._meet()
        self.drivers[0].prepare_bulk([frame(case.frame_len)], [case.header])
        self._copier = self._yardstick()

    def _driver(self, nic: Nic, host: SoftwareHost) -> Driver:
        case = self.case
        if case.frontend == "e1000":
            return E1000Driver(nic, host, rx_size=case.rx.size, tx_size=case.tx.size, polling=True)
        return VirtioDriver(nic, host, features=case.features, rx=case.rx, tx=case.tx, polling=True)

    def _meet(self) -> None:
        """Let the switch learn who is where; see that a frame arrives whole, header and all."""
        sender, receiver = self.drivers
        self._dispatch()  # before that the queues' start is pending, and nobody receives
        receiver.send([SRC_MAC + DST_MAC + b"\x08\x00" + bytes(46)])
        sent, header = frame(self.case.frame_len), self.case.header or bytes(12)
        sender.send([sent], [header])
        self._dispatch()
        [(received, with_header)] = receiver.recv()
        sender.recv()
        if received != sent or with_header[:10] != header[:10]:
            raise RuntimeError(f"a frame of {len(sent)} bytes did not arrive as it was sent")

    def _dispatch(self) -> None:
        self.poller.close()
        for _ in range(8):
            self.loop.dispatch()
        self.poller = self.loop.poll(self._step, lambda: True)

    def _yardstick(self) -> Copier:
        """Buffers as the drivers have them, in memory of the same kind."""
        host, slots = self.hosts[2], []
        for size, capacity in self._buffers():
            # As the driver's kernel lays them out: eight guard bytes, an odd number of lines.
            stride = ((capacity + 8 + 63) // 64 | 1) * 64
            memory = host.memory.view(host.alloc(stride * size, 64), stride * size)
            memory[:] = bytes(len(memory))
            slots.append(Slots(memory, size, stride, capacity, 12))
        return Copier(slots[0], slots[1], self.case.frame_len)

    def _buffers(self) -> Iterator[tuple[int, int]]:
        """Number and bytes of the sender's buffers, and of the receiver's."""
        for driver, name in zip(self.drivers, ("tx", "rx"), strict=True):
            if isinstance(driver, VirtioDriver):
                queue = getattr(driver, name)
                yield queue.n_slots, queue.capacity
            else:
                yield self.case.rx.size, 2048

    def _step(self) -> bool:
        """Both guests' turn, once a round of the loop."""
        sender, receiver = self.drivers
        t0 = time.perf_counter_ns()
        receiver.recv_bulk(self.case.burst)
        t1 = time.perf_counter_ns()
        sender.send_bulk(self.case.burst)
        t2 = time.perf_counter_ns()
        self._recv_ns += t1 - t0
        self._send_ns += t2 - t1
        if t2 >= self._deadline_ns:
            self.loop.stop()
        return True

    def vnic(self, seconds: float) -> Window:
        """Send through the switch for so long."""
        receiver = self.drivers[1]
        n_frames, n_bytes = receiver.n_received, receiver.n_received_bytes
        self._send_ns = self._recv_ns = 0
        since_ns, cpu_ns = time.perf_counter_ns(), -time.thread_time_ns()
        self._deadline_ns = since_ns + int(seconds * 1e9)
        self.loop.run()
        cpu_ns += time.thread_time_ns()
        # The parts are measured by the clock, so they share in what others took.
        ours = cpu_ns / (time.perf_counter_ns() - since_ns)
        n_frames = receiver.n_received - n_frames
        n_bytes = receiver.n_received_bytes - n_bytes
        if n_bytes != n_frames * self.case.frame_len:
            raise RuntimeError(f"{n_frames} frames of {self.case.frame_len} made {n_bytes} bytes")
        parts_s = (ours * ns / 1e9 for ns in (self._send_ns, self._recv_ns))
        return Window(n_frames, cpu_ns / 1e9, *parts_s)

    def memcpy(self, seconds: float) -> Window:
        """Copy the same bytes for so long."""
        n_frames = 0
        deadline_ns = time.perf_counter_ns() + int(seconds * 1e9)
        cpu_ns = -time.thread_time_ns()
        while time.perf_counter_ns() < deadline_ns:
            self._copier.copy(1024)
            n_frames += 1024
        cpu_ns += time.thread_time_ns()
        return Window(n_frames, cpu_ns / 1e9)

    def n_lost(self) -> int:
        """Return how many frames were dropped anywhere."""
        counters = [nic.counters() for nic in self.nics]
        return sum(n for each in counters for key, n in each.items() if "_drop_" in key)

    def close(self) -> None:
        self.poller.close()
        for driver, nic in zip(self.drivers, self.nics, strict=True):
            driver.stop()
            nic.close()
        self.loop.close()


def row(case: Case, windows: list[tuple[Window, Window]], n_lost: int) -> Row:
    """Return the line of one case: medians over pairs of neighbouring windows."""

    def ns_a_frame(seconds: list[float]) -> float:
        each = zip(seconds, windows, strict=True)
        return statistics.median(1e9 * s / vnic.n_frames for s, (vnic, _) in each)

    total = ns_a_frame([vnic.total_s for vnic, _ in windows])
    send = ns_a_frame([vnic.send_s for vnic, _ in windows])
    recv = ns_a_frame([vnic.recv_s for vnic, _ in windows])
    memcpy = statistics.median(1e9 * each.total_s / each.n_frames for _, each in windows)
    ratios = [
        (vnic.n_frames / vnic.total_s) / (each.n_frames / each.total_s) for vnic, each in windows
    ]
    return {
        "frontend": case.frontend,
        "bytes": case.frame_len,
        "burst": case.burst,
        "Mframes/s": 1e3 / total,
        "Gbit/s": 8 * case.frame_len / total,
        "memcpy Gbit/s": 8 * case.frame_len / memcpy,
        "ratio": statistics.median(ratios),
        "ns a frame": total,
        "driver sends": send,
        "switch": total - send - recv,
        "driver receives": recv,
        "memcpy": memcpy,
        "lost": n_lost,
    }


def main(seconds: float | None = None) -> list[Row]:
    title = "Software guest to vale to software guest, on one core"
    return measure("switching", title, CASES, Pair, row, seconds or SECONDS)
