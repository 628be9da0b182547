"""The VMM's side of the protocol, to drive any vhost face over a real socket.

with Vmm.connect(path, pump=loop.dispatch) as vmm:
vmm.negotiate()
vmm.share_memory()
queue = vmm.start_queue(0)
...                        # a driver fills the ring at queue.desc_gpa, queue.avail_gpa
vmm.kick(0)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

import attrs
from vnic.hookspecs import QueueAddresses
from vnic.testing.vmm import GPA, SocketVmm, signals

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

USER: Final = 0x7F12_0000_0000
"""Where a VMM would have it: far from the guest's addresses, so that mixing them up shows."""


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


class Vmm(SocketVmm):
    """A VMM that speaks vhost-user, right or wrong; `SocketVmm` says what ``pump`` is."""

    def __init__(
        self,
        sock: socket.socket,
        pump: Callable[[], object] | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> None:
        super().__init__(sock, pump, timeout_s=timeout_s)
        self.protocol_features = NO_FEATURES
        self.queues: dict[int, Queue] = {}

    def close(self) -> None:
        """Disconnect, without a word, as a VMM that dies.  Twice is allowed."""
        super().close()
        for queue in self.queues.values():
            queue.close()
        self.queues.clear()

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

    def receive(self) -> tuple[Header, bytes]:
        """Return the next message from the server.

        Raises: DisconnectedError, TimeoutError.
        """
        header = Header.decode(self.receive_bytes(Header.LAYOUT.size))
        return header, self.receive_bytes(header.size)

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
        """Make guest memory, once, and share it.  Sealed: nobody can cut it short."""
        self.make_memory(size, sealed=sealed)
        region = MemoryRegion(guest_addr=GPA, size=size, user_addr=USER)
        if ProtocolFeatures.CONFIGURE_MEM_SLOTS in self.protocol_features:
            self.tell(Request.ADD_MEM_REG, SingleRegion(region=region), [self.memory_fd])
        else:
            self.tell(Request.SET_MEM_TABLE, MemoryTable(regions=(region,)), [self.memory_fd])
        return region

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
        return signals(self.queues[index].call_fd)

    def errors(self, index: int) -> int:
        """Return how often the device was said to be broken since the last time."""
        return signals(self.queues[index].err_fd)


def ring_address(index: int, addresses: QueueAddresses) -> VringAddress:
    """Return a queue's addresses as the VMM tells them: in its own."""
    return VringAddress(
        index=index,
        desc_user_addr=addresses.desc_gpa - GPA + USER,
        used_user_addr=addresses.used_gpa - GPA + USER,
        avail_user_addr=addresses.avail_gpa - GPA + USER,
    )
