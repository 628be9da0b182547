"""From one VM to another through a switch with two vhost-user ports: vnic beside DPDK.

The switch polls on one core: ``vnic run`` with two NICs on a vale, or DPDK's testpmd that forwards
between two net_vhost ports.  The guests are one testpmd on the other core, with a virtio_user port
for each VM: what it receives on one it sends on the other, so 512 frames go round for ever.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import attrs
from kit.missing import Missing
from kit.testpmd import Testpmd, TestpmdError

from benchmarks._native import line_latency_ns
from benchmarks._show import progress, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks import Row

SECONDS: Final = 110.0
"""Measured for, unless told otherwise: some forty windows of each contestant at each size."""

SIZES: Final = (64, 1500)

WINDOW_S: Final = 0.35
"""Short, as a hypervisor moves virtual cores every few seconds."""

SETTLE_S: Final = 0.03
"""From the start of the traffic to the window."""

NEAR_MAX_NS: Final = 100.0
"""A line that takes no longer from core to core is near.  Seen: 30 to 55, and 190 to 260."""

WAITED_MAX: Final = 0.1
"""Of a window: how long switch and guests may have been kept from their cores by other processes,
or by the hypervisor, before it says nothing."""

FRAMES: Final = 512
"""In flight: eight bursts of 32 on each of two ports (``start tx_first 8``)."""

START_TIMEOUT_S: Final = 20.0


@attrs.frozen
class Window:
    """One stretch of one contestant's traffic."""

    contestant: str
    size: int
    mpps: float
    """Both directions."""
    latency_ns: tuple[float, float]
    """Of a cache line between the two cores, before and after."""

    waited: float
    """How long they were kept from their cores, as a part of the window."""

    @property
    def regime(self) -> str:
        """Near or far; disturbed by others; or mixed, where the cores were moved meanwhile."""
        if self.waited > WAITED_MAX:
            return "disturbed"
        near = [latency <= NEAR_MAX_NS for latency in self.latency_ns]
        return "near" if all(near) else "mixed" if any(near) else "far"


class Switch(Protocol):
    """One that carries frames between the sockets; guests are started once it listens."""

    name: str

    @property
    def pid(self) -> int:
        """Its process."""

    def start(self) -> None:
        """Begin to forward."""

    def stop(self) -> None:
        """Leave the core to the next contestant."""

    def n_lost(self) -> int:
        """How many frames it has dropped; the loop then has fewer than it should."""


class Vnic:
    """``vnic run``; with nothing to do it sleeps, so that it needn't be stopped."""

    name = "vnic"

    def __init__(self, folder: Path, sockets: Sequence[Path], cpu: int) -> None:
        nics = (
            f'[[nic]]\nname = "{name}"\nfrontend = "virtio-net"\nbackend = "vale0:{name}"\n'
            f'vhost-user = "{path}"\n'
            for name, path in zip("ab", sockets, strict=True)
        )
        (folder / "two.toml").write_text("".join(nics))
        self._events = folder / "events"
        command = ["taskset", "--cpu-list", str(cpu), str(Path(sys.executable).with_name("vnic"))]
        command += ["run", str(folder / "two.toml"), "--json", "--stats", "1"]
        with self._events.open("wb") as events:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=events)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        if self._process.poll() is not None:
            raise TestpmdError(f"vnic has ended with code {self._process.returncode}")

    def stop(self) -> None:
        pass

    def n_lost(self) -> int:
        lines = self._events.read_text().splitlines()
        stats = [event for line in lines if (event := json.loads(line))["event"] == "stats"]
        totals = {event["nic"]: event["counters"] for event in stats}
        return sum(n for each in totals.values() for key, n in each.items() if "_drop_" in key)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class Dpdk:
    """Testpmd with two net_vhost ports, forwarding in io mode: it looks at no byte of a frame."""

    def __init__(self, name: str, pmd: Testpmd, burst: int) -> None:
        self.name = name
        self._pmd = pmd
        self._burst = burst
        self._n_lost = 0

    @property
    def pid(self) -> int:
        return self._pmd.pid

    def start(self) -> None:
        self._pmd.command(f"set burst {self._burst}")
        self._pmd.command("start")

    def stop(self) -> None:
        self._n_lost += n_dropped(self._pmd.command("stop"))

    def n_lost(self) -> int:
        return self._n_lost


def n_dropped(report: str) -> int:
    """Return how many frames testpmd could not send, from what ``stop`` says."""
    totals = report.partition("Accumulated forward statistics for all ports")[2]
    return sum(int(n) for n in re.findall(r"TX-dropped:\s*(\d+)", totals))


def guests(sockets: Sequence[Path], cpu: int) -> Testpmd:
    """Start the testpmd that is both VMs."""
    # Frames that start on port 0 are for 02:..:00, and go to port 1, and the other way round.
    vdevs = [
        f"virtio_user{i},path={path},queues=1,queue_size=1024,mac=02:00:00:00:00:0{1 - i}"
        for i, path in enumerate(sockets)
    ]
    return Testpmd(vdevs, options=["--forward-mode=io"], lcores=f"0@{cpu},1@{cpu}")


def waited_s(pids: tuple[int, int], cpus: tuple[int, int]) -> float:
    """Return how long these processes have waited for these cores, ever."""
    total_s = 0.0
    for pid in pids:
        for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total_s += int(schedstat.read_text().split()[1]) / 1e9  # ready, and not running
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name in (f"cpu{cpu}" for cpu in cpus):
            total_s += int(ticks[7]) * tick_s  # stolen by the hypervisor.  Spec: proc_stat(5).
    return total_s


def measure(switch: Switch, vms: Testpmd, size: int, cpus: tuple[int, int]) -> Window:
    """Have the frames go round for one window.

    Raises: TestpmdError, where they are not of that size, or stand still.
    """
    pids = switch.pid, vms.pid
    switch.start()
    vms.command(f"set txpkts {size}")
    # `start` first empties the receive rings of what the last window left there.
    vms.command("start tx_first 8")
    time.sleep(SETTLE_S)
    before_ns = line_latency_ns(*cpus)
    first = vms.stats()
    waited = -waited_s(pids, cpus)
    time.sleep(WINDOW_S)
    waited += waited_s(pids, cpus)
    report = vms.command("show port stats all")
    after_ns = line_latency_ns(*cpus)
    last = vms.stats()
    n_lost = n_dropped(vms.command("stop"))
    switch.stop()

    n_frames = sum(b.rx_packets - a.rx_packets for a, b in zip(first, last, strict=True))
    n_bytes = sum(b.rx_bytes - a.rx_bytes for a, b in zip(first, last, strict=True))
    # The counters are read while they go up: a burst may be in one of them and not in the other.
    off = abs(n_bytes - n_frames * size)
    if n_frames < 16 * FRAMES or off > FRAMES * size or n_lost:
        raise TestpmdError(
            f"{switch.name}: {n_frames} frames of {n_bytes} bytes in all went round, and "
            f"{n_lost} were lost by the guests; they were to have {size} bytes each"
        )
    # By testpmd's own clock, read together with the counters: since the last time it was asked.
    rates = [int(pps) for pps in re.findall(r"Rx-pps:\s*(\d+)", report)]
    mpps = sum(rates) / 1e6
    return Window(switch.name, size, mpps, (before_ns, after_ns), waited / WINDOW_S)


@contextlib.contextmanager
def contest(cpus: tuple[int, int]) -> Iterator[list[tuple[Switch, Testpmd]]]:
    """Start the switches on the first core and their guests on the second; all are at rest.

    Raises: Missing, TestpmdError.
    """
    switch_cpu, guest_cpu = cpus
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="vnic-vm-to-vm-"))
        stack.callback(shutil.rmtree, folder)
        theirs = [folder / "dpdk-a", folder / "dpdk-b"]
        vdevs = [f"net_vhost{i},iface={path},queues=1" for i, path in enumerate(theirs)]
        pmd = stack.enter_context(
            Testpmd(vdevs, options=["--forward-mode=io"], lcores=f"0@{switch_cpu},1@{switch_cpu}")
        )
        ours = [folder / "vnic-a", folder / "vnic-b"]
        vnic = stack.enter_context(contextlib.closing(Vnic(folder, ours, switch_cpu)))
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(path.exists() for path in ours):
            vnic.start()
            if time.monotonic() > deadline:
                raise TestpmdError(f"vnic is not listening after {START_TIMEOUT_S:g} s")
            time.sleep(0.05)
        our_guests = stack.enter_context(guests(ours, guest_cpu))
        their_guests = stack.enter_context(guests(theirs, guest_cpu))
        yield [
            (vnic, our_guests),
            (Dpdk("dpdk", pmd, 32), their_guests),
            (Dpdk("dpdk --burst=256", pmd, 256), their_guests),
        ]


def summarize(windows: list[Window]) -> list[Row]:
    """Return a row for each size and regime: medians, and what they are to each other."""
    rows: list[Row] = []
    for size in SIZES:
        regimes = {window.regime for window in windows if window.size == size}
        # With no quiet window at all, what there is, under its name.
        for regime in sorted(regimes & {"near", "far"}, reverse=True) or sorted(regimes):
            found: dict[str, list[float]] = {"vnic": [], "dpdk": [], "dpdk --burst=256": []}
            for window in windows:
                if (window.size, window.regime) == (size, regime):
                    found[window.contestant].append(window.mpps)
            mpps = {k: statistics.median(v) if v else math.nan for k, v in found.items()}
            rows.append(
                {
                    "bytes": size,
                    "regime": regime,
                    **{f"{name} Mpps": value for name, value in mpps.items()},
                    "ratio": mpps["vnic"] / mpps["dpdk"],
                    "ratio to --burst=256": mpps["vnic"] / mpps["dpdk --burst=256"],
                    "windows": [len(each) for each in found.values()],
                }
            )
    return rows


def main(seconds: float | None = None) -> list[Row]:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        print("vm_to_vm: skipped: it takes two cores, and this process has one")
        return []
    pair = cpus[0], cpus[1]
    windows: list[Window] = []
    try:
        with progress("vm_to_vm", seconds or SECONDS) as advance, contest(pair) as contestants:
            deadline = time.monotonic() + (seconds or SECONDS)
            while time.monotonic() < deadline:
                for size in SIZES:
                    for switch, vms in contestants:
                        windows.append(measure(switch, vms, size, pair))
                        advance()
            time.sleep(1.1)  # vnic tells its counters once a second
            n_lost = {switch.name: switch.n_lost() for switch, _ in contestants}
    except Missing as missing:
        print(f"vm_to_vm: skipped: {missing}")
        return []
    rows = summarize(windows)
    n_mixed, n_disturbed = (
        sum(window.regime == regime for window in windows) for regime in ("mixed", "disturbed")
    )
    show(
        "From VM to VM: frames a second through a switch on one core, both directions",
        rows,
        f"Medians of windows of {WINDOW_S:g} s. Of {len(windows)}, {n_disturbed} were dropped as "
        f"other processes took the cores, and {n_mixed} as the cores were moved meanwhile. "
        f"Frames lost: " + ", ".join(f"{name} {n}" for name, n in n_lost.items()),
    )
    return rows
