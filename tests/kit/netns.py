"""Network namespaces for tests: networks that touch nothing else and leave nothing behind.

A :class:`Netns` lives as long as a thread of ours that is inside it.  It has no name, so nothing
has to be removed: when the thread and the processes in it end, even by SIGKILL, the kernel takes
the namespace down with all its interfaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import attrs
from pyroute2 import IPRoute  # type: ignore[import-untyped]

from kit.debian import GUEST_PROGRAMS, fetch
from kit.missing import Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

P = ParamSpec("P")
T = TypeVar("T")

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

COMMAND_TIMEOUT_S = 30.0
"""For commands that are expected to end at once."""

EXIT_TIMEOUT_S = 1.0
"""Bound on the wait for our thread in a namespace, which ends within microseconds."""


@attrs.frozen(kw_only=True)
class IperfResult:
    """What one run of iperf3 measured, as the receiver saw it."""

    n_bytes: int
    """Payload that arrived."""

    seconds: float
    """How long it took."""

    retransmits: int | None
    """TCP segments sent again; None for UDP, or when the other end was the sender."""

    lost_packets: int | None
    """UDP datagrams that did not arrive; None for TCP."""

    @property
    def bits_per_s(self) -> float:
        """Payload rate."""
        return 8 * self.n_bytes / self.seconds

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the output of ``iperf3 --json``.

        Raises:
            ValueError: iperf3 says that the run failed.
        """
        report = json.loads(text[text.index("{") :])
        if "error" in report:
            raise ValueError(f"iperf3: {report['error']}")
        end = report["end"]
        # TCP reports both ends' sums; UDP one, counted at the receiver.
        received = end.get("sum_received") or end["sum"]
        sent = end.get("sum_sent") or end["sum"]
        return cls(
            n_bytes=received["bytes"],
            seconds=received["seconds"],
            retransmits=sent.get("retransmits"),
            lost_packets=received.get("lost_packets"),
        )


class Netns:
    """A network namespace of its own, with loopback up; a context manager.

    Processes that were started in it and are still running at the end are killed.
    """

    def __init__(self, *, ipv6: bool = False) -> None:
        """Make the namespace.

        Args:
            ipv6: whether its interfaces speak IPv6, and so send frames of their own accord.

        Raises:
            Missing: this process may not make one.
        """
        # All that happens inside happens in this one thread, and what it starts inherits its
        # namespace: no preexec_fn, no ``ip netns exec``.
        self._inside = ThreadPoolExecutor(1, thread_name_prefix="netns")
        self._processes: list[subprocess.Popen[str]] = []
        try:
            self.path = self._inside.submit(_unshare).result()
            """The namespace as a path, for whoever takes one."""
            self._ip: Any = self.call(IPRoute)
        except BaseException:
            self._inside.shutdown()
            raise
        if not ipv6:
            for scope in ("all", "default"):
                with contextlib.suppress(OSError):
                    self.sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", "1")
        self.up("lo")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what runs inside and let the namespace go; nothing happens the second time."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._processes.clear()
        if self._ip is not None:
            self.call(self._ip.close)
            self._ip = None
        self._inside.shutdown()
        # The thread is through with its work, but it holds the namespace until it has exited.
        thread, deadline_s = Path(self.path).parents[1], time.monotonic() + EXIT_TIMEOUT_S
        while thread.exists() and time.monotonic() < deadline_s:
            time.sleep(0.001)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function inside: a socket that it opens belongs to the namespace for good.

        Calls run one after the other; one that blocks holds up the others.
        """
        return self._inside.submit(function, *args, **kwargs).result()

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a process inside, with ``subprocess.Popen``'s options; its streams are text."""

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(command, text=True, **options)

        process = self.call(start)
        self._processes.append(process)
        return process

    def run(self, command: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a command inside and return what it printed.

        Raises:
            subprocess.CalledProcessError: it failed; its errors are in ``stderr``.
            subprocess.TimeoutExpired: it was ended after ``timeout_s``.
        """
        done: subprocess.CompletedProcess[str] = self.call(
            subprocess.run,
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return done.stdout

    def sysctl(self, key: str, value: str) -> None:
        """Set a network parameter of the namespace, as ``net/ipv4/ip_forward``."""
        # Which namespace /proc/sys/net shows is decided by the thread that opens it.
        self.call(Path("/proc/sys", key).write_text, value)

    def interfaces(self) -> dict[str, int]:
        """Return the namespace's interfaces: name and index."""
        links = self.call(lambda: list(self._ip.get_links()))
        return {link.get_attr("IFLA_IFNAME"): link["index"] for link in links}

    def adopt(self, interface: str) -> None:
        """Move an interface in from the caller's namespace; it loses its addresses and is down."""
        with IPRoute() as outside, open(self.path) as namespace:  # noqa: PTH123 - a magic link
            (index,) = outside.link_lookup(ifname=interface)
            outside.link("set", index=index, net_ns_fd=namespace.fileno())

    def set_address(self, interface: str, address: str) -> None:
        """Give an interface an address, as ``10.0.0.1/24``."""
        ip, _, prefix = address.partition("/")
        self._call_ip(
            "addr", "add", index=self._index(interface), address=ip, prefixlen=int(prefix)
        )

    def up(self, interface: str, *, mtu: int | None = None) -> None:
        """Bring an interface up."""
        options = {"state": "up"} if mtu is None else {"state": "up", "mtu": mtu}
        self._call_ip("link", "set", index=self._index(interface), **options)

    def down(self, interface: str) -> None:
        """Take an interface down."""
        self._call_ip("link", "set", index=self._index(interface), state="down")

    def delete(self, interface: str) -> None:
        """Delete an interface."""
        self._call_ip("link", "del", index=self._index(interface))

    def add_veth(self, interface: str, peer: str) -> None:
        """Make a pair of connected interfaces, both inside."""
        self._call_ip("link", "add", ifname=interface, kind="veth", peer=peer)

    def counters(self, interface: str) -> dict[str, int]:
        """Return an interface's 64-bit counters, named as in ``ip -s -j link``: ``rx_packets``."""
        link = self.call(lambda: list(self._ip.get_links(self._index_inside(interface))))[0]
        stats = link.get_attr("IFLA_STATS64")
        return {name: stats[name] for name in stats if isinstance(stats[name], int)}

    def open_tap(self, interface: str) -> int:
        """Make a tap with a virtio-net header and return its descriptor, which the caller closes.

        The interface goes when the last descriptor of it does.
        """

        def make() -> int:
            try:
                fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                remedy = "load the tun module, or give this process /dev/net/tun"
                raise Missing("tap", f"/dev/net/tun: {error.strerror}", remedy) from None
            flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
            try:
                fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", interface.encode(), flags))
            except OSError:
                os.close(fd)
                raise
            return fd

        return self.call(make)

    @contextlib.contextmanager
    def iperf3_server(self, port: int = 5201) -> Iterator[None]:
        """Serve iperf3 inside, on all addresses, while the block lasts."""
        arguments = ("--server", "--port", str(port), "--forceflush")
        command = fetch(GUEST_PROGRAMS).command("iperf3", *arguments)
        server = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert server.stdout is not None
        try:
            said = ""
            while "listening" not in said:
                line = server.stdout.readline()
                if not line:
                    raise OSError(f"iperf3 --server ended: {said}")
                said += line
            # It stops if nobody reads what it reports.
            threading.Thread(target=_drain, args=(server.stdout,), daemon=True).start()
            yield
        finally:
            server.kill()
            server.wait()

    def iperf3(
        self, server: str, *options: str, seconds: float = 3, port: int = 5201
    ) -> IperfResult:
        """Run iperf3 inside against a server; ``--reverse`` turns the direction."""
        arguments = ["--client", server, "--port", str(port), "--time", f"{seconds:g}", "--json"]
        command = fetch(GUEST_PROGRAMS).command("iperf3", *arguments, *options)
        try:
            return IperfResult.parse(self.run(command, seconds + COMMAND_TIMEOUT_S))
        except subprocess.CalledProcessError as error:
            if "{" not in error.stdout:
                raise
            return IperfResult.parse(error.stdout)  # raises with iperf3's own reason

    def _index(self, interface: str) -> int:
        return self.call(self._index_inside, interface)

    def _index_inside(self, interface: str) -> int:
        found: Sequence[int] = self._ip.link_lookup(ifname=interface)
        if not found:
            raise OSError(errno.ENODEV, "no such interface in the namespace", interface)
        return found[0]

    def _call_ip(self, what: str, /, *args: str, **options: Any) -> None:
        self.call(getattr(self._ip, what), *args, **options)


def _unshare() -> str:
    """Move the calling thread, alone, into a new namespace; return the namespace's path."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        why = os.strerror(ctypes.get_errno())
        raise Missing("network namespace", why, "run as root, or with CAP_SYS_ADMIN")
    return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"


def _drain(stream: Any) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed under us: the server has ended
        while stream.read(4096):
            pass
