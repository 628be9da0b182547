"""A VMM without a socket: what it says to vfio-user's connection, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final

from vnic.pci import Bar, Function, Identity, Msi, MsiX
from vnic_vfio_user import events
from vnic_vfio_user.connection import Connection
from vnic_vfio_user.device_payloads import IrqSet, IrqSetFlags
from vnic_vfio_user.messages import Command, Header, HeaderFlags, encode_message
from vnic_vfio_user.payloads import DmaFlags, DmaMap, DmaUnmap, Payload, Version

U32: Final = (1 << 32) - 1
U64: Final = (1 << 64) - 1
RW: Final = int(DmaFlags.READ | DmaFlags.WRITE)

TRIGGER: Final = IrqSetFlags.ACTION_TRIGGER
MASK: Final = IrqSetFlags.ACTION_MASK
UNMASK: Final = IrqSetFlags.ACTION_UNMASK
NONE: Final = IrqSetFlags.DATA_NONE
BOOL: Final = IrqSetFlags.DATA_BOOL
EVENTFD: Final = IrqSetFlags.DATA_EVENTFD

REGISTERS: Final[Any] = SimpleNamespace()
"""Of a BAR that nobody reads: the connection asks for an access, and carries out none."""


class Script:
    """Feeds a connection, and answers its events as a session does.

    ``description`` is the function's; it has a BAR of 128 KiB, four vectors of MSI and twenty of
    MSI-X unless it says otherwise.  With ``start`` the versions are exchanged already.
    """

    def __init__(self, *, start: bool = True, **description: Any) -> None:
        description.setdefault("bars", [Bar(index=0, size=0x20000, registers=REGISTERS)])
        description.setdefault(
            "capabilities",
            [Msi(vectors=4), MsiX(vectors=20, table_bar=0, pba_bar=0, pba_offset=1024)],
        )
        identity = Identity(vendor=1, device=2, class_code=0)
        host: Any = SimpleNamespace()
        self.connection = Connection(Function(host, identity, **description))
        self.answers: dict[type, Any] = {events.ReadRegion: lambda e: bytes(e.count)}
        """What an event is answered with, by its class; None otherwise."""
        self.events: list[Any] = []
        if start:
            self.ask(Command.VERSION, Version())
            self.events.clear()

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes, and descriptors with them."""
        steps, answer = self.connection.receive(data, fds), None
        while True:
            try:
                event = steps.send(answer)
            except StopIteration:
                return
            self.events.append(event)
            answer = self.answers.get(type(event), lambda event: None)(event)

    def ask(
        self,
        command: int,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        flags: int = 0,
    ) -> Any:
        """Return (error, payload of the reply); None without a reply."""
        self.feed(encode_message(5, command, payload, HeaderFlags(flags)), fds)
        replies = self.connection.replies()
        if not replies:
            return None
        ((data, _),) = replies
        header = Header.decode(data[:16])
        assert (header.id, header.command, header.size) == (5, command, len(data))
        assert header.flags in (HeaderFlags.REPLY, HeaderFlags.REPLY | HeaderFlags.ERROR)
        assert header.error < 4096, "an errno is positive and small"
        return header.error, data[16:]

    def map(self, address: int, size: int, flags: int = RW, fds: Sequence[int] = (9,)) -> int:
        """Share a range; return the error, 0 for none."""
        payload = DmaMap(flags=flags, address=address, size=size)
        error, content = self.ask(Command.DMA_MAP, payload, fds)
        assert content == b""
        return int(error)

    def unmap(self, address: int, size: int, flags: int = 0) -> int:
        """Take a range away; return the error, 0 for none."""
        payload = DmaUnmap(flags=flags, address=address, size=size)
        error, content = self.ask(Command.DMA_UNMAP, payload)
        assert error or content == payload.encode()
        return int(error)

    def irqs(
        self,
        flags: int,
        index: int,
        start: int,
        count: int,
        fds: Sequence[int] = (),
        data: bytes = b"",
    ) -> int:
        """Change interrupts; return the error, 0 for none."""
        payload = IrqSet(flags=int(flags), index=index, start=start, count=count, data=data)
        return int(self.ask(Command.DEVICE_SET_IRQS, payload, fds)[0])

    def taken(self) -> list[Any]:
        """Return what was asked of the session since the last time."""
        happened, self.events = self.events, []
        return happened
