"""A software guest on a netmap port: guest memory to slots, and slots to guest memory.

The module is one whose every sync is a store: what was sent has left, and there are always frames.
So what is measured is what the netmap kernels take for a frame, beside memcpy of the same bytes
between buffers that lie like the guest's and the slots; and what it takes with a NIC around it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import struct
import time
from typing import TYPE_CHECKING, Any, Final

import attrs
from vnic.features import OFFLOADS, Features
from vnic.loop import Loop
from vnic.nic import open_spec
from vnic.testing import SoftwareHost
from vnic_netmap import system
from vnic_netmap.abi import (
    NIOCCTRL,
    NIOCRXSYNC,
    NIOCTXSYNC,
    NetmapReq,
    NetmapRing,
    NetmapSlot,
    NmreqRegister,
    SlotFlag,
)
from vnic_netmap.testing import StandIn
from vnic_virtio_net.testing import DRIVER_FEATURES, Driver, Shape

from benchmarks._frames import DST_MAC, GSO_HEADER, SRC_MAC, frame
from benchmarks._memcpy import measure
from benchmarks._native import Copier, Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks import Row

SECONDS: Final = 24.0
"""Measured for, unless told otherwise."""
"""One of vnic, one of memcpy, and so on: whatever else the machine does meets both."""

N_SLOTS: Final = 1024
BUF_SIZE: Final = 2048
USUAL: Final = Shape(1024)


@attrs.frozen(kw_only=True)
class Case:
    """One line of the table."""

    sends: bool
    """Whether the guest sends, or receives."""
    frame_len: int
    header_len: int
    """Of the virtio-net header in front of the frame in its first slot."""
    burst: int
    queue: Shape = USUAL
    """Of the guest."""
    header: bytes | None = None
    """What the virtio-net header says, if anything."""

    @property
    def slots_per_frame(self) -> int:
        """How many slots a frame takes."""
        return -(-(self.frame_len + self.header_len) // BUF_SIZE)


LARGE: Final = 65536 - 12
"""With its header, 32 slots to the last byte."""

CASES: Final = tuple(
    case
    for sends in (True, False)
    for case in (
        Case(sends=sends, frame_len=64, header_len=0, burst=256),
        Case(sends=sends, frame_len=64, header_len=12, burst=256),
        Case(sends=sends, frame_len=1500, header_len=12, burst=256),
        Case(
            sends=sends,
            frame_len=LARGE,
            header_len=12,
            burst=16,
            queue=Shape(32) if sends else USUAL,
            header=GSO_HEADER,
        ),
    )
)


class EffortlessModule(StandIn):
    """A module whose every sync is a store."""

    _if_at = _tx_at = _rx_at = 0
    n_arriving = 0
    """Slots that have been filled by the time of each RXSYNC."""

    def ioctl(self, fd: int, request: int, argument: Any = None) -> None:
        if request == NIOCTXSYNC:
            self._set_tail(self._tx_at, -1)
        elif request == NIOCRXSYNC:
            self._set_tail(self._rx_at, self.n_arriving)
        else:
            super().ioctl(fd, request, argument)
            if request == NIOCCTRL and argument.nr_reqtype == NetmapReq.REGISTER:
                self._if_at = NmreqRegister.from_address(argument.nr_body).nr_offset

    def mmap(self, fd: int, length: int) -> mmap.mmap:
        self._mapping = super().mmap(fd, length)
        tx, _, rx, _ = struct.unpack_from("=4q", self._mapping, self._if_at + 56)
        self._tx_at, self._rx_at = self._if_at + tx, self._if_at + rx
        return self._mapping

    def fill(self, case: Case, frame: bytes) -> None:
        """Have frames in all receive slots."""
        whole = (case.header or bytes(12))[: case.header_len] + frame
        for i, (at, slot, buffer) in enumerate(self._slots(self._rx_at, N_SLOTS)):
            part = i % case.slots_per_frame
            data = whole[part * BUF_SIZE : (part + 1) * BUF_SIZE]
            slot.len = len(data)
            slot.flags = SlotFlag.MOREFRAG if part + 1 < case.slots_per_frame else 0
            self._mapping[at : at + ctypes.sizeof(slot)] = bytes(slot)
            self._mapping[buffer : buffer + len(data)] = data

    def sent(self, case: Case) -> bytes:
        """Return the frame in the first transmit slots, its header in front."""
        slots = self._slots(self._tx_at, case.slots_per_frame)
        return b"".join(self._mapping[buffer : buffer + slot.len] for _, slot, buffer in slots)

    def _slots(self, ring_at: int, n: int) -> Iterator[tuple[int, NetmapSlot, int]]:
        """Yield a ring's first slots: where each is, what it says, and where its buffer is."""
        ring = NetmapRing.from_buffer_copy(self._mapping, ring_at)
        for i in range(n):
            at = ring_at + ctypes.sizeof(NetmapRing) + i * ctypes.sizeof(NetmapSlot)
            slot = NetmapSlot.from_buffer_copy(self._mapping, at)
            yield at, slot, ring_at + ring.buf_ofs + slot.buf_idx * BUF_SIZE

    def _set_tail(self, at: int, slots: int) -> None:
        (head,) = struct.unpack_from("=I", self._mapping, at + 20)
        struct.pack_into("=I", self._mapping, at + 28, (head + slots) % N_SLOTS)


@attrs.frozen
class Window:
    """What a frame took in a stretch of time; of this thread on its core."""

    netmap_ns: float
    """In the backend: both kernels' copying, and its Python."""
    all_ns: float
    """With the NIC's ring work and the loop; without the guest's driver."""


class Bench:
    """A guest on a port, and buffers like both."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.module = EffortlessModule()
        before, system.current = system.current, self.module
        try:
            self.loop = Loop()
            self.host = SoftwareHost(self.loop)
            mac = SRC_MAC.hex(":")
            spec = f"virtio-net,netmap:vale0:1,header={case.header_len},slots={N_SLOTS},mac={mac}"
            self.nic = open_spec(spec, self.host)
        finally:
            system.current = before
        features = DRIVER_FEATURES | (OFFLOADS if case.header else Features(0))
        rx, tx = (USUAL, case.queue) if case.sends else (case.queue, USUAL)
        self.driver = Driver(self.nic, self.host, features=features, rx=rx, tx=tx, polling=True)
        self.poller = self.loop.poll(self._step, lambda: True)
        self._deadline_ns = self._driver_ns = self._netmap_ns = self._n_sent = 0
        for call in ("send", "recv"):
            setattr(self.nic.link, call, self._timed(getattr(self.nic.link, call)))
        self._try()
        self._copier = self._yardstick()

    def _timed(self, call: Callable[[Any], object]) -> Callable[[Any], object]:
        """Return the same call, from the NIC to the backend, on the stop watch."""

        def timed(frames: Any) -> object:
            since_ns = time.perf_counter_ns()
            result = call(frames)
            self._netmap_ns += time.perf_counter_ns() - since_ns
            return result

        return timed

    def _frame(self) -> bytes:
        """A frame of the case's length, from the guest or to it."""
        addresses = DST_MAC + SRC_MAC if self.case.sends else SRC_MAC + DST_MAC
        return frame(self.case.frame_len, addresses)

    def _try(self) -> None:
        """See that a frame arrives whole, header and all."""
        case, frame = self.case, self._frame()
        header = (case.header or bytes(12))[: case.header_len]
        self.poller.close()
        for _ in range(8):
            self.loop.dispatch()  # before that the queues' start is pending
        if case.sends:
            self.driver.send([frame], [case.header])
            for _ in range(8):
                self.loop.dispatch()
            right = self.module.sent(case) == header + frame
            self.driver.prepare_bulk([frame], [case.header])
        else:
            self.module.fill(case, frame)
            self.module.n_arriving = case.slots_per_frame
            self.nic.link.on_readable()
            [(received, with_header)] = self.driver.recv()
            right = (received, with_header[:10]) == (frame, (case.header or bytes(12))[:10])
            self.module.n_arriving *= case.burst
        if not right:
            raise RuntimeError(f"a frame of {len(frame)} bytes did not arrive as it was sent")
        self.poller = self.loop.poll(self._step, lambda: True)

    def _yardstick(self) -> Copier:
        """Buffers as the driver has them and as the module has, in memory of the same kind."""
        case, queue = self.case, self.driver.tx if self.case.sends else self.driver.rx
        # As the driver's kernel lays them out: eight guard bytes, an odd number of lines.
        stride = ((queue.capacity + 8 + 63) // 64 | 1) * 64
        memory = self.host.memory.view(
            self.host.alloc(stride * queue.n_slots, 64), stride * queue.n_slots
        )
        memory[:] = bytes(len(memory))
        guests = Slots(memory, queue.n_slots, stride, queue.capacity, 12)
        n = case.slots_per_frame
        fd = os.memfd_create("slots")
        os.truncate(fd, N_SLOTS * BUF_SIZE)
        area = mmap.mmap(fd, N_SLOTS * BUF_SIZE)
        os.close(fd)
        area[:] = b"\1" * len(area)
        if case.sends:
            slots = Slots(area, N_SLOTS, BUF_SIZE, BUF_SIZE, case.header_len)
            return Copier(guests, slots, case.frame_len)
        frames = Slots(area, N_SLOTS // n, n * BUF_SIZE, n * BUF_SIZE, case.header_len)
        return Copier(frames, guests, case.frame_len)

    def _step(self) -> bool:
        """The guest's turn, once a round of the loop, and the module's."""
        t0 = time.perf_counter_ns()
        if self.case.sends:
            self._n_sent += self.driver.send_bulk(self.case.burst)
            t1 = time.perf_counter_ns()
        else:
            self.driver.recv_bulk(self.case.burst)
            t1 = time.perf_counter_ns()
            self.nic.link.on_readable()
        self._driver_ns += t1 - t0
        if t1 >= self._deadline_ns:
            self.loop.stop()
        return True

    def vnic(self, seconds: float) -> Window:
        """Move frames for so long."""
        n_frames = self._n_moved()
        self._driver_ns = self._netmap_ns = 0
        since_ns, cpu_ns = time.perf_counter_ns(), -time.thread_time_ns()
        self._deadline_ns = since_ns + int(seconds * 1e9)
        self.loop.run()
        cpu_ns += time.thread_time_ns()
        n_frames = self._n_moved() - n_frames
        # The parts are measured by the clock, so they share in what others took.
        ours = cpu_ns / (time.perf_counter_ns() - since_ns)
        netmap_ns, driver_ns = ours * self._netmap_ns, ours * self._driver_ns
        return Window(netmap_ns / n_frames, (cpu_ns - driver_ns) / n_frames)

    def _n_moved(self) -> int:
        return self._n_sent if self.case.sends else self.driver.n_received

    def memcpy(self, seconds: float) -> float:
        """Copy the same bytes for so long; return nanoseconds a frame."""
        n_frames = 0
        deadline_ns = time.perf_counter_ns() + int(seconds * 1e9)
        cpu_ns = -time.thread_time_ns()
        while time.perf_counter_ns() < deadline_ns:
            self._copier.copy(1024)
            n_frames += 1024
        return (cpu_ns + time.thread_time_ns()) / n_frames

    def n_lost(self) -> int:
        """Return how many frames were dropped anywhere."""
        return sum(n for key, n in self.nic.counters().items() if "_drop_" in key)

    def close(self) -> None:
        self.poller.close()
        self.driver.stop()
        self.nic.close()
        self.loop.close()
        self.module.shut_down()


def row(case: Case, windows: list[tuple[Window, float]], n_lost: int) -> Row:
    """Return the line of one case: medians over pairs of neighbouring windows."""
    netmap = statistics.median(each.netmap_ns for each, _ in windows)
    whole = statistics.median(each.all_ns for each, _ in windows)
    return {
        "guest": "sends" if case.sends else "receives",
        "bytes": case.frame_len,
        "header": case.header_len,
        "slots": case.slots_per_frame,
        "burst": case.burst,
        "Mframes/s": 1e3 / netmap,
        "Gbit/s": 8 * case.frame_len / netmap,
        "ratio": statistics.median(memcpy / each.netmap_ns for each, memcpy in windows),
        "ns a frame": netmap,
        "memcpy": statistics.median(memcpy for _, memcpy in windows),
        "with NIC": whole,
        "lost": n_lost,
    }


def main(seconds: float | None = None) -> list[Row]:
    title = "A software guest on a netmap port whose module costs nothing, on one core"
    return measure("netmap", title, CASES, Bench, row, seconds or SECONDS)
