"""One VMM on one socket: carries out what its connection asks.

What a register write sets in motion is scheduled by the frontend and runs after the message.  The
same goes the other way: frames move only within a call that the loop makes, kernels and backends
keep no address beyond it, and messages are read between such calls.  So when DMA_UNMAP is carried
out nothing is in flight, and after its reply nothing can be: that is how it waits for what is in
flight.
"""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING, Any, Final

from vnic.errors import PeerError
from vnic.hookspecs import ResetKind
from vnic.session import SocketSession, close_all

from vnic_vfio_user import events
from vnic_vfio_user.connection import Connection
from vnic_vfio_user.device_payloads import Region
from vnic_vfio_user.interrupts import Interrupts

if TYPE_CHECKING:
    import socket

    from vnic.hookspecs import Host
    from vnic.nic import Nic
    from vnic.pci import Function

log: Final = logging.getLogger("vnic.vfio_user")

BACKINGS_MAX: Final = 8
"""Files of guest memory that are looked at to find out whether the VMM shares them."""

LOOKED_AT: Final = 32 << 20
"""Bytes of each.  Firmware and kernel are within them, and leave something in the first page; to
find nothing takes some ten milliseconds, once.
"""

PRIVATE: Final = (
    "the guest runs, and its memory is empty as the VMM passes it: the VMM has mapped it for "
    "itself, and no frame can be found or delivered; give the guest shared memory: "
    "-object memory-backend-memfd,...,share=on"
)

_ACCESS: Final = 8
"""Bytes of a BAR in one access, of a message that has more."""


class Session(SocketSession):
    """A VMM that is connected, and drives a PCI function.

    Of a device that its driver broke the VMM is not told: QEMU answers an error interrupt by
    stopping the whole guest.
    """

    def __init__(self, sock: socket.socket, nic: Nic, host: Host) -> None:
        assert nic.pci is not None
        self._function: Function = nic.pci
        super().__init__(sock, nic, host, Connection(self._function, nic.name))
        self._function.host_keeps_vectors = True
        self._irqs = Interrupts(self._function, self.loop)
        self._backings: dict[tuple[int, int], int] | None = {}
        """Files of guest memory by device and inode; None once they were looked at."""

    def let_go(self) -> None:
        """Close the interrupts, and the files of guest memory."""
        self._function.host_keeps_vectors = False
        self._irqs.close()
        self._forget_backings()

    def interrupt(self, vector: int) -> None:
        """Interrupt by message."""
        self._irqs.signal(vector)

    def set_irq(self, level: bool) -> None:
        """Interrupt by pin, when it goes up."""
        if level:
            self._irqs.raise_pin()

    # ---- what the connection asks ----------------------------------------------------------------

    def do(self, event: events.Event) -> Any:
        """Carry out an event of the connection."""
        match event:
            case events.ReadRegion(region, offset, count):
                return self._read(region, offset, count)
            case events.WriteRegion(region, offset, data):
                self._write(region, offset, data)
            case events.MaskPin(masked):
                self._function.mask_irq() if masked else self._function.unmask_irq()
            case events.MapMemory():
                return self._map(event)
            case events.UnmapMemory(address, size):
                self.memory.remove(address, size)
            case events.SetTriggers(index, start, fds):
                self._irqs.set_triggers(index, start, fds)
            case events.SetUnmask(fd):
                self._irqs.set_unmask(fd)
            case events.DisableIrqs(index):
                self._irqs.disable(index)
            case events.Trigger(index, vector):
                self._irqs.trigger(index, vector)
            case events.Reset():
                self.nic.reset(ResetKind.DEVICE)
                self._irqs.pending.clear()
            case events.Discard(fds):
                close_all(fds)
        return None

    def _read(self, region: int, offset: int, count: int) -> bytes:
        if region == Region.CONFIG:
            return self._function.read_config(offset, count)
        if count <= _ACCESS:
            return self._function.read_bar(region, offset, count).to_bytes(count, "little")
        stop = offset + count
        return b"".join(
            self._read(region, at, min(_ACCESS, stop - at)) for at in range(offset, stop, _ACCESS)
        )

    def _write(self, region: int, offset: int, data: bytes) -> None:
        if region == Region.CONFIG:
            self._function.write_config(offset, data)
            self._check_backings()
            return
        for at in range(0, len(data), _ACCESS):
            piece = data[at : at + _ACCESS]
            value = int.from_bytes(piece, "little")
            self._function.write_bar(region, offset + at, len(piece), value)

    # ---- memory ----------------------------------------------------------------------------------

    def _map(self, new: events.MapMemory) -> str | None:
        try:
            self.memory.add(
                new.address, new.size, fd=new.fd, offset=new.offset, writable=new.writable
            )
        except PeerError as error:
            os.close(new.fd)
            return str(error)
        self.served = True
        status = os.fstat(new.fd)
        key = status.st_dev, status.st_ino
        if (
            self._backings is not None
            and stat.S_ISREG(status.st_mode)
            and key not in self._backings
            and len(self._backings) < BACKINGS_MAX
        ):
            self._backings[key] = new.fd
        else:
            os.close(new.fd)
        return None

    def _check_backings(self) -> None:
        """Say if guest memory is the VMM's alone, as soon as the guest is sure to run.

        A VMM that maps its file privately passes the descriptor all the same: what the guest
        writes is then in the VMM's copies, and the file stays as it was made.  Whoever lets the
        device use memory has used some.
        """
        if self._backings and self._function.bus_master:
            if all(map(_is_empty, self._backings.values())):
                log.error("%s: %s", self.nic.name, PRIVATE)
            self._forget_backings()

    def _forget_backings(self) -> None:
        close_all((self._backings or {}).values())
        self._backings = None


def _is_empty(fd: int) -> bool:
    """Return whether there are only zeroes where a running guest has left something."""
    nothing = bytes(64 * 1024)
    for at in range(0, LOOKED_AT, len(nothing)):
        try:
            piece = os.pread(fd, len(nothing), at)
        except OSError:  # whatever it is, it isn't known to be empty
            return False
        if not piece:
            break
        if piece != nothing[: len(piece)]:
            return False
    return True
