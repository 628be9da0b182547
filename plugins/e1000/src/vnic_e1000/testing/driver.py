"""A guest's e1000 driver: reads the EEPROM, makes the rings, sends and receives, trusts nothing.

It is written from the manual.  What a real driver would shrug off (a checksum of the EEPROM that
is wrong, a frame without its end, an interrupt that doesn't come) is a DriverError here.

Spec: 8254x Family Software Developer's Manual, "General Initialization and Reset Operation".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from vnic.features import NONE, Features, coherent
from vnic.testing import DriverError, SoftwareHost

from vnic_e1000.testing.driver_kernel import RxQueue, TxQueue
from vnic_e1000.testing.offload import describe

if TYPE_CHECKING:
    from typing_extensions import Buffer
    from vnic.nic import Nic
    from vnic.pci import Function

CAPABLE: Final = (
    Features.CSUM
    | Features.GUEST_CSUM
    | Features.HOST_TSO4
    | Features.HOST_TSO6
    | Features.HOST_USO
)
"""What the NIC can do, in virtio's words: GUEST_CSUM is its word on received checksums."""

CTRL: Final = 0x0000
STATUS: Final = 0x0008
EERD: Final = 0x0014
MDIC: Final = 0x0020
ICR: Final = 0x00C0
ITR: Final = 0x00C4
IMS: Final = 0x00D0
IMC: Final = 0x00D8
RCTL: Final = 0x0100
TCTL: Final = 0x0400
RDBAL: Final = 0x2800
TDBAL: Final = 0x3800
RXCSUM: Final = 0x5000
MTA: Final = 0x5200
RAL: Final = 0x5400
_BAH: Final = 4
_LEN: Final = 8
_HEAD: Final = 0x10
RDT: Final = RDBAL + 0x18
TDT: Final = TDBAL + 0x18

_CTRL_RUN: Final = 1 << 0 | 1 << 6
_CTRL_RST: Final = 1 << 26
_CTRL_VME: Final = 1 << 30
_STATUS_LU: Final = 1 << 1
_RCTL_RUN: Final = 1 << 1 | 1 << 15
_RCTL_LPE: Final = 1 << 5
_RCTL_SECRC: Final = 1 << 26
_RCTL_SIZES: Final = {
    256: 3 << 16,
    512: 2 << 16,
    1024: 1 << 16,
    2048: 0,
    4096: 3 << 16 | 1 << 25,
    8192: 2 << 16 | 1 << 25,
    16384: 1 << 16 | 1 << 25,
}
_TCTL_RUN: Final = 1 << 1 | 1 << 3
_EERD_START: Final = 1 << 0
_EERD_DONE: Final = 1 << 4
_CAUSES: Final = 0x1 | 0x4 | 0x10 | 0x40 | 0x80
"""TXDW, LSC, RXDMT0, RXO, RXT0."""

_ETH_OVERHEAD: Final = 18
_GSO_FRAME_LEN: Final = 65535 + _ETH_OVERHEAD
_COMMAND: Final = 0x07
"""I/O space, memory space, bus master."""


class Driver:
    """A `vnic.testing.Driver` for the e1000's PCI face."""

    def __init__(
        self,
        nic: Nic,
        host: SoftwareHost,
        *,
        features: Features = NONE,
        mtu: int = 1500,
        rx_size: int = 256,
        tx_size: int = 256,
        buffer_len: int = 2048,
        cut: int = 1 << 16,
        rctl: int = 0,
        vlans: bool = False,
        itr: int = 0,
        polling: bool = False,
    ) -> None:
        """Reset the device, look at what it says of itself, make the rings, start.

        ``cut`` is how many bytes of a frame go into one descriptor; ``rctl`` adds bits to RCTL;
        ``vlans`` sets CTRL.VME.

        Raises: DriverError, for a NIC without a PCI face, or one that is no e1000.
        """
        if nic.pci is None:
            raise DriverError(f"{nic.name}: has no PCI face for an e1000 driver")
        self.pci: Function = nic.pci
        self._host = host
        self._polling = polling
        self._listening = False
        self.features = coherent(features & CAPABLE)
        self.mtu = mtu
        self.interrupts = 0
        self.on_interrupt: Callable[[], None] | None = None
        self.causes = 0
        """All causes that ICR has shown."""
        self._stopped = False
        self._isr = self._handle  # one bound method, so that it is scheduled once
        host.on_interrupt = self._pin_rose
        self._identify()
        longest = mtu + _ETH_OVERHEAD
        if self.features & (Features.HOST_TSO4 | Features.HOST_TSO6 | Features.HOST_USO):
            longest = _GSO_FRAME_LEN
        n_slots = max(1, min(tx_size - 1, host.size // 4 // (longest + 64)))
        self.tx = TxQueue(host, tx_size, longest, n_slots, cut)
        self.rx = RxQueue(host, rx_size, buffer_len, bool(rctl & _RCTL_SECRC))
        self._start(rctl, vlans, itr, buffer_len)

    # ---- registers

    def read(self, offset: int) -> int:
        """Read a register."""
        return self.pci.read_bar(0, offset, 4)

    def write(self, offset: int, value: int) -> None:
        """Write a register."""
        self.pci.write_bar(0, offset, 4, value)

    def read_eeprom(self, address: int) -> int:
        """Read a word of the EEPROM.

        Raises: DriverError, when it takes for ever.
        """
        self.write(EERD, _EERD_START | address << 8)
        for _ in range(100):
            value = self.read(EERD)
            if value & _EERD_DONE:
                return value >> 16
        raise DriverError(f"EEPROM word {address:#x}: EERD.DONE never came")

    def read_phy(self, register: int) -> int:
        """Read a register of the PHY.

        Raises: DriverError.
        """
        self.write(MDIC, 1 << 27 | 1 << 21 | register << 16)
        value = self.read(MDIC)
        if not value & 1 << 28 or value & 1 << 30:
            raise DriverError(f"PHY register {register}: MDIC says {value:#x}")
        return value & 0xFFFF

    # ---- life

    def _identify(self) -> None:
        vendor, device = struct.unpack("<HH", self.pci.read_config(0, 4))
        if (vendor, device) not in ((0x8086, 0x100E), (0x8086, 0x100F)):
            raise DriverError(f"{vendor:04x}:{device:04x} is no e1000")
        self.pci.write_config(4, struct.pack("<H", _COMMAND))
        self.write(IMC, 0xFFFF_FFFF)
        self.write(CTRL, _CTRL_RST)
        words = [self.read_eeprom(i) for i in range(64)]
        if sum(words) & 0xFFFF != 0xBABA:
            raise DriverError(f"EEPROM: its words add up to {sum(words) & 0xFFFF:#x}, not 0xbaba")
        self.mac = struct.pack("<3H", *words[:3])
        if self.read_phy(2) != 0x0141:
            raise DriverError(f"PHY: {self.read_phy(2):#x} is not Marvell's")

    def _start(self, rctl: int, vlans: bool, itr: int, buffer_len: int) -> None:
        self.write(CTRL, _CTRL_RUN | (_CTRL_VME if vlans else 0))
        low, high = struct.unpack("<IH", self.mac)
        self.write(RAL, low)
        self.write(RAL + 4, 1 << 31 | high)
        for i in range(128):
            self.write(MTA + 4 * i, 0)
        if Features.GUEST_CSUM in self.features:
            self.write(RXCSUM, 0x300)
        for base, queue in ((RDBAL, self.rx), (TDBAL, self.tx)):
            self.write(base, queue.ring_gpa & 0xFFFF_FFFF)
            self.write(base + _BAH, queue.ring_gpa >> 32)
            self.write(base + _LEN, queue.size * 16)
            self.write(base + _HEAD, 0)
        self.write(TDT, 0)
        self.write(RDT, self.rx.tail)
        if self.mtu > 1500:
            rctl |= _RCTL_LPE
        self.write(TCTL, _TCTL_RUN)
        self.write(RCTL, rctl | _RCTL_RUN | _RCTL_SIZES[buffer_len])
        self.write(ITR, itr)
        self._listen()

    def stop(self) -> None:
        """Stop the device.  Twice is allowed."""
        if not self._stopped:
            self._stopped = True
            self.write(IMC, 0xFFFF_FFFF)
            self.write(RCTL, 0)
            self.write(TCTL, 0)
            self.write(CTRL, _CTRL_RST)

    @property
    def link_up(self) -> bool:
        """What the device says of its carrier."""
        return bool(self.read(STATUS) & _STATUS_LU)

    # ---- frames

    def send(self, frames: Sequence[Buffer], headers: Sequence[bytes | None] | None = None) -> int:
        """Put copies of the frames in the ring, move TDT; return how many fitted.

        When not all did, there will be an interrupt as soon as there is room.
        """
        self.tx.reclaim()
        sent = 0
        for i, frame in enumerate(frames):
            header = None if headers is None else headers[i]
            if not self.tx.post(*describe(frame, header)):
                break
            sent += 1
        if sent:
            self.write(TDT, self.tx.tail)
        if sent < len(frames):
            self._listen()
        return sent

    def recv(self, limit: int = 256) -> list[tuple[bytes, bytes]]:
        """Return (frame, header) of at most ``limit`` frames, oldest first.

        The header says DATA_VALID of a frame whose checksum the device has found right, and
        nothing else.  Fewer than ``limit``: the next one interrupts.
        """
        frames = self.rx.recv(limit)
        self._posted(len(frames), limit)
        return frames

    def prepare_bulk(
        self, frames: Sequence[Buffer], headers: Sequence[bytes | None] | None = None
    ) -> None:
        """Lay out what `send_bulk` sends: these frames, in turn.

        Raises: RuntimeError, while there are frames in the ring.
        """
        self.tx.reclaim()
        for slot in range(self.tx.slots_count):
            i = slot % len(frames)
            self.tx.lay(slot, *describe(frames[i], None if headers is None else headers[i]))

    def send_bulk(self, n: int) -> int:
        """Send the next ``n`` prepared frames from where they lie; return how many fitted."""
        sent = self.tx.post_bulk(n)
        if sent:
            self.pci.write_bar(0, TDT, 4, self.tx.tail)
        if sent < n:
            self._listen()
        return sent

    def recv_bulk(self, n: int) -> int:
        """Take up to ``n`` frames: look at each one's start, count it, post its buffers again."""
        received = self.rx.recv_bulk(n)
        self._posted(received, n)
        return received

    def _posted(self, n: int, limit: int) -> None:
        if n:
            self.pci.write_bar(0, RDT, 4, self.rx.tail)
        if n < limit:
            self._listen()

    @property
    def n_received(self) -> int:
        """How many frames `recv` and `recv_bulk` have taken."""
        return self.rx.n_frames

    @property
    def n_received_bytes(self) -> int:
        """And their bytes."""
        return self.rx.n_bytes

    @property
    def n_outstanding(self) -> int:
        """How many sent frames the device has not completed."""
        self.tx.reclaim()
        return self.tx.n_posted

    # ---- interrupts

    def check(self) -> None:
        """Raise, if something is there that an interrupt was asked for and none came.

        Only a device at rest can be judged: call it when the loop has nothing left to do.
        """
        if self._host.irq_level:
            raise DriverError("the pin is up, and nobody has been told for it")
        if self._listening and self.rx.pending:
            raise DriverError("a frame was received, an interrupt was asked for and didn't come")

    def _listen(self) -> None:
        """Ask for interrupts; causes that came since are told at once."""
        if not self._listening and not self._polling:
            self._listening = True
            self.write(IMS, _CAUSES)

    def _pin_rose(self, vector: int) -> None:
        # What an interrupt interrupts is a register access of ours, or the device's own work:
        # answer when that is over, as a processor would.
        self.interrupts += 1
        self._host.schedule(self._isr)
        if self.on_interrupt is not None:
            self.on_interrupt()

    def _handle(self) -> None:
        # As NAPI does: from the first interrupt on the rings are polled, until they're empty.
        self._listening = False
        self.write(IMC, _CAUSES)
        self.causes |= self.read(ICR)
