"""The registers of the memory BAR: one table in the manual's order, and bits that mean something.

A row's access kind says what reads and writes do.  Where that is not all, the `Device` has a method
named after the register: ``read_ICR``, ``write_TDT``.

Spec: 8254x Family Software Developer's Manual, "Register Descriptions".
"""

from __future__ import annotations

from enum import Enum, IntFlag
from typing import Final

import attrs

BAR_SIZE: Final = 0x20000
"""Bytes of the memory BAR.  Spec: "Memory, I/O and Flash Mapping"."""

ALL: Final = 0xFFFF_FFFF


class Access(Enum):
    """What the driver's reads and writes of a register do, unless a method does more."""

    RW = "read, write"
    RO = "read; writes are ignored"
    WO = "write; reads as zero"
    RC = "read, which clears; writes are ignored"
    RC_LOW = "low half of 64 bits: read, which holds the rest"
    RC_HIGH = "high half of 64 bits: read, which clears both"


@attrs.frozen
class Register:
    """One register, or ``n`` of a kind."""

    name: str
    offset: int
    access: Access
    reset: int
    title: str
    mask: int = ALL
    """Bits that can be written; the others keep their value at reset."""
    n: int = 1
    stride: int = 4
    """Bytes from one to the next."""


_RW, _RO, _WO = Access.RW, Access.RO, Access.WO
_RC, _LOW, _HIGH = Access.RC, Access.RC_LOW, Access.RC_HIGH
_R = Register

REGISTERS: Final = (
    # ---- general
    _R("CTRL", 0x00000, _RW, 0x0000_0201, "Device Control"),
    _R("STATUS", 0x00008, _RO, 0x8008_0781, "Device Status"),
    _R("EECD", 0x00010, _RW, 0x0000_0110, "EEPROM/Flash Control and Data", 0x0000_0077),
    _R("EERD", 0x00014, _RW, 0, "EEPROM Read"),
    _R("CTRL_EXT", 0x00018, _RW, 0, "Extended Device Control"),
    _R("FLA", 0x0001C, _RW, 0, "Flash Access"),
    _R("MDIC", 0x00020, _RW, 0, "MDI Control"),
    _R("FCAL", 0x00028, _RW, 0x00C2_8001, "Flow Control Address Low"),
    _R("FCAH", 0x0002C, _RW, 0x0000_0100, "Flow Control Address High", 0xFFFF),
    _R("FCT", 0x00030, _RW, 0x0000_8808, "Flow Control Type", 0xFFFF),
    _R("VET", 0x00038, _RW, 0x0000_8100, "VLAN Ether Type", 0xFFFF),
    _R("FCTTV", 0x00170, _RW, 0, "Flow Control Transmit Timer Value", 0xFFFF),
    _R("TXCW", 0x00178, _RW, 0, "Transmit Configuration Word", 0xC000_FFFF),
    _R("RXCW", 0x00180, _RO, 0, "Receive Configuration Word"),
    _R("LEDCTL", 0x00E00, _RW, 0x0706_8302, "LED Control"),
    _R("PBA", 0x01000, _RW, 0x0010_0030, "Packet Buffer Allocation", 0x0000_007F),
    # ---- interrupts
    _R("ICR", 0x000C0, _RC, 0, "Interrupt Cause Read"),
    _R("ITR", 0x000C4, _RW, 0, "Interrupt Throttling", 0xFFFF),
    _R("ICS", 0x000C8, _WO, 0, "Interrupt Cause Set"),
    _R("IMS", 0x000D0, _RW, 0, "Interrupt Mask Set/Read"),
    _R("IMC", 0x000D8, _WO, 0, "Interrupt Mask Clear"),
    # ---- receive
    _R("RCTL", 0x00100, _RW, 0, "Receive Control", 0x06DF_B3FE),
    _R("FCRTL", 0x02160, _RW, 0, "Flow Control Receive Threshold Low", 0x8000_FFF8),
    _R("FCRTH", 0x02168, _RW, 0, "Flow Control Receive Threshold High", 0x8000_FFF8),
    _R("RDBAL", 0x02800, _RW, 0, "Receive Descriptor Base Low", 0xFFFF_FFF0),
    _R("RDBAH", 0x02804, _RW, 0, "Receive Descriptor Base High"),
    _R("RDLEN", 0x02808, _RW, 0, "Receive Descriptor Length", 0x000F_FF80),
    _R("RDH", 0x02810, _RW, 0, "Receive Descriptor Head", 0xFFFF),
    _R("RDT", 0x02818, _RW, 0, "Receive Descriptor Tail", 0xFFFF),
    _R("RDTR", 0x02820, _RW, 0, "Receive Delay Timer", 0x8000_FFFF),
    _R("RXDCTL", 0x02828, _RW, 0x0101_0000, "Receive Descriptor Control"),
    _R("RADV", 0x0282C, _RW, 0, "Receive Interrupt Absolute Delay Timer", 0xFFFF),
    _R("RSRPD", 0x02C00, _RW, 0, "Receive Small Packet Detect Interrupt", 0x0FFF),
    # ---- transmit
    _R("TCTL", 0x00400, _RW, 0, "Transmit Control", 0x07FF_FFFA),
    _R("TIPG", 0x00410, _RW, 0x0060_2008, "Transmit Inter Packet Gap", 0x3FFF_FFFF),
    _R("AIFS", 0x00458, _RW, 0, "Adaptive Inter-Frame Spacing Throttle", 0xFFFF),
    _R("TXDMAC", 0x03000, _RW, 0, "Transmit DMA Control", 0x0001),
    _R("TDBAL", 0x03800, _RW, 0, "Transmit Descriptor Base Low", 0xFFFF_FFF0),
    _R("TDBAH", 0x03804, _RW, 0, "Transmit Descriptor Base High"),
    _R("TDLEN", 0x03808, _RW, 0, "Transmit Descriptor Length", 0x000F_FF80),
    _R("TDH", 0x03810, _RW, 0, "Transmit Descriptor Head", 0xFFFF),
    _R("TDT", 0x03818, _RW, 0, "Transmit Descriptor Tail", 0xFFFF),
    _R("TIDV", 0x03820, _RW, 0, "Transmit Interrupt Delay Value", 0xFFFF),
    _R("TXDCTL", 0x03828, _RW, 0, "Transmit Descriptor Control"),
    _R("TADV", 0x0382C, _RW, 0, "Transmit Absolute Interrupt Delay Value", 0xFFFF),
    _R("TSPMT", 0x03830, _RW, 0x0100_0400, "TCP Segmentation Pad and Minimum Threshold"),
    # ---- receive filters and checksums
    _R("RXCSUM", 0x05000, _RW, 0, "Receive Checksum Control", 0x07FF),
    _R("MTA", 0x05200, _RW, 0, "Multicast Table Array", n=128),
    _R("RAL", 0x05400, _RW, 0, "Receive Address Low", n=16, stride=8),
    _R("RAH", 0x05404, _RW, 0, "Receive Address High", 0x8003_FFFF, n=16, stride=8),
    _R("VFTA", 0x05600, _RW, 0, "VLAN Filter Table Array", n=128),
    # ---- wake-up and management: kept, and without effect
    _R("WUC", 0x05800, _RW, 0, "Wakeup Control"),
    _R("WUFC", 0x05808, _RW, 0, "Wakeup Filter Control"),
    _R("WUS", 0x05810, _RW, 0, "Wakeup Status"),
    _R("MANC", 0x05820, _RW, 0, "Management Control"),
    _R("IPAV", 0x05838, _RW, 0, "IP Address Valid"),
    _R("IP4AT", 0x05840, _RW, 0, "IPv4 Address Table", n=4, stride=8),
    _R("IP6AT", 0x05880, _RW, 0, "IPv6 Address Table", n=4),
    _R("WUPL", 0x05900, _RO, 0, "Wakeup Packet Length"),
    _R("WUPM", 0x05A00, _RO, 0, "Wakeup Packet Memory", n=32),
    _R("FFLT", 0x05F00, _RW, 0, "Flexible Filter Length Table", n=4, stride=8),
    _R("FFMT", 0x09000, _RW, 0, "Flexible Filter Mask Table", n=128, stride=8),
    _R("FFVT", 0x09800, _RW, 0, "Flexible Filter Value Table", n=128, stride=8),
    # ---- diagnostics
    _R("RDFH", 0x02410, _RW, 0, "Receive Data FIFO Head"),
    _R("RDFT", 0x02418, _RW, 0, "Receive Data FIFO Tail"),
    _R("RDFHS", 0x02420, _RW, 0, "Receive Data FIFO Head Saved"),
    _R("RDFTS", 0x02428, _RW, 0, "Receive Data FIFO Tail Saved"),
    _R("RDFPC", 0x02430, _RW, 0, "Receive Data FIFO Packet Count"),
    _R("TDFH", 0x03410, _RW, 0, "Transmit Data FIFO Head"),
    _R("TDFT", 0x03418, _RW, 0, "Transmit Data FIFO Tail"),
    _R("TDFHS", 0x03420, _RW, 0, "Transmit Data FIFO Head Saved"),
    _R("TDFTS", 0x03428, _RW, 0, "Transmit Data FIFO Tail Saved"),
    _R("TDFPC", 0x03430, _RW, 0, "Transmit Data FIFO Packet Count"),
    _R("PBM", 0x10000, _RW, 0, "Packet Buffer Memory", n=0x4000),
    # ---- statistics
    _R("CRCERRS", 0x04000, _RC, 0, "CRC Error Count"),
    _R("ALGNERRC", 0x04004, _RC, 0, "Alignment Error Count"),
    _R("SYMERRS", 0x04008, _RC, 0, "Symbol Error Count"),
    _R("RXERRC", 0x0400C, _RC, 0, "RX Error Count"),
    _R("MPC", 0x04010, _RC, 0, "Missed Packets Count"),
    _R("SCC", 0x04014, _RC, 0, "Single Collision Count"),
    _R("ECOL", 0x04018, _RC, 0, "Excessive Collisions Count"),
    _R("MCC", 0x0401C, _RC, 0, "Multiple Collision Count"),
    _R("LATECOL", 0x04020, _RC, 0, "Late Collisions Count"),
    _R("COLC", 0x04028, _RC, 0, "Collision Count"),
    _R("DC", 0x04030, _RC, 0, "Defer Count"),
    _R("TNCRS", 0x04034, _RC, 0, "Transmit with No CRS"),
    _R("SEC", 0x04038, _RC, 0, "Sequence Error Count"),
    _R("CEXTERR", 0x0403C, _RC, 0, "Carrier Extension Error Count"),
    _R("RLEC", 0x04040, _RC, 0, "Receive Length Error Count"),
    _R("XONRXC", 0x04048, _RC, 0, "XON Received Count"),
    _R("XONTXC", 0x0404C, _RC, 0, "XON Transmitted Count"),
    _R("XOFFRXC", 0x04050, _RC, 0, "XOFF Received Count"),
    _R("XOFFTXC", 0x04054, _RC, 0, "XOFF Transmitted Count"),
    _R("FCRUC", 0x04058, _RC, 0, "FC Received Unsupported Count"),
    _R("PRC64", 0x0405C, _RC, 0, "Packets Received [64 Bytes] Count"),
    _R("PRC127", 0x04060, _RC, 0, "Packets Received [65-127 Bytes] Count"),
    _R("PRC255", 0x04064, _RC, 0, "Packets Received [128-255 Bytes] Count"),
    _R("PRC511", 0x04068, _RC, 0, "Packets Received [256-511 Bytes] Count"),
    _R("PRC1023", 0x0406C, _RC, 0, "Packets Received [512-1023 Bytes] Count"),
    _R("PRC1522", 0x04070, _RC, 0, "Packets Received [1024 to Max Bytes] Count"),
    _R("GPRC", 0x04074, _RC, 0, "Good Packets Received Count"),
    _R("BPRC", 0x04078, _RC, 0, "Broadcast Packets Received Count"),
    _R("MPRC", 0x0407C, _RC, 0, "Multicast Packets Received Count"),
    _R("GPTC", 0x04080, _RC, 0, "Good Packets Transmitted Count"),
    _R("GORCL", 0x04088, _LOW, 0, "Good Octets Received Count (low)"),
    _R("GORCH", 0x0408C, _HIGH, 0, "Good Octets Received Count (high)"),
    _R("GOTCL", 0x04090, _LOW, 0, "Good Octets Transmitted Count (low)"),
    _R("GOTCH", 0x04094, _HIGH, 0, "Good Octets Transmitted Count (high)"),
    _R("RNBC", 0x040A0, _RC, 0, "Receive No Buffers Count"),
    _R("RUC", 0x040A4, _RC, 0, "Receive Undersize Count"),
    _R("RFC", 0x040A8, _RC, 0, "Receive Fragment Count"),
    _R("ROC", 0x040AC, _RC, 0, "Receive Oversize Count"),
    _R("RJC", 0x040B0, _RC, 0, "Receive Jabber Count"),
    _R("MGTPRC", 0x040B4, _RC, 0, "Management Packets Received Count"),
    _R("MGTPDC", 0x040B8, _RC, 0, "Management Packets Dropped Count"),
    _R("MGTPTC", 0x040BC, _RC, 0, "Management Packets Transmitted Count"),
    _R("TORL", 0x040C0, _LOW, 0, "Total Octets Received (low)"),
    _R("TORH", 0x040C4, _HIGH, 0, "Total Octets Received (high)"),
    _R("TOTL", 0x040C8, _LOW, 0, "Total Octets Transmitted (low)"),
    _R("TOTH", 0x040CC, _HIGH, 0, "Total Octets Transmitted (high)"),
    _R("TPR", 0x040D0, _RC, 0, "Total Packets Received"),
    _R("TPT", 0x040D4, _RC, 0, "Total Packets Transmitted"),
    _R("PTC64", 0x040D8, _RC, 0, "Packets Transmitted [64 Bytes] Count"),
    _R("PTC127", 0x040DC, _RC, 0, "Packets Transmitted [65-127 Bytes] Count"),
    _R("PTC255", 0x040E0, _RC, 0, "Packets Transmitted [128-255 Bytes] Count"),
    _R("PTC511", 0x040E4, _RC, 0, "Packets Transmitted [256-511 Bytes] Count"),
    _R("PTC1023", 0x040E8, _RC, 0, "Packets Transmitted [512-1023 Bytes] Count"),
    _R("PTC1522", 0x040EC, _RC, 0, "Packets Transmitted [Greater than 1024 Bytes] Count"),
    _R("MPTC", 0x040F0, _RC, 0, "Multicast Packets Transmitted Count"),
    _R("BPTC", 0x040F4, _RC, 0, "Broadcast Packets Transmitted Count"),
    _R("TSCTC", 0x040F8, _RC, 0, "TCP Segmentation Context Transmitted Count"),
    _R("TSCTFC", 0x040FC, _RC, 0, "TCP Segmentation Context Transmit Fail Count"),
)


class Ctrl(IntFlag):
    """Spec: "Device Control Register"."""

    FD = 1 << 0
    SLU = 1 << 6
    RST = 1 << 26
    VME = 1 << 30
    PHY_RST = 1 << 31


class Status(IntFlag):
    """Spec: "Device Status Register"."""

    FD = 1 << 0
    LU = 1 << 1


class Eecd:
    """Plain numbers: a driver reads the EEPROM bit by bit, with some ten thousand accesses.

    Spec: "EEPROM/Flash Control & Data Register".
    """

    SK: Final = 1 << 0
    CS: Final = 1 << 1
    DI: Final = 1 << 2
    DO: Final = 1 << 3
    REQ: Final = 1 << 6
    GNT: Final = 1 << 7
    PRES: Final = 1 << 8


class Eerd(IntFlag):
    """Spec: "EEPROM Read Register"."""

    START = 1 << 0
    DONE = 1 << 4


class Mdic(IntFlag):
    """Spec: "MDI Control Register"."""

    OP_WRITE = 1 << 26
    OP_READ = 1 << 27
    READY = 1 << 28
    INTERRUPT = 1 << 29
    ERROR = 1 << 30


class Cause(IntFlag):
    """Why the device interrupts: ICR, ICS, IMS and IMC.  Spec: "Interrupt Cause Read Register"."""

    TXDW = 1 << 0
    TXQE = 1 << 1
    LSC = 1 << 2
    RXSEQ = 1 << 3
    RXDMT0 = 1 << 4
    RXO = 1 << 6
    RXT0 = 1 << 7
    MDAC = 1 << 9
    RXCFG = 1 << 10
    TXD_LOW = 1 << 15
    SRPD = 1 << 16


CAUSES: Final = 0x0001_FFFF
"""Causes that can be set and enabled, those that nothing here raises among them."""


class Rctl(IntFlag):
    """What is not the kernel's of it.  Spec: "Receive Control Register"."""

    EN = 1 << 1
    LBM_MAC = 1 << 6
    LBM_PHY = 1 << 7


RDMTS_SHIFT: Final = 8


class Tctl(IntFlag):
    """Spec: "Transmit Control Register"."""

    EN = 1 << 1
    PSP = 1 << 3


class Rdtr(IntFlag):
    """Spec: "Receive Delay Timer Register"."""

    FPD = 1 << 31


RAH_AV: Final = 1 << 31
"""The address is valid.  Spec: "Receive Address High"."""
RAH_AS: Final = 0b11 << 16
"""What the address is compared with: 0 is the destination."""


def without(value: int, bits: IntFlag) -> int:
    """Clear bits.  As numbers: ``~`` on a flag forgets the bits that have no name."""
    return value & ~int(bits)


OFFSETS: Final = {register.name: register.offset for register in REGISTERS}
