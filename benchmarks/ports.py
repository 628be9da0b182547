"""The embedded vale with few ports and with many: what a frame costs must not depend on them.

Every port has a NIC whose guest is up, with receive buffers posted and its address known.  Switches
of all sizes stand side by side and are measured by turns.  What the guests' drivers do is not ours
and is subtracted.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import attrs
from vnic.config import parse_nic
from vnic.loop import Loop
from vnic.nic import open_nic
from vnic.registry import Registry
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import Driver, Shape

from benchmarks._show import progress, show

if TYPE_CHECKING:
    from benchmarks import Row

SECONDS: Final = 15.0
"""Measured for, unless told otherwise."""

WINDOW_S: Final = 0.03

PORTS: Final = (2, 16, 64, 254)

FRAME_LEN: Final = 64
BUFFER_LEN: Final = 100

N_BUFFERS: Final = 32768
"""Receive buffers of all guests that are sent to: so the same memory is written to, and is as cold,
however many ports share it."""


@attrs.frozen(kw_only=True)
class Case:
    """Where the first port's frames go."""

    to: str
    burst: int
    """Frames that the sender hands over at a time."""
    run: int
    """Of those in a row for one port."""
    n_targets: int | None = None
    """Ports that they go to; None: all others."""

    def bursts(self, n_ports: int) -> Iterator[tuple[set[int], list[bytes]]]:
        """Give bursts for ever, each with the ports that it goes to."""
        n_targets = self.n_targets or n_ports - 1
        frames = [frame(1 + i) for i in range(n_targets)]
        period = math.lcm(n_targets * self.run, self.burst)
        ports = [i // self.run % n_targets for i in range(period)]
        parts = [ports[at : at + self.burst] for at in range(0, period, self.burst)]
        return itertools.cycle(
            [({1 + i for i in part}, [frames[i] for i in part]) for part in parts]
        )


CASES: Final = (
    Case(to="one port", burst=128, run=128, n_targets=1),
    Case(to="one port", burst=32, run=32, n_targets=1),
    Case(to="each port a burst", burst=128, run=128),
    Case(to="each port a burst", burst=32, run=32),
    Case(to="each port a frame", burst=128, run=1),
)


def mac(port: int) -> bytes:
    return b"\x02\0\0\0\0" + bytes([port])


def frame(to: int, port: int = 0) -> bytes:
    return (mac(to) + mac(port) + b"\x88\xb5").ljust(FRAME_LEN, b".")


class Lan:
    """A switch with so many ports; the guest at the first one sends."""

    def __init__(self, n_ports: int, n_buffers: int) -> None:
        """``n_buffers``: those that each guest posts, a power of two."""
        self.n_ports = n_ports
        self.loop = Loop()
        self.nics, self.drivers = [], []
        registry = Registry()
        rx, tx = (Shape(n, cuts=(BUFFER_LEN,)) for n in (n_buffers, 512))
        for port in range(n_ports):
            host = SoftwareHost(self.loop, (1 << 20) + 512 * n_buffers)
            name = f"vale{n_ports}:{port},engine=embedded"
            config = parse_nic(f"virtio-net,{name},mac={mac(port).hex(':')}")
            nic = open_nic(config, host, registry=registry)
            self.nics.append(nic)
            self.drivers.append(Driver(nic, host, polling=True, rx=rx, tx=tx))
        self.loop.dispatch()
        for port, driver in enumerate(self.drivers):
            driver.send([frame(port, port)])  # to itself: so it is known, and nobody is bothered
            self.loop.dispatch()
        self._deadline_ns = self._drivers_ns = 0
        self.loop.poll(self._step, lambda: True)

    def play(self, case: Case) -> None:
        """Send as the case says from now on."""
        self._bursts = case.bursts(self.n_ports)
        self._reached: set[int] = set()

    def _step(self) -> bool:
        """The guests' turn, once a round of the loop: those that were sent to, and the sender."""
        since_ns = time.perf_counter_ns()
        for port in self._reached:
            self.drivers[port].recv_bulk(128)
        self._reached, frames = next(self._bursts)
        self.drivers[0].send(frames)
        now_ns = time.perf_counter_ns()
        self._drivers_ns += now_ns - since_ns
        if now_ns >= self._deadline_ns:
            self.loop.stop()
        return True

    def ns_a_frame(self, seconds: float) -> float:
        """Send for so long; return what NICs, switch and loop took for a frame, of this thread."""
        n_frames = self._n_received()
        self._drivers_ns = 0
        since_ns, cpu_ns = time.perf_counter_ns(), -time.thread_time_ns()
        self._deadline_ns = since_ns + int(seconds * 1e9)
        self.loop.run()
        cpu_ns += time.thread_time_ns()
        # The guests' part is measured by the clock, so it shares in what others took.
        ours = cpu_ns / (time.perf_counter_ns() - since_ns)
        return (cpu_ns - ours * self._drivers_ns) / (self._n_received() - n_frames)

    def _n_received(self) -> int:
        return sum(driver.n_received for driver in self.drivers)

    def n_lost(self) -> int:
        """Return how many frames were dropped, or went where they don't belong."""
        counts = [nic.counters() for nic in self.nics]
        n = sum(n for each in counts for name, n in each.items() if "_drop_" in name)
        return n - self.n_ports + counts[0].get("vale_to_all", 0)  # each sent one to itself

    def close(self) -> None:
        for driver, nic in zip(self.drivers, self.nics, strict=True):
            driver.stop()
            nic.close()
        self.loop.close()


def main(seconds: float | None = None) -> list[Row]:
    rows: list[Row] = []
    n_windows = max(3, round((seconds or SECONDS) / len(CASES) / len(PORTS) / WINDOW_S))
    with progress("ports", seconds or SECONDS) as advance:
        for n_targets, cases in itertools.groupby(CASES, lambda case: case.n_targets):
            with contextlib.ExitStack() as at_exit:
                lans = []
                for n in PORTS:
                    n_buffers = 512 if n_targets else 1 << (N_BUFFERS // (n - 1)).bit_length() - 1
                    lans.append(lan := Lan(n, n_buffers))
                    at_exit.callback(lan.close)
                for case in cases:
                    rows += measure(lans, case, n_windows, advance)
    show("Vale with many ports", rows, "")
    return rows


def measure(
    lans: list[Lan], case: Case, n_windows: int, advance: Callable[[], None]
) -> Iterator[Row]:
    """Measure switches of all sizes by turns; give a row for each."""
    for lan in lans:
        lan.play(case)
        lan.ns_a_frame(WINDOW_S)
    windows = []
    for _ in range(n_windows):
        windows.append([lan.ns_a_frame(WINDOW_S) for lan in lans])
        advance()
    if n_lost := sum(lan.n_lost() for lan in lans):
        raise RuntimeError(f"{n_lost} frames were lost, or went where they don't belong")
    for i, lan in enumerate(lans):
        yield {
            "frames to": case.to,
            "burst": case.burst,
            "ports": lan.n_ports,
            "ns a frame": statistics.median(each[i] for each in windows),
            "of 2 ports": statistics.median(each[0] / each[i] for each in windows),
        }
