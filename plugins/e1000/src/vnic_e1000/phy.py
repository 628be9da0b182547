"""The PHY: an M88E1011, which has always negotiated 1000 Mb/s full duplex with its partner.

Spec: 8254x Family Software Developer's Manual, "PHY Registers"; IEEE 802.3, clause 22.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from vnic_e1000.registers import without

ADDRESS: Final = 1
"""On the management bus.  Nothing answers elsewhere."""


class Reg(IntEnum):
    """Registers that are there, by the manual's names."""

    PCTRL = 0
    PSTATUS = 1
    PHY_ID1 = 2
    PHY_ID2 = 3
    ANA = 4
    LPA = 5
    ANE = 6
    NPT = 7
    LPN = 8
    GCON = 9
    GSTATUS = 10
    ESTATUS = 15
    PSCON = 16
    PSSTAT = 17
    PINTE = 18
    PINTS = 19
    EPSCON1 = 20
    PREC = 21
    PAGE = 29
    DATA = 30


class Control(IntFlag):
    """Bits of PCTRL that mean something here."""

    RESTART_AUTONEG = 1 << 9
    ISOLATE = 1 << 10
    POWER_DOWN = 1 << 11
    AUTONEG = 1 << 12
    LOOPBACK = 1 << 14
    RESET = 1 << 15


class PhyStatus(IntFlag):
    """Bits of PSTATUS that change."""

    LINK = 1 << 2
    AUTONEG_COMPLETE = 1 << 5


_RESET: Final = {
    Reg.PCTRL: 0x1140,
    Reg.PSTATUS: 0x7949,
    Reg.PHY_ID1: 0x0141,
    Reg.PHY_ID2: 0x0C20,
    Reg.ANA: 0x0DE1,
    Reg.LPA: 0xCDE1,
    Reg.ANE: 0x000D,
    Reg.NPT: 0x2001,
    Reg.LPN: 0x0000,
    Reg.GCON: 0x0E00,
    Reg.GSTATUS: 0x3C00,
    Reg.ESTATUS: 0x3000,
    Reg.PSCON: 0x0360,
    Reg.PSSTAT: 0xAC00,
    Reg.PINTE: 0x0000,
    Reg.PINTS: 0x0000,
    Reg.EPSCON1: 0x0D60,
    Reg.PREC: 0x0000,
    Reg.PAGE: 0x0000,
    Reg.DATA: 0x0000,
}

_WRITABLE: Final = {
    Reg.ANA,
    Reg.NPT,
    Reg.GCON,
    Reg.PSCON,
    Reg.PINTE,
    Reg.EPSCON1,
    Reg.PAGE,
    Reg.DATA,
}

_PARTNERS: Final = {Reg.LPA, Reg.GSTATUS, Reg.PSSTAT, Reg.ANE}
"""What is known of a partner, and zero without one."""


class Phy:
    """Its registers, and whether there is a cable."""

    def __init__(self) -> None:
        self.carrier = True
        """Whether the cable leads anywhere; `set_carrier` changes it."""
        self._latched_low = False
        self.reset()

    def reset(self) -> None:
        """Return to power-on state; what the cable is plugged into stays."""
        self._values = dict(_RESET)

    def set_carrier(self, carrier: bool) -> None:
        """Plug or pull the cable."""
        self.carrier = carrier
        self._latched_low = self._latched_low or not carrier

    @property
    def control(self) -> Control:
        """PCTRL."""
        return Control(self._values[Reg.PCTRL])

    @property
    def link(self) -> bool:
        """Whether there is a partner to talk to."""
        return self.carrier and not self.control & (Control.POWER_DOWN | Control.ISOLATE)

    @property
    def loopback(self) -> bool:
        """Whether what is sent comes back."""
        return bool(self.control & Control.LOOPBACK)

    def read(self, register: int) -> int:
        """Return a register; zero where there is none."""
        try:
            register = Reg(register)
        except ValueError:
            return 0
        if register is Reg.PSTATUS:
            return self._read_status()
        if register in _PARTNERS and not self.link:
            return 0
        return self._values[register]

    def _read_status(self) -> int:
        """Link status latches low: that it was lost is seen once, whatever it is now."""
        status = self._values[Reg.PSTATUS]
        if self.link and not self._latched_low:
            status |= PhyStatus.LINK
        if self.link and self.control & Control.AUTONEG:
            status |= PhyStatus.AUTONEG_COMPLETE
        self._latched_low = not self.link
        return status

    def write(self, register: int, value: int) -> bool:
        """Take a value; whether the link was negotiated anew."""
        if register == Reg.PCTRL:
            return self._write_control(value & 0xFFFF)
        if register in _WRITABLE:
            self._values[Reg(register)] = value & 0xFFFF
        return False

    def _write_control(self, value: int) -> bool:
        # A reset is over at once, and other registers keep their settings: it is how drivers have
        # them take effect.
        was_up = self.link
        self._values[Reg.PCTRL] = without(value, Control.RESET | Control.RESTART_AUTONEG)
        return self.link and (bool(value & Control.RESTART_AUTONEG) or not was_up)
