"""The VMM's side of the protocol, to drive any vhost face over a real socket.

with Vmm.connect(path, pump=loop.dispatch) as vmm:
vmm.negotiate()
vmm.share_memory()
queue = vmm.start_queue(0)
...                        # a driver fills the ring at queue.desc_gpa, queue.avail_gpa
vmm.kick(0)
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Self, TypeVar

import attrs
from vnic.hookspecs import QueueAddresses
from vnic.memory import Memory

from vnic_vhost_user.messages import (
    F_PROTOCOL_FEATURES,
    NO_FEATURES,
    NO_FLAGS,
    Header,
    HeaderFlags,
    ProtocolFeatures,
    Request,
    request_name,
)
from vnic_vhost_user.payloads import (
    U64,
    Empty,
    MemoryRegion,
    MemoryTable,
    Payload,
    SingleRegion,
    VringAddress,
    VringDescriptor,
    VringState,
)

T = TypeVar("T")

GPA: Final = 0x4000_0000
"""Where guest memory begins, guest-physical."""

USER: Final = 0x7F12_0000_0000
"""Where a VMM would have it: far from the guest's addresses, so that mixing them up shows."""

PUMPS_MAX: Final = 100
"""How often the server's loop gets a turn before a reply counts as missing."""


class DisconnectedError(ConnectionError):
    """The server has closed the connection."""


@attrs.define
class Queue:
    """A queue as the VMM has it.  The descriptors are the VMM's ends."""

    index: int
    addresses: QueueAddresses
    kick_fd: int
    call_fd: int
    err_fd: int

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)


class Vmm:
    """A VMM with one block of guest memory, which does what it is told, right or wrong.

    ``pump`` gives the server a turn where it lives in this thread (``loop.dispatch``); without it
    reads wait for a server elsewhere, for at most ``timeout_s``.
    """

    def __init__(
        self,
        sock: socket.socket,
        pump: Callable[[], object] | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> None:
        self.socket = sock
        self.pump = pump
        self.protocol_features = NO_FEATURES
        self.queues: dict[int, Queue] = {}
        self.memory = Memory()
        """As the guest sees it; what the server maps is the same."""
        self.memory_fd = -1
        self._next_gpa = GPA
        sock.settimeout(0.0 if pump else timeout_s)

    @classmethod
    def connect(
        cls,
        path: str | os.PathLike[str],
        pump: Callable[[], object] | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> Self:
        """Connect to a server that listens."""
        vmm = cls(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), pump, timeout_s=timeout_s)
        try:
            vmm._patiently(lambda: vmm.socket.connect(os.fspath(path)))
        except OSError:
            vmm.close()
            raise
        return vmm

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect, without a word, as a VMM that dies.  Twice is allowed."""
        self.socket.close()
        for queue in self.queues.values():
            queue.close()
        self.queues.clear()
        if self.memory_fd >= 0:
            self.memory.clear()
            os.close(self.memory_fd)
            self.memory_fd = -1

    # ---- messages --------------------------------------------------------------------------------

    def send(
        self,
        request: int,
        payload: Payload | bytes = b"",
        fds: Sequence[int] = (),
        flags: HeaderFlags = NO_FLAGS,
    ) -> None:
        """Send one message, whatever it is.  The descriptors stay the caller's."""
        content = payload if isinstance(payload, bytes) else payload.encode()
        header = Header(request=request, flags=flags, size=len(content))
        self.send_bytes(header.encode() + content, fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes; the descriptors go with the first of them."""
        try:
            sent = socket.send_fds(self.socket, [data], fds) if fds else self.socket.send(data)
            assert sent == len(data), "the socket's buffer is full"
        except (BrokenPipeError, ConnectionResetError) as error:
            raise DisconnectedError("the server has closed the connection") from error

    def receive(self) -> tuple[Header, bytes]:
        """Return the next message from the server.

        Raises: DisconnectedError, TimeoutError.
        """
        header = Header.decode(self._read(Header.LAYOUT.size))
        return header, self._read(header.size)

    def ask(self, request: int, payload: Payload | bytes = b"") -> bytes:
        """Send a request that has a reply; return the reply's payload."""
        self.send(request, payload)
        header, content = self.receive()
        assert header.request == request, f"{request_name(header.request)} answers"
        assert header.flags == HeaderFlags.REPLY
        return content

    def ask_u64(self, request: int) -> int:
        """Send a request without payload whose reply is a number."""
        return U64.decode(self.ask(request)).value

    def tell(self, request: int, payload: Payload | bytes = b"", fds: Sequence[int] = ()) -> int:
        """Send a request and wait until it was carried out; 0 means that it was.

        Where REPLY_ACK isn't negotiated, it is followed by one that has a reply, as QEMU does.
        """
        acked = ProtocolFeatures.REPLY_ACK in self.protocol_features
        self.send(request, payload, fds, HeaderFlags.NEED_REPLY if acked else NO_FLAGS)
        if not acked:
            self.ask(Request.GET_FEATURES)
            return 0
        header, content = self.receive()
        assert header.request == request, f"{request_name(header.request)} answers"
        return U64.decode(content).value

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            receive = partial(self.socket.recv, n - len(data))
            try:
                piece = self._patiently(receive)
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise DisconnectedError("the server has closed the connection")
            data += piece
        return data

    def _patiently(self, call: Callable[[], T]) -> T:
        """Give the server turns until the call doesn't have to wait for it."""
        for _ in range(PUMPS_MAX):
            try:
                return call()
            except BlockingIOError:
                assert self.pump is not None
                self.pump()
        raise TimeoutError("the server does not answer")

    def is_refused(self) -> bool:
        """Whether the server closes the connection now, and says nothing more."""
        try:
            self._read(1)
        except DisconnectedError:
            return True
        except TimeoutError:
            return False
        raise AssertionError("the server answers")

    # ---- the usual steps -------------------------------------------------------------------------

    def negotiate(
        self, features: int | None = None, protocol: ProtocolFeatures | None = None
    ) -> int:
        """Take all that is offered, or what of it is given; return the virtio features."""
        offered = self.ask_u64(Request.GET_FEATURES)
        if offered & F_PROTOCOL_FEATURES:
            mine = ProtocolFeatures(self.ask_u64(Request.GET_PROTOCOL_FEATURES))
            self.protocol_features = mine if protocol is None else mine & protocol
            self.send(Request.SET_PROTOCOL_FEATURES, U64(self.protocol_features))
        self.send(Request.SET_OWNER, Empty())
        chosen = offered if features is None else features | offered & F_PROTOCOL_FEATURES
        self.tell(Request.SET_FEATURES, U64(chosen))
        return chosen & ~F_PROTOCOL_FEATURES

    def share_memory(self, size: int = 64 << 20, *, sealed: bool = True) -> MemoryRegion:
        """Make guest memory of a memfd and share it.  Sealed: nobody can cut it short."""
        if self.memory_fd < 0:
            self.memory_fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.memory_fd, size)
            if sealed:
                fcntl.fcntl(self.memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            self.memory.add(GPA, size, fd=self.memory_fd)
        region = MemoryRegion(guest_addr=GPA, size=size, user_addr=USER)
        if ProtocolFeatures.CONFIGURE_MEM_SLOTS in self.protocol_features:
            self.tell(Request.ADD_MEM_REG, SingleRegion(region=region), [self.memory_fd])
        else:
            self.tell(Request.SET_MEM_TABLE, MemoryTable(regions=(region,)), [self.memory_fd])
        return region

    def alloc(self, n: int, align: int = 16) -> int:
        """Return the gpa of ``n`` bytes that nobody uses, zero until written."""
        gpa = -(-self._next_gpa // align) * align
        self.memory.view(gpa, n)  # or it raises: they don't fit any more
        self._next_gpa = gpa + n
        return gpa

    def start_queue(
        self,
        index: int,
        size: int = 256,
        *,
        base: int = 0,
        addresses: QueueAddresses | None = None,
        enable: bool = True,
    ) -> Queue:
        """Set a queue up and start it, in the order that QEMU uses.

        Without ``addresses`` it gets guest memory of its own.
        """
        if addresses is None:
            addresses = QueueAddresses(
                size=size,
                desc_gpa=self.alloc(16 * size),
                avail_gpa=self.alloc(6 + 2 * size),
                used_gpa=self.alloc(6 + 8 * size),
                base=base,
            )
        if index in self.queues:
            self.queues.pop(index).close()
        fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3)]
        queue = self.queues[index] = Queue(index, addresses, *fds)
        if enable and self.protocol_features:
            self.tell(Request.SET_VRING_ENABLE, VringState(index=index, num=1))
        self.send(Request.SET_VRING_NUM, VringState(index=index, num=addresses.size))
        self.send(Request.SET_VRING_BASE, VringState(index=index, num=addresses.base))
        self.send(Request.SET_VRING_ADDR, ring_address(index, addresses))
        self.send_fd(Request.SET_VRING_ERR, index, queue.err_fd)
        self.send_fd(Request.SET_VRING_KICK, index, queue.kick_fd)
        self.send_fd(Request.SET_VRING_CALL, index, queue.call_fd)
        return queue

    def send_fd(self, request: int, index: int, fd: int | None) -> None:
        """Send a kick, call or error descriptor, or that there is none."""
        fds = () if fd is None else (fd,)
        self.tell(request, VringDescriptor(index=index, nofd=fd is None), fds)

    def stop_queue(self, index: int) -> int:
        """Stop a queue; return the avail index where it may go on."""
        reply = self.ask(Request.GET_VRING_BASE, VringState(index=index))
        return VringState.decode(reply).num

    def kick(self, index: int) -> None:
        """Tell that there are buffers."""
        os.eventfd_write(self.queues[index].kick_fd, 1)

    def interrupts(self, index: int) -> int:
        """Return how many interrupts came since the last time."""
        return _taken(self.queues[index].call_fd)

    def errors(self, index: int) -> int:
        """Return how often the device was said to be broken since the last time."""
        return _taken(self.queues[index].err_fd)


def ring_address(index: int, addresses: QueueAddresses) -> VringAddress:
    """Return a queue's addresses as the VMM tells them: in its own."""
    return VringAddress(
        index=index,
        desc_user_addr=addresses.desc_gpa - GPA + USER,
        used_user_addr=addresses.used_gpa - GPA + USER,
        avail_user_addr=addresses.avail_gpa - GPA + USER,
    )


def _taken(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
