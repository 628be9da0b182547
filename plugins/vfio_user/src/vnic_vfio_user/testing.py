"""The VMM's side of the protocol, to drive any PCI function over a real socket.

with Vmm.connect(path, pump=loop.dispatch) as vmm:
vmm.start()                              # negotiates, shares memory, takes the pin
vmm.write(0, 0x3818, 4, tail)            # posted, as memory BARs are
value = vmm.read(0, 0x8, 4)
vmm.pin()                                # how often the pin rose since the last time
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from vnic.pci import Command as PciCommand
from vnic.pci import MsiX
from vnic.testing.vmm import FDS_MAX, GPA, SocketVmm, signals

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

CAPABILITIES: Final = {
    "max_msg_fds": 8,
    "max_data_xfer_size": 1048576,
    "pgsizes": 4096,
    "max_dma_maps": 65535,
    "write_multiple": True,
}
"""What QEMU offers."""

EVENTFD: Final = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
DISABLE: Final = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER
UNMASK: Final = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_UNMASK
MASK: Final = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_MASK


class RefusedError(Exception):
    """The server has answered with an error."""

    def __init__(self, command: int, error: int) -> None:
        super().__init__(f"{command_name(command)}: {os.strerror(error)}")
        self.errno = error


class Vmm(SocketVmm):
    """A VMM that speaks vfio-user, right or wrong; `SocketVmm` says what ``pump`` is."""

    def __init__(
        self,
        sock: socket.socket,
        pump: Callable[[], object] | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> None:
        super().__init__(sock, pump, timeout_s=timeout_s)
        self._eventfds: dict[tuple[int, int], int] = {}
        self._number = 0

    def close(self) -> None:
        """Disconnect, without a word, as a VMM that dies.  Twice is allowed."""
        super().close()
        for fd in self._eventfds.values():
            os.close(fd)
        self._eventfds.clear()

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

    def receive(self) -> tuple[Header, bytes]:
        """Return the next message from the server; its descriptors are in `fds`.

        Raises: DisconnectedError, TimeoutError.
        """
        self.close_fds()
        header = Header.decode(self.receive_bytes(Header.SIZE))
        return header, self.receive_bytes(header.size - Header.SIZE)

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
        """Make guest memory and map it at `GPA`.  Sealed: nobody can cut it short."""
        self.make_memory(size, sealed=sealed)
        self.memory.view(self.alloc(4096), 1)[0] = 1  # a guest that runs has left something
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
        return signals(self._eventfds[index, vector])

    def pin(self) -> int:
        """Return how often the pin rose since the last time; it stays masked until `unmask`."""
        return self.interrupts(Irq.INTX)

    def unmask(self) -> None:
        """Let the pin rise again: what QEMU does when the guest has looked at the device."""
        self.set_irqs(UNMASK, Irq.INTX, 0, 1)
