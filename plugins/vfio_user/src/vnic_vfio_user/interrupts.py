"""The descriptors that interrupt the guest, and those that it answers with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vnic.notifiers import Call, Kick

from vnic_vfio_user.device_payloads import Irq

if TYPE_CHECKING:
    from vnic.loop import Loop
    from vnic.pci import Function


class Interrupts:
    """The descriptors that interrupt the guest."""

    def __init__(self, function: Function, loop: Loop) -> None:
        self.pending: set[int] = set()
        """Vectors that were signalled while they had no descriptor: QEMU takes all of them away
        for a moment when the driver asks for one more."""
        self._function = function
        self._loop = loop
        self._calls: dict[tuple[int, int], Call] = {}
        self._unmask: Kick | None = None
        self._messages = Irq.MSIX

    def close(self) -> None:
        """Close all."""
        for call in self._calls.values():
            call.close()
        self._calls.clear()
        self.set_unmask(None)

    def raise_pin(self) -> None:
        """Interrupt, and keep the pin down until the VMM lets it go.

        The descriptor carries an edge; the VMM makes it a level, and unmasks when the guest has
        looked at the device.  If the function still asks then, there is another edge.
        """
        call = self._calls.get((Irq.INTX, 0))
        if call is not None:
            call.signal()
            self._function.mask_irq()

    def signal(self, vector: int) -> None:
        """Interrupt by message; remember it while the vector has no descriptor."""
        call = self._calls.get((self._messages, vector))
        if call is not None:
            call.signal()
        else:
            self.pending.add(vector)

    def trigger(self, index: int, vector: int) -> None:
        """Interrupt, whatever the device thinks."""
        call = self._calls.get((index, vector))
        if call is not None:
            call.signal()

    def set_triggers(self, index: int, start: int, fds: tuple[int | None, ...]) -> None:
        """Take the descriptors of interrupts from ``start`` on."""
        if index in (Irq.MSI, Irq.MSIX):
            self._messages = Irq(index)
        rest = list(fds)
        try:
            for vector, fd in enumerate(fds, start):
                del rest[0]
                self._set(index, vector, None if fd is None else Call(fd, "DEVICE_SET_IRQS"))
        finally:  # the rest of those that came with one that can't be used
            for fd in rest:
                if fd is not None:
                    os.close(fd)

    def _set(self, index: int, vector: int, call: Call | None) -> None:
        before = self._calls.pop((index, vector), None)
        if before is not None:
            before.close()
        if call is None:
            return
        self._calls[index, vector] = call
        if index == Irq.INTX:  # what was asked for before is not lost
            self._function.mask_irq()
            self._function.unmask_irq()
        elif index == self._messages and vector in self.pending:
            self.pending.discard(vector)
            call.signal()

    def set_unmask(self, fd: int | None) -> None:
        """Unmask the pin whenever this descriptor is written to.

        KVM does that when the guest has answered an interrupt.
        """
        kick = None
        if fd is not None:
            kick = Kick(self._loop, fd, self._function.unmask_irq, "DEVICE_SET_IRQS")
        if self._unmask is not None:
            self._unmask.close()
        self._unmask = kick

    def disable(self, index: int) -> None:
        """Interrupt no more, of this kind."""
        for key in [key for key in self._calls if key[0] == index]:
            self._calls.pop(key).close()
        if index == Irq.INTX:
            self.set_unmask(None)
            self._function.unmask_irq()
