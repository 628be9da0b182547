"""A VMM without a socket: what it says to vhost-user's connection, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
import pytest
from vnic.errors import PeerError
from vnic.features import Features
from vnic.hookspecs import QueueAddresses
from vnic.session import Steps
from vnic_vhost_user import events
from vnic_vhost_user.connection import OFFERED, Connection
from vnic_vhost_user.messages import (
    F_PROTOCOL_FEATURES,
    NO_FLAGS,
    Header,
    HeaderFlags,
    ProtocolFeatures,
    Request,
)
from vnic_vhost_user.payloads import (
    U64,
    MemoryRegion,
    MemoryTable,
    Payload,
    VringAddress,
    VringDescriptor,
    VringState,
)

USER: Final = 0x7F00_0000_0000
REGION: Final = MemoryRegion(guest_addr=0x10000, size=0x10000, user_addr=USER, mmap_offset=0x3000)
SECOND: Final = MemoryRegion(guest_addr=0x80000, size=0x10000, user_addr=USER + 0x40000)
ADDRESS: Final = VringAddress(
    index=0, desc_user_addr=USER, avail_user_addr=USER + 0x1000, used_user_addr=USER + 0x2000
)
FEATURES: Final = int(Features.VERSION_1 | Features.EVENT_IDX)


class Script:
    """Feeds a connection, answers its questions, and keeps what it asked for.

    Descriptors are numbers that nobody opens: 100, 101, and so on up to ``next_fd``.
    """

    def __init__(self, offered: ProtocolFeatures = OFFERED, n_queues: int = 2) -> None:
        self.connection = Connection(n_queues, offered)
        self.bases = dict.fromkeys(range(n_queues), 0)
        """Where each queue stands when it is stopped."""
        self.next_fd = 100

    def bytes_(self, data: bytes, fds: tuple[int, ...] = ()) -> list[events.Event]:
        """Say something in the pieces that the connection wants; return its events."""
        seen: list[events.Event] = []
        while data:
            wants = self.connection.wants
            seen += self.run(self.connection.receive(data[:wants], fds))
            data, fds = data[wants:], ()
        return seen

    def run(self, steps: Steps) -> list[events.Event]:
        """Carry out what the connection asks."""
        seen: list[events.Event] = []
        answer: object = None
        while True:
            try:
                event = steps.send(answer)
            except StopIteration:
                return seen
            seen.append(event)
            answer = None
            match event:
                case events.GetFeatures():
                    answer = FEATURES
                case events.StopQueue(index):
                    answer = self.bases[index]
                case events.ReadConfig(offset, n):
                    answer = bytes(range(offset, offset + n))

    def fds(self, n: int) -> tuple[int, ...]:
        """Return so many descriptors that were not there before."""
        self.next_fd += n
        return tuple(range(self.next_fd - n, self.next_fd))

    def tell(
        self,
        request: int,
        payload: Payload | bytes = b"",
        n_fds: int = 0,
        flags: HeaderFlags = NO_FLAGS,
    ) -> list[events.Event]:
        """Send a message; return its events."""
        content = payload if isinstance(payload, bytes) else payload.encode()
        header = Header(request=request, flags=flags, size=len(content))
        return self.bytes_(header.encode() + content, self.fds(n_fds))

    def ask(self, request: int, payload: Payload | bytes = b"") -> bytes:
        """Send a message; return the payload of its reply."""
        self.tell(request, payload)
        return self.reply(request)

    def reply(self, request: int) -> bytes:
        """Return the payload of the one reply that is due."""
        ((data, _),) = self.connection.replies()
        header = Header.decode(data[:12])
        assert (header.request, header.flags) == (request, HeaderFlags.REPLY)
        assert header.size == len(data) - 12
        return data[12:]

    def negotiate(self, features: int = FEATURES | F_PROTOCOL_FEATURES) -> None:
        """Choose features, and share REGION."""
        self.tell(Request.SET_PROTOCOL_FEATURES, U64(OFFERED))
        self.tell(Request.SET_FEATURES, U64(features))
        self.tell(Request.SET_MEM_TABLE, MemoryTable(regions=(REGION,)), 1)

    def start(self, index: int = 0, base: int = 0) -> list[events.Event]:
        """Start a queue of 64 entries at ADDRESS; return the events of its kick's message."""
        self.tell(Request.SET_VRING_NUM, VringState(index=index, num=64))
        self.tell(Request.SET_VRING_BASE, VringState(index=index, num=base))
        self.tell(Request.SET_VRING_ADDR, address(index))
        return self.tell(Request.SET_VRING_KICK, VringDescriptor(index=index), 1)


def address(index: int, **changes: int) -> VringAddress:
    """Return ADDRESS for a queue."""
    return attrs.evolve(ADDRESS, index=index, **changes)


def queue(base: int = 0) -> QueueAddresses:
    """Return where a queue at ADDRESS lies for the device."""
    return QueueAddresses(size=64, desc_gpa=0x10000, avail_gpa=0x11000, used_gpa=0x12000, base=base)


def refused(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Return what the peer is blamed for."""
    with pytest.raises(PeerError) as caught:
        call(*args, **kwargs)
    return str(caught.value)
