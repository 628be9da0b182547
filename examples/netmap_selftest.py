"""Try vnic's netmap backend on this machine's own module: a line per check, and a total.

    python netmap_selftest.py                           # ports of a switch, and pipes
    python netmap_selftest.py --nic eth1                # a NIC too, taken from the host meanwhile
    python netmap_selftest.py --nic veth0 --peer veth1  # and what comes out of its wire

It needs Linux with the netmap module, Python 3.11, and the distributions vnic and vnic-netmap.  A
NIC has to be up, and is tried as root.  Exit status: 0, all is well; 1, a check failed; 2, there is
no netmap here.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
from vnic import BackendError, ConfigError
from vnic.burst import Burst
from vnic.features import GUEST_OFFLOADS, NONE, Features
from vnic.link import Link
from vnic.loop import Loop
from vnic.testing.bench import (
    GUEST_MAC,
    OUTSIDE_MAC,
    Guest,
    compare,
    from_guest,
    n_descriptors,
    owe,
    to_be_cut,
    to_guest,
)
from vnic.testing.packets import checksum
from vnic_netmap import Netmap, Vale, system
from vnic_netmap.abi import NETMAP_API, NIOCCTRL, NetmapReq, NmreqHeader, NmreqPortInfoGet
from vnic_netmap.port import not_opened

DEADLINE_S = 5.0
CARRIER_S = 15.0
"""For a NIC to find its link again: many lose it when netmap takes them."""

SIZES = (14, 60, 64, 1514, *range(2030, 2054), 4096, 9014, 65535)
"""Around a slot's 2048 bytes, with headers of 0 to 12 in front, each."""

ETHERTYPE = int.from_bytes(from_guest(1)[0][12:14], "big")
SWITCH = f"vale{os.getpid() % 1_000_000}"
PORTS = (f"netmap:{SWITCH}:1", f"netmap:{SWITCH}:2")
PIPE = (f"netmap:{SWITCH}:p{{1", f"netmap:{SWITCH}:p}}1")


# ---- what checks are made of ---------------------------------------------------------------------


class Skip(Exception):  # noqa: N818 - it is no error
    """A check can't be made here; says why."""


@attrs.define
class Side:
    """A port that is open, and the guest of a NIC on it."""

    backend: Any
    link: Link
    guest: Guest

    def frames(self) -> list[bytes]:
        """Return what came from us; there may be others on a wire."""
        return [each for each in self.guest.frames if each[6:12] in (GUEST_MAC, OUTSIDE_MAC)]

    def n_dropped(self) -> int:
        return sum(n for name, n in self.link.counters().items() if "_drop_" in name)


class Rig:
    """What a check has: a loop, and ports that are closed after it."""

    def __init__(self, nic: str | None = None, peer: str | None = None) -> None:
        self._nics = nic, peer
        self.loop = Loop()
        self.sides: list[Side] = []

    def open(
        self, name: str, backend: type = Netmap, offloads: Features = NONE, **options: Any
    ) -> Side:
        instance, link = backend(), Link(name, self.loop)
        link.open([(instance, name, instance.Options(**options))])
        side = Side(instance, link, Guest(link, offloads=offloads))
        self.sides.append(side)
        side.guest.start()
        return side

    def pair(self, names: Sequence[str] = PORTS, **options: Any) -> tuple[Side, Side]:
        a, b = (self.open(name, **options) for name in names)
        return a, b

    def nic(self, *, peer: bool = False) -> str:
        """Return the NIC's name, or that at the other end of its wire."""
        name = self._nics[peer]
        if name is None:
            raise Skip("give --nic NAME" + (" --peer NAME" if peer else ""))
        return name

    def open_nic(self, suffix: str = "", *, peer: bool = False) -> Side:
        """Open the NIC, and wait for its link."""
        name = self.nic(peer=peer)
        side = self.open(f"netmap:{name}{suffix}")
        state = Path("/sys/class/net", name, "operstate")
        deadline = time.monotonic() + CARRIER_S
        while state.exists() and state.read_text() == "down\n" and time.monotonic() < deadline:
            time.sleep(0.05)
        return side

    def wait(self, so: Callable[[], object]) -> bool:
        """Run the loop until it is so, or for long; return whether it is."""
        deadline = time.monotonic() + DEADLINE_S
        while not so() and time.monotonic() < deadline:
            self.loop.dispatch(0.01)
        return bool(so())

    def rest(self) -> None:
        """Run the loop until it would sleep."""
        for _ in range(200):
            self.loop.dispatch()
            if not select.select([self.loop.fileno()], [], [], 0)[0]:
                return
        owe(self._nics[0], "the loop had work for 200 rounds with nothing to do: it spins")

    def receive(self, side: Side, n: int) -> list[bytes]:
        """Return n frames, or what came of them, or more if more came."""
        self.wait(lambda: len(side.frames()) >= n)
        self.rest()
        frames = side.frames()
        side.guest.frames.clear()
        return frames

    def cross(self, sender: Side, receiver: Side, frames: list[bytes]) -> None:
        """Have frames cross, and compare them."""
        sender.guest.send(frames)
        got = self.receive(receiver, len(frames))
        compare(got, frames, f"{sender.link.name} to {receiver.link.name}")

    def cross_both_ways(self, a: Side, b: Side, sizes: Sequence[int], n: int = 3) -> None:
        for size in sizes:
            self.cross(a, b, from_guest(n, size))
            self.cross(b, a, to_guest(n, size))
        owe(a.n_dropped() + b.n_dropped() == 0, "frames were dropped")

    def close_ports(self) -> None:
        for side in self.sides:
            side.link.close()
        self.sides.clear()

    def close(self) -> None:
        self.close_ports()
        self.loop.close()


def refused(error: type[Exception], call: Callable[[], object]) -> None:
    """Raises: AssertionError, unless the call raises that error, with a text."""
    try:
        call()
    except error as raised:
        owe(str(raised), "the error says nothing")
    else:
        owe(False, f"no {error.__name__}")


class Module:
    """The system calls that ports make.  A check changes some, in a class made from this."""

    def __init__(self) -> None:
        self.real: Any = system.current

    def __getattr__(self, call: str) -> Any:
        return getattr(self.real, call)

    def __enter__(self) -> None:
        system.current = self

    def __exit__(self, *_: object) -> None:
        system.current = self.real


def mem_id(name: str) -> int:
    """Ask the module whose memory an open port has."""
    info = NmreqPortInfoGet()
    header = NmreqHeader(nr_version=NETMAP_API, nr_reqtype=NetmapReq.PORT_INFO_GET)
    header.nr_name = name.removeprefix("netmap:").encode()
    header.nr_body = ctypes.addressof(info)
    fd = system.current.open()
    try:
        system.current.ioctl(fd, NIOCCTRL, header)
    finally:
        system.current.close(fd)
    return int(info.nr_mem_id)


def stack_at(nic: str) -> socket.socket:
    """Return what any program has of the host's network stack at a NIC."""
    try:
        stack = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    except (AttributeError, OSError) as error:
        raise Skip(f"no packet socket: {error}") from None
    stack.bind((nic, ETHERTYPE))
    stack.settimeout(DEADLINE_S)
    return stack


# ---- the checks ----------------------------------------------------------------------------------


class Checks(Rig):
    """What is said of the plugin, a method each, to be called on a rig of its own.

    They raise AssertionError, or `Skip`.
    """

    # ---- ports of a switch, and pipes

    def frames_of_all_lengths_cross_a_switch(self) -> None:
        self.cross_both_ways(*self.pair(), SIZES)

    def frames_of_all_lengths_cross_a_pipe(self) -> None:
        self.cross_both_ways(*self.pair(PIPE), SIZES)

    def a_pipe_needs_no_port_that_is_there_already(self) -> None:
        name = f"vt{os.getpid() % 1_000_000}"
        self.cross_both_ways(*self.pair((f"netmap:{name}{{1", f"netmap:{name}}}1")), (60, 5000))

    def bursts_of_all_lengths_arrive_in_order(self) -> None:
        for names in (PORTS, PIPE):
            a, b = self.pair(names)
            for n in (1, 2, 31, 32, 33, 255, 256, 1000):
                self.cross(a, b, from_guest(n, first=n))

    def several_rings_of_a_port_keep_the_order(self) -> None:
        a, b = self.pair(rings=4, slots=64)
        self.cross(b, a, to_guest(1))  # shows its address: what is for all goes to the first ring
        for first in (0, 200):
            self.cross(a, b, from_guest(200, first=first))

    def a_port_has_memory_of_its_own_or_anothers(self) -> None:
        a = self.open(PORTS[0])
        b = self.open(f"{PORTS[1]}@{mem_id(PORTS[0])}")
        owe(mem_id(PORTS[0]) == mem_id(PORTS[1]), "it has memory of its own")
        self.cross_both_ways(a, b, (60, 5000))

    def the_legacy_request_opens_the_same_ports(self) -> None:
        class Old(Module):
            """One that does not know NIOCCTRL."""

            def ioctl(self, fd: int, request: int, argument: Any = None) -> None:
                if request == NIOCCTRL:
                    raise OSError(22, "no NIOCCTRL")
                self.real.ioctl(fd, request, argument)

        with Old():
            for names in (PORTS, PIPE):
                self.cross_both_ways(*self.pair(names), (60, 5000))

    # ---- virtio-net headers

    def a_frame_to_be_cut_crosses_whole_between_equal_headers(self) -> None:
        frame, header = to_be_cut()
        for n in (12, 10):
            a, b = self.pair(header=n, offloads=GUEST_OFFLOADS)
            a.link.send(Burst.of([frame], [header]))
            compare(self.receive(b, 1), [frame], f"headers of {n} bytes")
            owe(b.guest.headers[0][:10] == header[:10], "its header has changed")
            self.close_ports()

    def plain_frames_cross_between_headers_that_differ(self) -> None:
        for own, others in ((0, 12), (12, 0), (0, 10), (10, 0), (10, 12), (12, 10)):
            a, b = self.open(PORTS[0], header=own), self.open(PORTS[1], header=others)
            self.cross_both_ways(a, b, SIZES[:-3], n=1)
            self.close_ports()

    def a_frame_to_be_cut_is_cut_for_a_port_without_a_header(self) -> None:
        frame, header = to_be_cut()
        a, b = self.open(PORTS[0], header=12), self.open(PORTS[1], header=0)
        a.link.send(Burst.of([frame], [header]))
        got = self.receive(b, 2)
        owe(all(len(each) <= 1514 for each in got), "a segment is longer than 1514 bytes")
        compare([b"".join(each[54:] for each in got)], [frame[54:]], "its segments together")

    def checksums_are_completed_for_a_port_without_a_header(self) -> None:
        a, b = self.open(PORTS[0], header=12), self.open(PORTS[1], header=0)
        for start in (34, 35):
            at, header = start + 6, bytes((1, 0, 0, 0, 0, 0, start, 0, 6, 0, 0, 0))
            for length in (60, 1514, 1999, 2036, 2037, 4067, 9000):
                frame = bytearray(from_guest(1, length)[0])
                frame[at : at + 2] = bytes(2)
                a.link.send(Burst.of([bytes(frame)], [header]))
                frame[at : at + 2] = checksum(bytes(frame[start:])).to_bytes(2, "big")
                compare(self.receive(b, 1), [bytes(frame)], f"checksum from byte {start} on")

    def a_guest_without_offloads_has_them_done(self) -> None:
        frame, header = to_be_cut()
        a, b = self.pair()
        a.link.send(Burst.of([frame], [header]))
        got = self.receive(b, 3)
        compare([b"".join(each[54:] for each in got)], [frame[54:]], "its segments together")
        owe(not any(any(each[:10]) for each in b.guest.headers), "a header asks for an offload")

    def a_port_opens_again_whatever_header_it_had(self) -> None:
        for header in (12, 0, 10, None, 12):
            a, b = self.open(PORTS[0], header=header), self.open(PORTS[1])
            self.cross(a, b, from_guest(5, 3000))
            self.close_ports()

    # ---- no room, no receiver

    def a_full_pipe_holds_back_and_loses_nothing(self) -> None:
        a, b = self.pair(PIPE)
        b.link.recv_disable()
        frames = [frame for i in range(3000) for frame in from_guest(1, 60 + i, i)]
        a.guest.send(frames)
        self.rest()
        owe(a.guest.n_waiting, "it took 3000 frames that nobody receives")
        b.guest.start()
        compare(self.receive(b, len(frames)), frames, "through a pipe that was full")

    def a_switch_drops_for_a_full_receiver_and_holds_up_nobody(self) -> None:
        a, b = self.pair()
        b.link.recv_disable()
        owe(a.guest.send(from_guest(3069)) == 0, "the sender waits")
        b.guest.start()
        got = self.receive(b, 1)
        owe(0 < len(got) < 3069, f"{len(got)} frames of 3069 came")
        compare(got, from_guest(len(got)), "what was not dropped")

    def what_nobody_receives_is_discarded_and_counted(self) -> None:
        for names in (PORTS, PIPE):
            a, b = self.pair(names)
            b.link.recv_discard()
            a.guest.send(from_guest(500, 3000))
            self.rest()
            n = b.link.counts["rx_discarded"]
            owe(n == 500, f"{n} frames of 500 were discarded")
            b.guest.start()
            self.cross(a, b, from_guest(5, 3000, first=500))

    # ---- opening, closing, errors

    def vale_takes_the_kernels_switch_and_its_ports_are_one_nics_alone(self) -> None:
        a, b = (self.open(f"{SWITCH}:{i}", Vale) for i in range(2))
        self.cross_both_ways(a, b, (60, 9000))
        other = self.open(f"netmap:{SWITCH}:3")
        everybody = b"\xff" * 6 + from_guest(1)[0][6:]
        a.guest.send([everybody])
        compare(self.receive(other, 1), [everybody], "at another port of the kernel's switch")
        refused(BackendError, lambda: self.open(f"{SWITCH}:0", Vale))

    def a_port_opens_and_closes_many_times(self) -> None:
        b = self.open(PORTS[1])
        for _ in range(50):
            a = self.open(PORTS[0])
            self.cross(a, b, from_guest(3))
            a.link.close()
            a.link.close()

    def cleanup_with_views_alive_lets_go_with_the_last_of_them(self) -> None:
        views: list[memoryview] = []

        class Watched(Module):
            """One whose mappings somebody looks at."""

            def mmap(self, fd: int, length: int) -> Any:
                mapping = self.real.mmap(fd, length)
                views.append(memoryview(mapping))
                return mapping

        with Watched():
            a = self.open(f"{PORTS[0]}/x")
        a.link.close()
        a.backend.cleanup()
        refused(BackendError, lambda: self.open(PORTS[0]))
        views.pop().release()
        self.cross(self.open(PORTS[0]), self.open(PORTS[1]), from_guest(3))

    def cleanup_in_the_middle_of_a_recv_waits_for_its_end(self) -> None:
        a, b = self.pair(PIPE)

        class Room:
            """A room that closes the link when frames are before it."""

            seen: list[bytes] = []

            def put(self, burst: Burst, start: int = 0) -> int:
                b.link.close()
                self.seen += [bytes(frame) for frame in burst]
                return len(burst)

        a.guest.send(from_guest(3))
        b.backend.recv(Room())
        compare(Room.seen, from_guest(3), "to a room that closes its link")

    def what_can_not_be_opened_is_an_error_in_words(self) -> None:
        refused(BackendError, lambda: self.open("netmap:nosuchnic0"))
        refused(ConfigError, lambda: self.open("netmap:"))
        refused(ConfigError, lambda: self.open(f"netmap:{SWITCH}"))
        refused(ConfigError, lambda: self.open(f"netmap:{SWITCH}:lo"))
        refused(ConfigError, lambda: self.open(PIPE[0], header=12))
        refused(BackendError, lambda: self.open(f"{PORTS[0]}-7"))

    # ---- a NIC

    def a_nic_takes_frames(self) -> None:
        one = self.open_nic()
        one.guest.send(from_guest(300, 1000))
        owe(self.wait(lambda: not one.guest.n_waiting), "it took no 300 frames; is its link up?")
        owe(one.n_dropped() == 0, "frames were dropped")
        one.guest.send(from_guest(1, 5000))
        owe(one.n_dropped() == 1, "a frame longer than a slot was not dropped and counted")

    def a_nics_host_ring_is_the_hosts_network_stack(self) -> None:
        ring = self.open_nic("^")
        with closing(stack_at(self.nic())) as stack:
            for size in (60, 590, 1514):
                (to_host,), (to_netmap,) = to_guest(1, size), from_guest(1, size)
                ring.guest.send([to_host])
                compare([stack.recv(65536)], [to_host], "to the host")
                stack.send(to_netmap)
                compare(self.receive(ring, 1), [to_netmap], "from the host")

    def a_nics_rings_have_names(self) -> None:
        for suffix in ("-0", "^0", "*", "/x", "-0/R", "/T"):
            self.open(f"netmap:{self.nic()}{suffix}")
            self.close_ports()
        refused(BackendError, lambda: self.open(f"netmap:{self.nic()}-999"))

    def a_nics_pipes_carry_frames(self) -> None:
        names = f"netmap:{self.nic()}{{1", f"netmap:{self.nic()}}}1"
        self.cross_both_ways(*self.pair(names), (60, 5000))

    def frames_arrive_at_the_other_end_of_the_wire(self) -> None:
        b, a = self.open_nic(peer=True), self.open_nic()
        for n in (1, 10, 100):
            self.cross_both_ways(a, b, (60, 64, 590, 1514), n)


# ---- running them --------------------------------------------------------------------------------

CHECKS = [name for name in vars(Checks) if name[0] != "_"]


def run(check: str, nic: str | None, peer: str | None) -> str:
    """Run one check; return ``ok``, or what else there is to say."""
    before = n_descriptors()
    try:
        with closing(Checks(nic, peer)) as rig:
            getattr(rig, check)()
    except Skip as skip:
        return f"skipped: {skip}"
    except Exception as error:
        logging.getLogger("netmap_selftest").debug("%s", check, exc_info=error)
        return f"FAILED: {error if isinstance(error, AssertionError) else repr(error)}"
    left = n_descriptors() - before
    return f"FAILED: {left} descriptors are still open" if left else "ok"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Try vnic's netmap backend on this machine.")
    parser.add_argument("--nic", help="a NIC to try, too; the host has no use of it meanwhile")
    parser.add_argument("--peer", help="the NIC at the other end of its wire, as of a veth pair")
    parser.add_argument("--verbose", action="store_true", help="show what the plugin logs")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.CRITICAL)
    try:
        system.current.close(system.current.open())
    except OSError as error:
        print(not_opened("netmap", error))
        return 2
    results = []
    for check in CHECKS:
        results.append(run(check, options.nic, options.peer))
        print(f"{check.replace('_', ' ')}: {results[-1]}", flush=True)
    n_ok = results.count("ok")
    n_failed = sum(result.startswith("FAILED") for result in results)
    print(f"{n_ok} ok, {n_failed} failed, {len(results) - n_ok - n_failed} skipped")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
