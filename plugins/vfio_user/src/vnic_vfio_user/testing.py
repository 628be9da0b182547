"""The VMM's side of the protocol, to drive any PCI function over a real socket.

with Vmm.connect(path, pump=loop.dispatch) as vmm:
vmm.start()                              # negotiates, shares memory, takes the pin
vmm.write(0, 0x3818, 4, tail)            # posted, as memory BARs are
value = vmm.read(0, 0x8, 4)
vmm.pin()                                # how often the pin rose since the last time
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Self, TypeVar

from vnic.memory import Memory
from vnic.pci import Command as PciCommand
from vnic.pci import MsiX

from vnic_vfio_user.device_payloads import (
    DeviceInfo,
    Irq,
    IrqInfo,
    IrqSet,
    IrqSetFlags,
    Region,
    RegionInfo,
)
from vnic_vfio_user.messages import (
    NO_FLAGS,
    Command,
    Header,
    HeaderFlags,
    command_name,
    encode_message,
)
from vnic_vfio_user.payloads import (
    DmaFlags,
    DmaMap,
    DmaUnmap,
    Empty,
    Payload,
    RegionAccess,
    RegionWrite,
    Version,
)

T = TypeVar("T")

GPA: Final = 0x4000_0000
"""Where guest memory begins."""

CAPABILITIES: Final = {
    "max_msg_fds": 8,
    "max_data_xfer_size": 1048576,
    "pgsizes": 4096,
    "max_dma_maps": 65535,
    "write_multiple": True,
}
"""What QEMU offers."""

FDS_MAX: Final = 8
"""Descriptors that QEMU sends with one message."""

PUMPS_MAX: Final = 100
"""How often the server's loop gets a turn before a reply counts as missing."""

EVENTFD: Final = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
DISABLE: Final = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER
UNMASK: Final = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_UNMASK
MASK: Final = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_MASK


class DisconnectedError(ConnectionError):
    """The server has closed the connection."""


class RefusedError(Exception):
    """The server has answered with an error."""

    def __init__(self, command: int, error: int) -> None:
        super().__init__(f"{command_name(command)}: {os.strerror(error)}")
        self.errno = error


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
        self.memory = Memory()
        """As the guest sees it; what the server maps is the same."""
        self.memory_fd = -1
        self.fds: list[int] = []
        """What came with the last message."""
        self._eventfds: dict[tuple[int, int], int] = {}
        self._next_gpa = GPA + 0x1000
        self._number = 0
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
        for fd in (*self._eventfds.values(), *self.fds):
            os.close(fd)
        self._eventfds.clear()
        self.fds.clear()
        if self.memory_fd >= 0:
            self.memory.clear()
            os.close(self.memory_fd)
            self.memory_fd = -1

    # ---- messages --------------------------------------------------------------------------------

    def send(
        self,
        command: int,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        flags: HeaderFlags = NO_FLAGS,
    ) -> int:
        """Send one message, whatever it is; return its number.  Descriptors stay the caller's."""
        self._number = (self._number + 1) & 0xFFFF
        self.send_bytes(encode_message(self._number, command, payload, flags), fds)
        return self._number

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes; the descriptors go with the first of them."""
        try:
            sent = socket.send_fds(self.socket, [data], fds) if fds else self.socket.send(data)
            assert sent == len(data), "the socket's buffer is full"
        except (BrokenPipeError, ConnectionResetError) as error:
            raise DisconnectedError("the server has closed the connection") from error

    def receive(self) -> tuple[Header, bytes]:
        """Return the next message from the server; its descriptors are in `fds`.

        Raises: DisconnectedError, TimeoutError.
        """
        while self.fds:
            os.close(self.fds.pop())
        header = Header.decode(self._read(Header.SIZE))
        return header, self._read(header.size - Header.SIZE)

    def ask(self, command: int, payload: Payload | None = None, fds: Sequence[int] = ()) -> bytes:
        """Send a command and return its reply's payload.

        Raises: RefusedError, DisconnectedError, TimeoutError.
        """
        number = self.send(command, payload, fds)
        header, content = self.receive()
        assert (header.id, header.command) == (number, command), "another message is answered"
        if header.flags == HeaderFlags.REPLY | HeaderFlags.ERROR:
            assert not content
            raise RefusedError(command, header.error)
        assert header.flags == HeaderFlags.REPLY
        return content

    def is_refused(self) -> bool:
        """Whether the server closes the connection now, and says nothing more."""
        try:
            self._read(1)
        except DisconnectedError:
            return True
        except TimeoutError:
            return False
        raise AssertionError("the server answers")

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            receive = partial(socket.recv_fds, self.socket, n - len(data), 8)
            try:
                piece, fds, _, _ = self._patiently(receive)
            except ConnectionResetError:
                piece, fds = b"", []
            self.fds += fds
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

    # ---- the usual steps -------------------------------------------------------------------------

    def start(self, size: int = 64 << 20) -> None:
        """Do what QEMU does until the guest boots, and then its firmware: the device may run."""
        self.negotiate()
        self.share_memory(size)
        self.ask(Command.DEVICE_GET_INFO, DeviceInfo())
        self.read_config(0, 64)
        if self.irq_count(Irq.INTX):
            self.take_irqs(Irq.INTX)
        self.ask(Command.DEVICE_RESET, Empty())
        self.enable()

    def negotiate(self, capabilities: dict[str, object] | None = None) -> Version:
        """Say what QEMU says, or something else; return the answer."""
        mine = CAPABILITIES if capabilities is None else capabilities
        return Version.decode(self.ask(Command.VERSION, Version(capabilities=mine)))

    def enable(self) -> None:
        """Let the function answer, and use memory: what a driver does first."""
        command = PciCommand.IO | PciCommand.MEMORY | PciCommand.BUS_MASTER
        self.write_config(4, command.to_bytes(2, "little"))

    def share_memory(self, size: int = 64 << 20, *, sealed: bool = True) -> None:
        """Make guest memory of a memfd and map it at `GPA`.  Sealed: nobody can cut it short."""
        self.memory_fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory_fd, size)
        if sealed:
            fcntl.fcntl(self.memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.memory.add(GPA, size, fd=self.memory_fd)
        self.memory.view(GPA, 1)[0] = 1  # a guest that runs has left something
        self.map(GPA, size, self.memory_fd)

    def map(
        self,
        address: int,
        size: int,
        fd: int | None,
        *,
        offset: int = 0,
        flags: int = DmaFlags.READ | DmaFlags.WRITE,
    ) -> None:
        """Announce a range of memory.

        Raises: RefusedError.
        """
        payload = DmaMap(flags=int(flags), offset=offset, address=address, size=size)
        self.ask(Command.DMA_MAP, payload, () if fd is None else (fd,))

    def unmap(self, address: int, size: int, flags: int = 0) -> None:
        """Take a range away.

        Raises: RefusedError.
        """
        payload = DmaUnmap(flags=flags, address=address, size=size)
        assert DmaUnmap.decode(self.ask(Command.DMA_UNMAP, payload)) == payload

    def alloc(self, n: int, align: int = 16) -> int:
        """Return the gpa of ``n`` bytes that nobody uses, zero until written."""
        gpa = -(-self._next_gpa // align) * align
        self.memory.view(gpa, n)  # or it raises: they don't fit any more
        self._next_gpa = gpa + n
        return gpa

    def region_info(self, index: int, argsz: int = 4096) -> RegionInfo:
        """Return what is said of a region."""
        payload = RegionInfo(index=index, argsz=argsz)
        return RegionInfo.decode(self.ask(Command.DEVICE_GET_REGION_INFO, payload))

    def irq_count(self, index: int) -> int:
        """Return how many interrupts of a kind there are."""
        payload = IrqInfo(index=index)
        return IrqInfo.decode(self.ask(Command.DEVICE_GET_IRQ_INFO, payload)).count

    # ---- accesses --------------------------------------------------------------------------------

    def read(self, region: int, offset: int, n: int) -> int:
        """Read ``n`` bytes of a region as a number."""
        return int.from_bytes(self.read_bytes(region, offset, n), "little")

    def write(self, region: int, offset: int, n: int, value: int, *, posted: bool = True) -> None:
        """Write ``n`` bytes; posted: nobody waits, as with memory BARs."""
        payload = RegionWrite(offset, region, n, value.to_bytes(n, "little"))
        if posted:
            self.send(Command.REGION_WRITE, payload, flags=HeaderFlags.NO_REPLY)
        else:
            self.ask(Command.REGION_WRITE, payload)

    def read_bytes(self, region: int, offset: int, n: int) -> bytes:
        """Read ``n`` bytes of a region."""
        reply = RegionAccess.decode(self.ask(Command.REGION_READ, RegionAccess(offset, region, n)))
        assert (reply.offset, reply.region, reply.count) == (offset, region, n)
        assert len(reply.data) == n
        return reply.data

    def read_config(self, offset: int, n: int) -> bytes:
        """Read configuration space."""
        return self.read_bytes(Region.CONFIG, offset, n)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to configuration space, and wait for the answer."""
        value = int.from_bytes(data, "little")
        self.write(Region.CONFIG, offset, len(data), value, posted=False)

    # ---- interrupts ------------------------------------------------------------------------------

    def take_irqs(self, index: int, start: int = 0, count: int = 1) -> None:
        """Give the server descriptors to interrupt through."""
        fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        for vector, fd in enumerate(fds, start):
            before = self._eventfds.pop((index, vector), None)
            if before is not None:
                os.close(before)
            self._eventfds[index, vector] = fd
        self.set_irqs(EVENTFD, index, start, count, fds)

    def set_irqs(
        self, flags: int, index: int, start: int = 0, count: int = 0, fds: Sequence[int] = ()
    ) -> None:
        """Say what is to happen with interrupts.

        Raises: RefusedError.
        """
        payload = IrqSet(flags=int(flags), index=index, start=start, count=count)
        self.ask(Command.DEVICE_SET_IRQS, payload, fds)

    def capability(self, number: int) -> int:
        """Return where in configuration space a capability lies.

        Raises: LookupError, if the function has none such.
        """
        config = self.read_config(0, 256)
        at = config[0x34]
        while at:
            if config[at] == number:
                return at
            at = config[at + 1]
        raise LookupError(f"no capability {number:#x}")

    def use_vectors(self, count: int) -> None:
        """Enable MSI-X as QEMU does it, when the guest's driver takes one vector after another."""
        self.write_config(
            self.capability(MsiX.ID) + MsiX.CONTROL, MsiX.ENABLE.to_bytes(2, "little")
        )
        if self.irq_count(Irq.INTX):
            self.set_irqs(DISABLE, Irq.INTX)
        self.set_irqs(EVENTFD, Irq.MSIX, 0, 1)
        for n in range(1, count + 1):
            self.set_irqs(DISABLE, Irq.MSIX)
            for start in range(0, n, FDS_MAX):
                self.take_irqs(Irq.MSIX, start, min(FDS_MAX, n - start))

    def interrupts(self, index: int, vector: int = 0) -> int:
        """Return how many interrupts came since the last time."""
        try:
            return os.eventfd_read(self._eventfds[index, vector])
        except BlockingIOError:
            return 0

    def pin(self) -> int:
        """Return how often the pin rose since the last time; it stays masked until `unmask`."""
        return self.interrupts(Irq.INTX)

    def unmask(self) -> None:
        """Let the pin rise again: what QEMU does when the guest has looked at the device."""
        self.set_irqs(UNMASK, Irq.INTX, 0, 1)
