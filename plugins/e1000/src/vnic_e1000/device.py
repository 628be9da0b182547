"""The device behind the memory BAR: what reads and writes of its registers do.

What a register is, `vnic_e1000.registers` says; what is more than that is a method here, named
after it.  Nothing here moves a frame: writes set things up, and tell the frontend.

Spec: 8254x Family Software Developer's Manual, "Register Descriptions".
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable
from typing import Final, Protocol

from vnic_e1000.eeprom import Eeprom
from vnic_e1000.interrupts import ITR_UNIT_S, Delay, Interrupts
from vnic_e1000.phy import ADDRESS as PHY_ADDRESS
from vnic_e1000.phy import Phy
from vnic_e1000.registers import (
    ALL,
    BAR_SIZE,
    OFFSETS,
    RAH_AS,
    RAH_AV,
    RDMTS_SHIFT,
    REGISTERS,
    Access,
    Cause,
    Ctrl,
    Eecd,
    Eerd,
    Mdic,
    Rctl,
    Rdtr,
    Register,
    Status,
    Tctl,
    without,
)
from vnic_e1000.ring_kernel import STATS, RxRing, TxRing

N_EXACT: Final = 16
_PACKET_BUFFER_KIB: Final = 64


class Owner(Protocol):
    """What the device tells its frontend.  All of it only schedules."""

    def tail_moved(self) -> None:
        """There may be frames to transmit."""

    def room_made(self) -> None:
        """There may be buffers to receive into."""

    def mode_changed(self) -> None:
        """Receiver, transmitter, loopback: any may be on or off now."""

    def device_reset(self) -> None:
        """The driver has reset the device, all of it is done but what is the frontend's."""


class Device:
    """The registers and what stands behind them; `read` and `write` are the BAR's."""

    def __init__(
        self,
        owner: Owner,
        eeprom: Eeprom,
        tx: TxRing,
        rx: RxRing,
        interrupts: Interrupts,
        rx_delay: Delay,
        tx_delay: Delay,
    ) -> None:
        self._owner = owner
        self._eeprom = eeprom
        self._tx = tx
        self._rx = rx
        self._interrupts = interrupts
        self._rx_delay = rx_delay
        self._tx_delay = tx_delay
        self.phy = Phy()
        self._link_up = False
        self._values = array("I", bytes(BAR_SIZE))
        self._masks = array("I", bytes(BAR_SIZE))
        self._read: dict[int, Callable[[], int]] = {}
        self._write: dict[int, Callable[[int], None]] = {}
        self._held: dict[str, int] = {}
        for register in REGISTERS:
            self._lay_out(register)
        self.reset()

    def _lay_out(self, register: Register) -> None:
        own_read = getattr(self, f"read_{register.name}", None)
        own_write = getattr(self, f"write_{register.name}", None)
        for i in range(register.n):
            offset = register.offset + i * register.stride
            if register.access is Access.RW:
                self._masks[offset >> 2] = register.mask
            if own_read is not None:
                self._read[offset] = own_read
            elif (read := self._reader(register)) is not None:
                self._read[offset] = read
            if own_write is not None:
                one = register.n == 1
                self._write[offset] = own_write if one else functools.partial(own_write, i)

    def _reader(self, register: Register) -> Callable[[], int] | None:
        """What a register's access kind does besides reading; None: nothing."""
        name, access = register.name, register.access
        if access is Access.RC:
            return functools.partial(self._take_count, name)
        if access is Access.RC_LOW:
            return functools.partial(self._read_low, name[:-1])
        if access is Access.RC_HIGH:
            return functools.partial(self._take_high, name[:-1])
        if access is Access.WO:
            return _zero
        return None

    def reset(self) -> None:
        """Return all registers to their value at reset; the rings, and the pin, likewise."""
        for register in REGISTERS:
            if register.name == "PBM":
                continue  # memory, which keeps what it holds
            for i in range(register.n):
                self._values[register.offset + i * register.stride >> 2] = register.reset
        self._held.clear()
        self._link_up = False
        self._rx_delay.cancel()
        self._tx_delay.cancel()
        for delay in (self._rx_delay, self._tx_delay):
            delay.packet = delay.absolute = 0
        self._interrupts.reset()
        self._reset_rings()
        mac = self._eeprom.mac
        self["RAL"] = int.from_bytes(mac[:4], "little")
        self["RAH"] = int.from_bytes(mac[4:], "little") | RAH_AV
        self._update_addresses()
        self.update_link()

    def _reset_rings(self) -> None:
        for ring in (self._tx, self._rx):
            ring.place(0, 0)
            ring.head = ring.tail = 0
        self._tx.reset()
        self._rx.stats.clear()
        self._configure()
        for i in range(128):
            self._rx.set_multicast(i, 0)
            self._rx.set_vlans(i, 0)

    # ---- access

    def __getitem__(self, name: str) -> int:
        """Return a register's value, without what reading it does; of several, the first's."""
        return self._values[OFFSETS[name] >> 2]

    def __setitem__(self, name: str, value: int) -> None:
        self._values[OFFSETS[name] >> 2] = value

    def read(self, offset: int, n: int) -> int:
        """Read a register; of parts of one, only the first byte's read does what reading does."""
        if n == 4:
            read = self._read.get(offset)
            return self._values[offset >> 2] if read is None else read()
        at = offset & ~3
        value = self._values[at >> 2] if offset & 3 else self.read(at, 4)
        return value >> 8 * (offset & 3) & (1 << 8 * n) - 1

    def write(self, offset: int, n: int, value: int) -> None:
        """Write a register, whole: the manual leaves open what parts of one would do."""
        if n != 4:
            return
        i = offset >> 2
        mask = self._masks[i]
        if mask:
            value = self._values[i] = self._values[i] & ~mask & ALL | value & mask
        write = self._write.get(offset)
        if write is not None:
            write(value)

    # ---- state that the frontend asks for

    @property
    def receiving(self) -> bool:
        """Whether the receiver is on."""
        return bool(self["RCTL"] & Rctl.EN)

    @property
    def transmitting(self) -> bool:
        """Whether the transmitter is on."""
        return bool(self["TCTL"] & Tctl.EN)

    @property
    def loopback(self) -> bool:
        """Whether what is sent comes back, by the MAC or the PHY."""
        return bool(self["RCTL"] & (Rctl.LBM_MAC | Rctl.LBM_PHY)) or self.phy.loopback

    @property
    def rx_threshold(self) -> int:
        """How few free descriptors are few.  Spec: "Receive Control Register", RDMTS."""
        return self["RDLEN"] // 16 >> 1 + (self["RCTL"] >> RDMTS_SHIFT & 3)

    def count(self, name: str, n: int = 1) -> None:
        """Raise a statistics register that the kernels don't keep."""
        self[name] = min(self[name] + n, ALL)

    # ---- link

    def set_carrier(self, carrier: bool) -> None:
        """The host network came or went."""
        self.phy.set_carrier(carrier)
        self.update_link()

    def update_link(self, renegotiated: bool = False) -> None:
        """Show what the link is now; a change interrupts."""
        up = self.phy.link and bool(self["CTRL"] & Ctrl.SLU)
        changed, self._link_up = up != self._link_up, up
        if up:
            self["STATUS"] |= Status.LU
        else:
            self["STATUS"] = without(self["STATUS"], Status.LU)
        if changed or (renegotiated and up):
            self._interrupts.raise_cause(Cause.LSC)

    # ---- general registers

    def write_CTRL(self, value: int) -> None:
        """Reset, or take up the link and VLAN mode."""
        if value & Ctrl.RST:
            self.reset()
            self._owner.device_reset()
            return
        if value & Ctrl.PHY_RST:
            self.phy.reset()
        self["CTRL"] = without(value, Ctrl.PHY_RST)
        self._configure()
        self.update_link(renegotiated=bool(value & Ctrl.PHY_RST))

    def write_VET(self, value: int) -> None:
        """Take the type of VLAN tags."""
        self._configure()

    def write_PBA(self, value: int) -> None:
        """The transmitter has what the receiver leaves."""
        rx = min(value & 0x7F, _PACKET_BUFFER_KIB)
        self["PBA"] = (_PACKET_BUFFER_KIB - rx) << 16 | rx

    def read_EECD(self) -> int:
        """Show what the driver drives, and what the EEPROM does."""
        value = self["EECD"] | Eecd.PRES
        if value & Eecd.REQ:
            value |= Eecd.GNT
        if self._eeprom.data_out:
            value |= Eecd.DO
        return value

    def write_EECD(self, value: int) -> None:
        """Drive the EEPROM's pins, if the driver was granted it."""
        if value & Eecd.REQ:
            self._eeprom.clock(value & (Eecd.SK | Eecd.CS | Eecd.DI))

    def write_EERD(self, value: int) -> None:
        """Read a word of the EEPROM, at once."""
        if value & Eerd.START:
            address = value >> 8 & 0xFF
            words = self._eeprom.words
            word = words[address] if address < len(words) else 0xFFFF
            self["EERD"] = word << 16 | address << 8 | Eerd.DONE

    def write_MDIC(self, value: int) -> None:
        """Read or write a register of the PHY, at once; no other is on the bus."""
        register, address = value >> 16 & 0x1F, value >> 21 & 0x1F
        value = without(value, Mdic.READY | Mdic.ERROR)
        renegotiated = False
        if address != PHY_ADDRESS:
            value |= Mdic.ERROR
        elif value & Mdic.OP_READ:
            value = value & ~0xFFFF | self.phy.read(register)
        elif value & Mdic.OP_WRITE:
            renegotiated = self.phy.write(register, value & 0xFFFF)
        self["MDIC"] = value | Mdic.READY
        if value & Mdic.INTERRUPT:
            self._interrupts.raise_cause(Cause.MDAC)
        if value & Mdic.OP_WRITE:
            self.update_link(renegotiated)
            self._owner.mode_changed()

    # ---- interrupts

    def read_ICR(self) -> int:
        """Return the causes, and clear them."""
        return self._interrupts.take_cause()

    def write_ICR(self, value: int) -> None:
        """Clear the causes whose bits are set."""
        self._interrupts.clear_cause(value)

    def read_ICS(self) -> int:
        """Return the causes: the manual knows no read, the silicon does, and VxWorks wants it."""
        return self._interrupts.cause

    def write_ICS(self, value: int) -> None:
        """Raise causes."""
        self._interrupts.raise_cause(value)

    def read_IMS(self) -> int:
        """Return which causes are enabled."""
        return self._interrupts.mask

    def write_IMS(self, value: int) -> None:
        """Enable causes."""
        self._interrupts.enable(value)

    def write_IMC(self, value: int) -> None:
        """Disable causes."""
        self._interrupts.disable(value)

    def write_ITR(self, value: int) -> None:
        """Take the least interval between interrupts."""
        self._interrupts.interval_s = value * ITR_UNIT_S

    # ---- receive

    def write_RCTL(self, value: int) -> None:
        """Turn the receiver on or off, and take its filters."""
        self._configure()
        self._owner.mode_changed()

    def write_RDBAL(self, value: int) -> None:
        """Take where the receive ring is."""
        self._place(self._rx, "RD")

    write_RDBAH = write_RDLEN = write_RDBAL  # noqa: N815

    def read_RDH(self) -> int:
        """Return the receive head."""
        return self._rx.head

    def write_RDH(self, value: int) -> None:
        """Take it; meant for a receiver that is off."""
        self._rx.head = value
        self._owner.room_made()

    def read_RDT(self) -> int:
        """Return the receive tail."""
        return self._rx.tail

    def write_RDT(self, value: int) -> None:
        """The driver has posted buffers."""
        self._rx.tail = value
        self._owner.room_made()

    def write_RDTR(self, value: int) -> None:
        """Take the receive delay; FPD, which doesn't stay, ends one that runs."""
        self["RDTR"] = self._rx_delay.packet = without(value, Rdtr.FPD)
        if value & Rdtr.FPD:
            self._rx_delay.flush()

    def write_RADV(self, value: int) -> None:
        """Take the receive delay's upper limit."""
        self._rx_delay.absolute = value

    def write_RXCSUM(self, value: int) -> None:
        """Take which checksums are of interest."""
        self._configure()

    def write_MTA(self, i: int, value: int) -> None:
        """Take a word of the multicast table."""
        self._rx.set_multicast(i, value)

    def write_VFTA(self, i: int, value: int) -> None:
        """Take a word of the VLAN filter table."""
        self._rx.set_vlans(i, value)

    def write_RAL(self, i: int, value: int) -> None:
        """Take an address, or a half of one."""
        self._update_addresses()

    write_RAH = write_RAL  # noqa: N815

    # ---- transmit

    def write_TCTL(self, value: int) -> None:
        """Turn the transmitter on or off."""
        self._configure()
        self._owner.mode_changed()

    def write_TDBAL(self, value: int) -> None:
        """Take where the transmit ring is."""
        self._place(self._tx, "TD")

    write_TDBAH = write_TDLEN = write_TDBAL  # noqa: N815

    def read_TDH(self) -> int:
        """Return the transmit head."""
        return self._tx.head

    def write_TDH(self, value: int) -> None:
        """Take it; meant for a transmitter that is off."""
        self._tx.head = value

    def read_TDT(self) -> int:
        """Return the transmit tail."""
        return self._tx.tail

    def write_TDT(self, value: int) -> None:
        """The driver has posted frames."""
        self._tx.tail = value
        self._owner.tail_moved()

    def write_TIDV(self, value: int) -> None:
        """Take the transmit delay."""
        self._tx_delay.packet = value

    def write_TADV(self, value: int) -> None:
        """Take the transmit delay's upper limit."""
        self._tx_delay.absolute = value

    # ---- statistics

    def _take_count(self, name: str) -> int:
        """Return a count, which sticks at its highest value, and clear it."""
        value, self[name] = self[name], 0
        if name in STATS:
            n = self._rx.stats.get(STATS[name])
            self._rx.stats.subtract(STATS[name], n)
            value = min(n, ALL)
        return value

    def _read_low(self, pair: str) -> int:
        """Return the low half; the high half stays with it until it is read."""
        self._held[pair] = value = self._rx.stats.get(_PAIRS[pair])
        return value & ALL

    def _take_high(self, pair: str) -> int:
        value = self._held.pop(pair, None)
        if value is None:
            value = self._rx.stats.get(_PAIRS[pair])
        self._rx.stats.subtract(_PAIRS[pair], value)
        return value >> 32

    # ---- what the kernels are told

    def _place(self, ring: TxRing | RxRing, prefix: str) -> None:
        base = self[f"{prefix}BAH"] << 32 | self[f"{prefix}BAL"]
        ring.place(base, self[f"{prefix}LEN"])
        self._owner.mode_changed()

    def _configure(self) -> None:
        vlans = bool(self["CTRL"] & Ctrl.VME)
        self._rx.configure(self["RCTL"], self["RXCSUM"], self["VET"], vlans)
        self._tx.configure(bool(self["TCTL"] & Tctl.PSP), self["VET"], vlans)

    def _update_addresses(self) -> None:
        addresses = []
        for i in range(N_EXACT):
            at = OFFSETS["RAL"] + 8 * i >> 2
            low, high = self._values[at], self._values[at + 1]
            if high & RAH_AV and not high & RAH_AS:
                addresses.append((high << 32 | low).to_bytes(8, "little")[:6])
        self._rx.set_exact(addresses)


_PAIRS: Final = {
    "GORC": STATS["GORC"],
    "GOTC": STATS["GOTC"],
    "TOR": STATS["TOR"],
    "TOT": STATS["TOT"],
}


class IoWindow:
    """The I/O BAR: an address, and the data at it.  Spec: "I/O Mapping of Internal Registers"."""

    SIZE: Final = 64
    _DATA: Final = 4

    def __init__(self, device: Device) -> None:
        self._device = device
        self._address = 0

    def reset(self) -> None:
        """Forget the address."""
        self._address = 0

    def read(self, offset: int, n: int) -> int:
        """Read the address, or the register at it."""
        if offset == 0:
            return self._address
        if offset == self._DATA and self._reaches:
            return self._device.read(self._address, n)
        return 0

    def write(self, offset: int, n: int, value: int) -> None:
        """Write the address, or the register at it."""
        if offset == 0 and n == 4:
            self._address = value
        elif offset == self._DATA and self._reaches:
            self._device.write(self._address, n, value)

    @property
    def _reaches(self) -> bool:
        return self._address < BAR_SIZE and self._address % 4 == 0


def _zero() -> int:
    return 0
