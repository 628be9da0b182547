"""Requests to the module: register a port, ask for its virtio-net header, set that.

Each in both forms: as a request of NIOCCTRL, and as modules without NIOCCTRL take it.  All raise
OSError, as the module answers.
"""

from __future__ import annotations

import ctypes
import errno
import re
from typing import Final

import attrs

from vnic_netmap.abi import (
    NETMAP_API,
    NIOCCTRL,
    NIOCREGIF,
    NM_IFNAMSIZ,
    NetmapReq,
    Nmreq,
    NmreqHeader,
    NmreqPortHdr,
    NmreqRegister,
    NrCmd,
    NrFlag,
    NrMode,
    NrRingid,
)
from vnic_netmap.names import PortName
from vnic_netmap.system import System

_UNKNOWN: Final = (errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENXIO)
"""What modules say to a request that they don't know: Linux's EOPNOTSUPP, FreeBSD's, which take it
for one to an interface, ENXIO or what that says."""
_LEGACY_PIPE: Final = re.compile(r"(.+)([{}])(\d+)")
_LEGACY_FLAGS: Final = ~(NrFlag.NO_TX_POLL | NrFlag.DO_RX_POLL)
"""What nr_flags can say there; those two are bits of nr_ringid."""


@attrs.frozen(kw_only=True)
class Registration:
    """What the module says of a port that a descriptor is bound to."""

    is_legacy: bool
    """Whether it went through NIOCREGIF."""
    offset: int
    """Of the netmap_if in the mapping."""
    memsize: int
    """Bytes to map."""
    n_tx: int
    n_rx: int
    n_host_tx: int
    n_host_rx: int


def register(
    system: System, fd: int, name: PortName, flags: NrFlag, *, n_slots: int = 0, n_rings: int = 0
) -> Registration:
    """Bind the descriptor to a port; one of a switch, or a pipe, is made if there is none.

    ``n_slots``, ``n_rings``: for each direction of a port that is made; 0: as the module likes.

    A module that doesn't know NIOCCTRL answers with one of `_UNKNOWN`.  One that does answers so,
    too, if what is asked for can't be; and then gives NIOCREGIF the same answer.  So after those
    the legacy request decides.
    """
    request = NmreqRegister(
        nr_tx_slots=n_slots,
        nr_rx_slots=n_slots,
        nr_tx_rings=n_rings,
        nr_rx_rings=n_rings,
        nr_mem_id=name.mem_id,
        nr_ringid=name.ring,
        nr_mode=name.mode,
        nr_flags=flags,
    )
    try:
        _control(system, fd, NetmapReq.REGISTER, name, request)
    except OSError as error:
        legacy = _legacy(name)
        if error.errno not in _UNKNOWN or legacy is None:
            raise
        return _register_legacy(system, fd, legacy, flags, n_slots, n_rings)
    return Registration(
        is_legacy=False,
        offset=request.nr_offset,
        memsize=request.nr_memsize,
        n_tx=request.nr_tx_rings,
        n_rx=request.nr_rx_rings,
        n_host_tx=request.nr_host_tx_rings,
        n_host_rx=request.nr_host_rx_rings,
    )


def get_header_len(system: System, fd: int, name: PortName, is_legacy: bool) -> int:
    """Return how many bytes of virtio-net header the port has.  It must be registered."""
    if is_legacy:
        return _header_legacy(system, fd, name, NrCmd.VNET_HDR_GET, 0)
    request = NmreqPortHdr()
    _control(system, fd, NetmapReq.PORT_HDR_GET, name, request)
    return int(request.nr_hdr_len)


def set_header_len(system: System, fd: int, name: PortName, is_legacy: bool, n: int) -> None:
    """Give the port a virtio-net header.  It must be registered: ENXIO, where there is no port.

    Never by way of trial.  Fault of the module: to set 12 and then 0 leaves the size of segments
    wrong, and large frames vanish.
    """
    if is_legacy:
        _header_legacy(system, fd, name, NrCmd.BDG_VNET_HDR, n)
    else:
        _control(system, fd, NetmapReq.PORT_HDR_SET, name, NmreqPortHdr(nr_hdr_len=n))


def _control(
    system: System, fd: int, kind: NetmapReq, name: PortName, body: ctypes.Structure
) -> None:
    # nr_options stays 0, always.  CVE-2022-23084 and -23085 are faults of the module in how it
    # copies options in: nothing that a user wrote ends up in one.
    header = NmreqHeader(
        nr_version=NETMAP_API,
        nr_reqtype=kind,
        nr_name=name.port.encode(),
        nr_body=ctypes.addressof(body),
    )
    system.ioctl(fd, NIOCCTRL, header)


# ---- modules without NIOCCTRL ------------------------------------------------------------------


def _legacy(name: PortName) -> Nmreq | None:
    """Say the same as a legacy request; None for a name that can't be said in it."""
    port, mode, ring = name.port, name.mode, name.ring
    if pipe := _LEGACY_PIPE.fullmatch(port):
        port, ring = pipe[1], int(pipe[3])
        mode = NrMode.PIPE_MASTER if pipe[2] == "{" else NrMode.PIPE_SLAVE
    if (name.is_pipe and not pipe) or len(port) >= NM_IFNAMSIZ or ring >= NrRingid.NO_TX_POLL:
        return None  # it would be cut in silence
    return Nmreq(
        nr_name=port.encode(),
        nr_version=NETMAP_API,
        nr_ringid=ring,
        nr_arg2=name.mem_id,
        nr_flags=mode,
    )


def _register_legacy(
    system: System, fd: int, request: Nmreq, flags: NrFlag, n_slots: int, n_rings: int
) -> Registration:
    request.nr_flags |= flags & _LEGACY_FLAGS
    if flags & NrFlag.NO_TX_POLL:
        request.nr_ringid |= NrRingid.NO_TX_POLL
    request.nr_tx_slots = request.nr_rx_slots = n_slots
    request.nr_tx_rings = request.nr_rx_rings = n_rings
    system.ioctl(fd, NIOCREGIF, request)
    return Registration(
        is_legacy=True,
        offset=request.nr_offset,
        memsize=request.nr_memsize,
        n_tx=request.nr_tx_rings,
        n_rx=request.nr_rx_rings,
        n_host_tx=1,
        n_host_rx=1,
    )


def _header_legacy(system: System, fd: int, name: PortName, command: NrCmd, n: int) -> int:
    request = _legacy(name)
    if request is None:
        raise OSError(errno.EINVAL, "no legacy request for this name")
    request.nr_cmd = command
    request.nr_arg1 = n
    system.ioctl(fd, NIOCREGIF, request)
    return int(request.nr_arg1)
