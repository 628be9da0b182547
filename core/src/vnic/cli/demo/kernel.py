"""The kernel's own IP stack as an end of the demo's network, behind a tap patched to the switch.

The demo moves itself into a network namespace that has no name, so nothing has to be removed:
when the demo leaves it, or dies, the kernel takes the namespace down with the tap in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vnic.cli.demo.network import SWITCH
from vnic.cli.demo.pair import BURST, IDLE_S, LONG, UDP_LENGTHS, Flow, Pair
from vnic.cli.demo.stream import ShortfallError, Stream
from vnic.errors import VnicError
from vnic.patch import Patch
from vnic.testing.packets import ETHERTYPE_IPV4, IPPROTO_UDP, Frame, Ipv4, Udp

if TYPE_CHECKING:
    from vnic.cli.demo.network import Network
    from vnic.registry import Registry
    from vnic.testing.guest import Guest

TAP: Final = "tap0"
IP: Final = "10.0.0.254"

_PORT: Final = 7777
_GUEST_PORT: Final = 7778
_HEADERS_LEN: Final = 42
"""Ethernet, IPv4 and UDP."""
_COMPARED_BYTES: Final = 4 << 20
"""Per direction; fewer than between guests, as datagrams cross two whole stacks."""
_WINDOW: Final = 64
"""Datagrams on their way at a time: fewer than any queue between the two ends holds."""

_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFADDR: Final = 0x8916
_IFREQ: Final = struct.Struct("=16sH2x4s16x")
"""``struct ifreq`` with a ``struct sockaddr_in``, whose port is 0."""


class UnavailableError(Exception):
    """This part of the demo can't be had here; the text says why."""


@contextlib.contextmanager
def own_namespace() -> Iterator[None]:
    """Have the calling thread, and it alone, in a new network namespace.

    Raises: UnavailableError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            why = os.strerror(ctypes.get_errno()).lower()
            raise UnavailableError(f"cannot make a network namespace: {why}; run as root")
        try:
            yield
        finally:
            if libc.setns(before, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot return to the network namespace")
    finally:
        os.close(before)


class Kernel:
    """A tap with an address, patched to the switch, and a UDP socket behind it."""

    def __init__(self, network: Network, registry: Registry, opened: ExitStack) -> None:
        """Move into a namespace and open everything there; ``opened`` undoes it.

        Raises: UnavailableError.
        """
        if "tap" not in registry.prefixes("backends"):
            raise UnavailableError("vnic-tap is not installed")
        opened.enter_context(own_namespace())
        # With IPv6 the kernel would send frames of its own accord, which nobody counts.
        _set("ipv6/conf/default/disable_ipv6", "1")
        try:
            patch = Patch(f"{SWITCH}:up", TAP, network.loop, registry)
        except VnicError as error:
            raise UnavailableError(str(error)) from error
        opened.callback(patch.close)
        network.count(lambda: dict(patch.counters()))
        # While rates are measured no guest answers ARP: it is asked once, not again.
        _set(f"ipv4/neigh/{TAP}/base_reachable_time_ms", "86400000")
        self.socket = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        # The address's class gives the mask, the mask a route: nothing more is needed.
        request = _IFREQ.pack(TAP.encode(), socket.AF_INET, socket.inet_aton(IP))
        fcntl.ioctl(self.socket, _SIOCSIFADDR, request)
        self.socket.bind((IP, _PORT))
        self.socket.setblocking(False)

    def send(self, data: bytes, guest: Guest) -> None:
        """Send a datagram to a guest's port."""
        self.socket.sendto(data, (str(guest.ip), _GUEST_PORT))

    def recv(self) -> bytes | None:
        """Return a datagram that the kernel has for us; None if there is none."""
        try:
            return self.socket.recv(65536)
        except BlockingIOError:
            return None

    def echo(self) -> None:
        """Send datagrams back to where they came from."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, address = self.socket.recvfrom(65536)
                self.socket.sendto(data, address)

    def n_taken(self) -> int:
        """Return how many frames the kernel has taken from the tap."""
        table = Path("/proc/thread-self/net/dev").read_text()
        line = next(line for line in table.splitlines() if line.strip().startswith(f"{TAP}:"))
        return int(line.partition(":")[2].split()[1])


class KernelPair(Pair):
    """A guest on the switch, and the kernel behind the tap."""

    def __init__(self, network: Network, guest: Guest, kernel: Kernel) -> None:
        super().__init__(network, guest.name, "kernel")
        self._guest = guest
        self._kernel = kernel

    def talk(self) -> None:
        """Have the kernel answer pings, and a socket in it send datagrams back."""
        guest = self._guest
        self.take_round_trip(guest, IP, "the kernel")
        for n in UDP_LENGTHS:
            sent = bytes(i % 251 for i in range(n))
            guest.udp_send(IP, _PORT, sent, _GUEST_PORT)
            what = f"a datagram of {n} bytes from {guest.name} did not come back from the kernel"
            self.network.until(self._answered, what)
            if guest.datagrams.popleft().data != sent:
                raise ShortfallError(f"{what} as it was sent")

    def _answered(self) -> bool:
        self._kernel.echo()
        return bool(self._guest.datagrams)

    def compare(self) -> None:
        """Send numbered datagrams both ways, through both stacks, and compare each as a whole."""
        guest, kernel = self._guest, self._kernel
        self._compare(
            f"{guest.name} to kernel",
            lambda data: guest.udp_send(IP, _PORT, data, _GUEST_PORT),
            kernel.recv,
        )
        self._compare(
            f"kernel to {guest.name}",
            lambda data: kernel.send(data, guest),
            lambda: guest.datagrams.popleft().data if guest.datagrams else None,
        )

    def _compare(
        self, name: str, send: Callable[[bytes], None], recv: Callable[[], bytes | None]
    ) -> None:
        stream = Stream(name, b"", LONG - _HEADERS_LEN)
        n, n_sent, before = _COMPARED_BYTES // LONG, 0, self.network.drops()
        last = time.monotonic()
        while stream.next < n and time.monotonic() - last < IDLE_S:
            while n_sent < n and n_sent - stream.next < _WINDOW:
                send(stream.frame(n_sent))
                n_sent += 1
            self.network.pump()
            while (data := recv()) is not None:
                stream.check(data)
                last = time.monotonic()
        n_arrived = stream.next - stream.n_missing
        self.row.compared_bytes += n_arrived * LONG
        self.account(name, n_sent, n_arrived, before)
        if n_sent < n:
            raise ShortfallError(f"{name}: stalled after {n_sent:,} of {n:,} datagrams")

    def rate(self, length: int, seconds: float) -> Flow:
        """Send prepared frames in bursts to the kernel, and from its socket what that can send."""
        flow = self._rate_to_kernel(length, seconds)
        flow.add(self._rate_to_guest(length, seconds))
        return flow

    def _rate_to_kernel(self, length: int, seconds: float) -> Flow:
        # A frame has arrived when the kernel has taken it.  Its socket, which nobody reads
        # meanwhile, keeps of the datagrams what fits: the rest was carried all the same.
        guest, kernel, loop = self._guest, self._kernel, self.network.loop
        guest.driver.prepare_bulk([self._frame(length)])
        n_before, drops_before, n_sent = kernel.n_taken(), self.network.drops(), 0
        start = now = time.perf_counter()
        while now - start < seconds:
            n_sent += guest.driver.send_bulk(BURST)
            loop.dispatch()
            now = time.perf_counter()
        flow = Flow(kernel.n_taken() - n_before, now - start)
        self.network.until(lambda: not guest.driver.n_outstanding, "the tap took no more frames")
        while kernel.recv() is not None:
            pass
        name = f"{guest.name} to kernel, {length} B"
        self.account(name, n_sent, kernel.n_taken() - n_before, drops_before)
        return flow

    def _frame(self, length: int) -> bytes:
        """Return a datagram for the kernel's socket as the frame that carries it."""
        stack, to = self._guest.stack, IPv4Address(IP)
        udp = Udp(src_port=_GUEST_PORT, dst_port=_PORT, payload=bytes(length - _HEADERS_LEN))
        payload = udp.encode(stack.ip, to)
        packet = Ipv4(src=stack.ip, dst=to, protocol=IPPROTO_UDP, payload=payload)
        return Frame(stack.neighbours[to], stack.mac, ETHERTYPE_IPV4, packet.encode()).encode()

    def _rate_to_guest(self, length: int, seconds: float) -> Flow:
        guest, kernel, loop = self._guest, self._kernel, self.network.loop
        data = bytes(length - _HEADERS_LEN)
        n_before, drops_before, n_sent = guest.driver.n_received, self.network.drops(), 0
        start = now = last = time.perf_counter()
        while now - start < seconds or (
            guest.driver.n_received - n_before < n_sent and now - last < IDLE_S
        ):
            if now - start < seconds and n_sent - (guest.driver.n_received - n_before) < _WINDOW:
                for _ in range(_WINDOW):
                    kernel.send(data, guest)
                n_sent += _WINDOW
            loop.dispatch()
            last = now if guest.driver.recv_bulk(BURST) else last
            now = time.perf_counter()
        name = f"kernel to {guest.name}, {length} B"
        self.account(name, n_sent, guest.driver.n_received - n_before, drops_before)
        return Flow(guest.driver.n_received - n_before, last - start)


def _set(parameter: str, value: str) -> None:
    """Set a parameter of the namespace's network, if this kernel has it and lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/net", parameter).write_text(value)
