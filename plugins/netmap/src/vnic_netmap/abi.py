"""What user space and the netmap module agree on: ``net/netmap.h``, API 14, name for name.

Fields keep the header's names and order; groups of constants (``NETMAP_REQ_*``) are enums whose
members are the rest of the name.  It is written down here so that nothing of netmap need be
installed to build.  Linux and FreeBSD have the same structs, and the same numbers but two.

`NetmapIf`, `NetmapRing` and `NetmapSlot` lie in memory that the module shares with us, and with
whoever uses the same allocator.  ``ring_kernel`` reads them there; here they say how they are laid
out.
"""

from __future__ import annotations

import sys
from ctypes import Structure, c_char, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from enum import IntEnum, IntFlag
from typing import Final

NETMAP_API: Final = 14
"""What we speak.  The module takes 15 as well."""
NETMAP_REQ_IFNAMSIZ: Final = 64
NM_IFNAMSIZ: Final = 16
"""Of a name within the module, its terminating zero included: what is longer is cut in silence."""
NM_MAX_SLOTS: Final = 4096

NETMAP_VNET_HDR_LENS: Final = (0, 10, 12)
"""Bytes of virtio-net header that a port can have in front of each frame."""

# ---- requests: what goes through NIOCCTRL ------------------------------------------------------


class NmreqHeader(Structure):
    """``struct nmreq_header``: what is asked of which port; every NIOCCTRL begins with it."""

    _fields_ = [
        ("nr_version", c_uint16),  # NETMAP_API
        ("nr_reqtype", c_uint16),  # NetmapReq
        ("nr_reserved", c_uint32),  # 0
        ("nr_name", c_char * NETMAP_REQ_IFNAMSIZ),  # "eth0", "vale0:1", "vale0:1{3"
        ("nr_options", c_uint64),  # address of a chain of NmreqOption, or 0
        ("nr_body", c_uint64),  # address of the struct that nr_reqtype calls for
    ]


class NmreqRegister(Structure):
    """``struct nmreq_register``, body of NetmapReq.REGISTER: bind the descriptor to a port.

    The module fills in offset, size and numbers; what is 0 on the way in is for it to choose.
    """

    _fields_ = [
        ("nr_offset", c_uint64),  # of the netmap_if in the mapping
        ("nr_memsize", c_uint64),  # of the mapping
        ("nr_tx_slots", c_uint32),
        ("nr_rx_slots", c_uint32),
        ("nr_tx_rings", c_uint16),
        ("nr_rx_rings", c_uint16),
        ("nr_host_tx_rings", c_uint16),
        ("nr_host_rx_rings", c_uint16),
        ("nr_mem_id", c_uint16),  # the allocator: ports that share one can pass buffers on
        ("nr_ringid", c_uint16),  # for NrMode.ONE_NIC and ONE_SW; the id of a pipe
        ("nr_mode", c_uint32),  # NrMode
        ("nr_extra_bufs", c_uint32),
        ("pad1", c_uint32),
        ("nr_flags", c_uint64),  # NrFlag
    ]


class NmreqPortInfoGet(Structure):
    """``struct nmreq_port_info_get``: what a port is like, or, without a name, an allocator."""

    _fields_ = [
        ("nr_memsize", c_uint64),
        ("nr_tx_slots", c_uint32),
        ("nr_rx_slots", c_uint32),
        ("nr_tx_rings", c_uint16),
        ("nr_rx_rings", c_uint16),
        ("nr_host_tx_rings", c_uint16),
        ("nr_host_rx_rings", c_uint16),
        ("nr_mem_id", c_uint16),
        ("pad", c_uint16 * 3),
    ]


class NmreqValeAttach(Structure):
    """``struct nmreq_vale_attach``: put the NIC ``vale0:eth0`` on the switch."""

    _fields_ = [
        ("reg", NmreqRegister),  # nr_mode: NrMode.NIC_SW takes the host along
        ("port_index", c_uint32),
        ("pad1", c_uint32),
    ]


class NmreqValeDetach(Structure):
    """``struct nmreq_vale_detach``: take it off again."""

    _fields_ = [
        ("port_index", c_uint32),
        ("pad1", c_uint32),
    ]


class NmreqValeList(Structure):
    """``struct nmreq_vale_list``: where a name is; without a name, the first port from there on."""

    _fields_ = [
        ("nr_bridge_idx", c_uint16),
        ("pad1", c_uint16),
        ("nr_port_idx", c_uint32),
    ]


class NmreqValeNewif(Structure):
    """``struct nmreq_vale_newif``: make a port that stays when nobody has it open."""

    _fields_ = [
        ("nr_tx_slots", c_uint32),
        ("nr_rx_slots", c_uint32),
        ("nr_tx_rings", c_uint16),
        ("nr_rx_rings", c_uint16),
        ("nr_mem_id", c_uint16),
        ("pad1", c_uint16),
    ]


class NmreqPortHdr(Structure):
    """``struct nmreq_port_hdr``, body of NetmapReq.PORT_HDR_SET and PORT_HDR_GET."""

    _fields_ = [
        ("nr_hdr_len", c_uint32),  # one of NETMAP_VNET_HDR_LENS
        ("pad1", c_uint32),
    ]


class NmreqOption(Structure):
    """``struct nmreq_option``: what options of a request begin with.  vnic sends none."""

    _fields_ = [
        ("nro_next", c_uint64),
        ("nro_reqtype", c_uint32),  # NetmapReqOpt
        ("nro_status", c_uint32),  # errno: EOPNOTSUPP is 95 on Linux, 45 on FreeBSD
        ("nro_size", c_uint64),
    ]


class NetmapReq(IntEnum):
    """``NETMAP_REQ_*``."""

    REGISTER = 1
    PORT_INFO_GET = 2
    VALE_ATTACH = 3
    VALE_DETACH = 4
    VALE_LIST = 5
    PORT_HDR_SET = 6
    PORT_HDR_GET = 7
    VALE_NEWIF = 8
    VALE_DELIF = 9


class NetmapReqOpt(IntEnum):
    """``NETMAP_REQ_OPT_*``."""

    EXTMEM = 1
    CSB = 3
    OFFSETS = 5


class NrMode(IntEnum):
    """``NR_REG_*``: which rings of the port to bind."""

    ALL_NIC = 1
    SW = 2
    NIC_SW = 3
    ONE_NIC = 4
    PIPE_MASTER = 5  # legacy; with NIOCCTRL a pipe is named: x{id
    PIPE_SLAVE = 6  # x}id
    NULL = 7
    ONE_SW = 8


class NrFlag(IntFlag):
    """``NR_*``, of nr_flags."""

    MONITOR_TX = 0x100
    MONITOR_RX = 0x200
    ZCOPY_MON = 0x400
    EXCLUSIVE = 0x800
    RX_RINGS_ONLY = 0x2000
    TX_RINGS_ONLY = 0x4000
    ACCEPT_VNET_HDR = 0x8000
    DO_RX_POLL = 0x10000
    NO_TX_POLL = 0x20000


# ---- the legacy request: NIOCGINFO and NIOCREGIF -----------------------------------------------


class Nmreq(Structure):
    """``struct nmreq``: what modules without NIOCCTRL take."""

    _fields_ = [
        ("nr_name", c_char * NM_IFNAMSIZ),
        ("nr_version", c_uint32),
        ("nr_offset", c_uint32),
        ("nr_memsize", c_uint32),
        ("nr_tx_slots", c_uint32),
        ("nr_rx_slots", c_uint32),
        ("nr_tx_rings", c_uint16),
        ("nr_rx_rings", c_uint16),
        ("nr_ringid", c_uint16),  # a ring's number and NrRingid
        ("nr_cmd", c_uint16),  # NrCmd, or 0 to register
        ("nr_arg1", c_uint16),  # of NrCmd: the header's length
        ("nr_arg2", c_uint16),  # the allocator
        ("nr_arg3", c_uint32),  # extra buffers
        ("nr_flags", c_uint32),  # NrMode | NrFlag
        ("spare2", c_uint32),
    ]


class NrRingid(IntFlag):
    """``NETMAP_*``, of the legacy nr_ringid."""

    NO_TX_POLL = 0x1000
    SW_RING = 0x2000
    HW_RING = 0x4000
    DO_RX_POLL = 0x8000


class NrCmd(IntEnum):
    """``NETMAP_*``, of the legacy nr_cmd."""

    BDG_VNET_HDR = 5
    VNET_HDR_GET = 12


# ---- what lies in shared memory ----------------------------------------------------------------


class NetmapIf(Structure):
    """``struct netmap_if``: where the port's rings are.

    ``ring_ofs[]`` follows: int64 from the start of this struct, in the order tx, host tx, rx,
    host rx; 0 where a ring is not there.  The name ends at its first zero, and ni_version reads 0.
    """

    _fields_ = [
        ("ni_name", c_char * NM_IFNAMSIZ),
        ("ni_version", c_uint32),
        ("ni_flags", c_uint32),
        ("ni_tx_rings", c_uint32),
        ("ni_rx_rings", c_uint32),
        ("ni_bufs_head", c_uint32),
        ("ni_host_tx_rings", c_uint32),
        ("ni_host_rx_rings", c_uint32),
        ("ni_spare1", c_uint32 * 3),
    ]


class NetmapSlot(Structure):
    """``struct netmap_slot``: one buffer of a ring."""

    _fields_ = [
        ("buf_idx", c_uint32),
        ("len", c_uint16),
        ("flags", c_uint16),  # SlotFlag; on VALE rx the high byte counts the frame's fragments
        ("ptr", c_uint64),
    ]


class NetmapRing(Structure):
    """``struct netmap_ring``, aligned to 128 bytes; ``slot[]`` follows.

    User space owns the slots [head, tail); the kernel moves tail, only inside system calls.  A
    buffer is at: this ring + buf_ofs + buf_idx * nr_buf_size.
    """

    _fields_ = [
        ("buf_ofs", c_int64),
        ("num_slots", c_uint32),
        ("nr_buf_size", c_uint32),
        ("ringid", c_uint16),
        ("dir", c_uint16),  # 1: tx, 0: rx
        ("head", c_uint32),
        ("cur", c_uint32),
        ("tail", c_uint32),
        ("flags", c_uint32),
        ("ts_sec", c_int64),
        ("ts_usec", c_int64),
        ("offset_mask", c_uint64),
        ("buf_align", c_uint64),
        ("reserved", c_uint8 * 56),
        ("sem", c_uint8 * 128),
    ]


class SlotFlag(IntFlag):
    """``NS_*``, of a slot's flags."""

    BUF_CHANGED = 0x01
    REPORT = 0x02
    FORWARD = 0x04
    NO_LEARN = 0x08
    INDIRECT = 0x10
    MOREFRAG = 0x20


# ---- ioctls ------------------------------------------------------------------------------------


def _iowr(number: int, size: int) -> int:
    """Return ``_IOWR('i', number, a struct of that size)``: the same on Linux and FreeBSD."""
    return 0xC0000000 | size << 16 | ord("i") << 8 | number


def _io(number: int, platform: str = sys.platform) -> int:
    """Return ``_IO('i', number)``, which FreeBSD marks as having no argument."""
    void = 0x20000000 if platform.startswith("freebsd") else 0
    return void | ord("i") << 8 | number


NIOCGINFO: Final = _iowr(145, sizeof(Nmreq))
NIOCREGIF: Final = _iowr(146, sizeof(Nmreq))
NIOCTXSYNC: Final = _io(148)
NIOCRXSYNC: Final = _io(149)
NIOCCTRL: Final = _iowr(151, sizeof(NmreqHeader))
