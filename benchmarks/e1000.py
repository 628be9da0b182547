"""vnic's e1000 beside QEMU's own: the same driver, guest and kind of tap, by turns."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from kit.guest import Guest, TapNic, VfioUserNic
from kit.missing import Missing
from kit.netns import IperfResult, Netns

from benchmarks._show import progress, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks import Row

SECONDS: Final = 60.0
"""Measured for, unless told otherwise: some five rounds."""

N_LOADS: Final = 3
"""Times that each contestant's driver is loaded, before the rounds."""

IPERF_S: Final = 2
N_PINGS: Final = 100

SAMPLES: Final = {
    "out": ("TCP from the guest, Mbit/s", "higher"),
    "in": ("TCP to the guest, Mbit/s", "higher"),
    "rtt": ("ping, median round trip, ms", "lower"),
    "load": ("driver loaded and bound, s", "lower"),
    "cpu out": ("CPU from the guest, s/GB", "lower"),
    "cpu in": ("CPU to the guest, s/GB", "lower"),
}
"""What is measured, and which is better."""


@attrs.define
class Contestant:
    """One NIC of the guest, on a tap of its own."""

    name: str
    mac: str
    guest_ip: str
    host_ip: str
    pids: tuple[int, ...]
    """The VMM, and whoever else does its NIC's work."""
    samples: dict[str, list[float]] = attrs.field(factory=lambda: defaultdict(list))
    interface: str = ""
    device: str = ""

    def find(self, guest: Guest) -> None:
        """Find it in the guest, where the bus decides which is eth0."""
        path = guest.run(f"grep -l {self.mac} /sys/class/net/*/address").strip()
        self.interface = path.split("/")[4]
        self.device = guest.run(f"readlink -f /sys/class/net/{self.interface}/device").strip()

    def configure(self, guest: Guest) -> None:
        """Give it its address, and wait for its network."""
        up = f"ip addr add {self.guest_ip}/24 dev {self.interface}; ip link set {self.interface} up"
        wait = f"until ping -c 1 -W 1 {self.host_ip}; do :; done"
        guest.run(f"{up}; {wait}")

    def cpu_s(self) -> float:
        """Return the CPU time that its processes have taken, ever."""
        ticks = 0
        for pid in self.pids:
            # Spec: proc_pid_stat(5): utime and stime, counted from behind the name.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def note(self, sample: str, value: float) -> None:
        self.samples[sample].append(value)


@contextlib.contextmanager
def contest() -> Iterator[tuple[Guest, list[Contestant]]]:
    """Start a guest with both NICs.

    Raises: Missing, GuestLostError.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="vnic-e1000-"))
        stack.callback(shutil.rmtree, folder)
        netns = stack.enter_context(Netns())
        macs = ("52:54:00:00:00:0a", "52:54:00:00:00:0b")
        command = [str(Path(sys.executable).with_name("vnic")), "serve", "--json"]
        command += [f"e1000,tap0,mac={macs[0]}", "--vfio-user", str(folder / "socket")]
        server = netns.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert server.stdout is not None
        if not server.stdout.readline():
            raise ChildProcessError(f"vnic has ended with code {server.wait()}")
        fd = netns.open_tap("tap1")
        stack.callback(os.close, fd)
        nics = (VfioUserNic(path=folder / "socket"), TapNic(fd=fd, mac=macs[1], model="e1000"))
        guest = stack.enter_context(Guest(nics))
        contestants = [
            Contestant("vnic", macs[0], "10.0.0.1", "10.0.0.254", (guest.pid, server.pid)),
            Contestant("QEMU", macs[1], "10.0.1.1", "10.0.1.254", (guest.pid,)),
        ]
        for i, contestant in enumerate(contestants):
            netns.set_address(f"tap{i}", f"{contestant.host_ip}/24")
            netns.up(f"tap{i}")
            contestant.find(guest)
        stack.enter_context(netns.iperf3_server())
        yield guest, contestants


def load(guest: Guest, contestant: Contestant, others: list[Contestant]) -> None:
    """Load the driver for this NIC alone; the guest's own clock says how long it took."""
    ignore = "; ".join(f"echo none >{other.device}/driver_override" for other in others)
    clock = "cut -d' ' -f1 /proc/uptime"
    output = guest.run(
        f"rmmod e1000; {ignore}; echo >{contestant.device}/driver_override; sleep 0.2\n"
        f"{clock}; modprobe e1000; {clock}"
    )
    before, after = map(float, output.split())
    contestant.note("load", after - before)


def measure(guest: Guest, contestant: Contestant) -> None:
    """Take one sample each of traffic out, traffic in, and the round trip."""
    for direction, option in (("out", ""), ("in", "--reverse")):
        cpu_s = -contestant.cpu_s()
        command = f"iperf3 --client {contestant.host_ip} --time {IPERF_S} --json {option}"
        result = IperfResult.parse(guest.run(command))
        cpu_s += contestant.cpu_s()
        contestant.note(direction, result.bits_per_s / 1e6)
        contestant.note(f"cpu {direction}", cpu_s / (result.n_bytes / 1e9))
    pings = guest.run(f"ping -c {N_PINGS} -i 0.005 {contestant.host_ip}")
    times_ms = [float(ms) for ms in re.findall(r"time=([\d.]+) ms", pings)]
    contestant.note("rtt", statistics.median(times_ms))


def rows_of(vnic: Contestant, qemu: Contestant) -> list[Row]:
    """Return a row for each thing measured: medians, and what they are to each other."""
    rows: list[Row] = []
    for sample, (title, better) in SAMPLES.items():
        ours, theirs = (statistics.median(each.samples[sample]) for each in (vnic, qemu))
        rows.append(
            {
                "of one e1000": title,
                "vnic": ours,
                "QEMU": theirs,
                "ratio": ours / theirs,
                "better": better,
                "samples": len(vnic.samples[sample]),
            }
        )
    return rows


def main(seconds: float | None = None) -> list[Row]:
    try:
        with progress("e1000", seconds or SECONDS) as advance, contest() as (guest, contestants):
            deadline = time.monotonic() + (seconds or SECONDS)
            for _ in range(N_LOADS):
                for contestant in contestants:
                    load(guest, contestant, [each for each in contestants if each != contestant])
                    advance()
            guest.run(
                "rmmod e1000; "
                + "; ".join(f"echo >{each.device}/driver_override" for each in contestants)
                + "; modprobe e1000"
            )
            for contestant in contestants:
                contestant.find(guest)
                contestant.configure(guest)
            while not contestants[1].samples["rtt"] or time.monotonic() < deadline:
                for contestant in contestants:
                    measure(guest, contestant)
                    advance()
    except Missing as missing:
        print(f"e1000: skipped: {missing}")
        return []
    rows = rows_of(*contestants)
    show(
        "An e1000 served over vfio-user beside QEMU's own, in one emulated guest",
        rows,
        "Medians, by turns. Each is on a tap of its own in one namespace. CPU is of the VMM, the "
        "guest's emulated work included, and for vnic of its process too.",
    )
    return rows
