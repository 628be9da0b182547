"""NIOCREGIF and NIOCGINFO, for those who know no other: made into requests of today."""

from __future__ import annotations

import errno
from typing import Final

from vnic_netmap.abi import (
    NM_IFNAMSIZ,
    Nmreq,
    NmreqHeader,
    NmreqPortHdr,
    NmreqPortInfoGet,
    NmreqRegister,
    NrCmd,
    NrFlag,
    NrMode,
    NrRingid,
)
from vnic_netmap.testing.descriptor import Descriptor
from vnic_netmap.testing.ports import refuse
from vnic_netmap.testing.requests import Requests

_RING: Final = 0xFFF
"""Of nr_ringid: the ring's number."""
_MODE: Final = 0xF
"""Of nr_flags: the mode, or 0, for one that nr_ringid says."""


class Legacy:
    """What the module answers to the requests of old.

    ``versions``: those that it takes, first and last.
    """

    def __init__(self, requests: Requests, versions: tuple[int, int]) -> None:
        self._requests = requests
        self._versions = versions

    def regif(self, descriptor: Descriptor, nmr: Nmreq) -> None:
        """Register; or set or get the header's length, if nr_cmd says so.

        Raises: OSError.
        """
        header = self._header(nmr)
        if nmr.nr_cmd == 0:
            request = _register(nmr, header)
            self._requests.register(descriptor, header, request)
            nmr.nr_offset = request.nr_offset
            nmr.nr_arg3 = request.nr_extra_bufs
            _fill_in(nmr, request)
        elif nmr.nr_cmd == NrCmd.BDG_VNET_HDR:
            hdr = NmreqPortHdr(nr_hdr_len=nmr.nr_arg1)
            self._requests.port_hdr_set(descriptor, header, hdr)
        elif nmr.nr_cmd == NrCmd.VNET_HDR_GET:
            hdr = NmreqPortHdr()
            self._requests.port_hdr_get(descriptor, header, hdr)
            nmr.nr_arg1 = hdr.nr_hdr_len
        else:
            refuse(errno.EINVAL)

    def ginfo(self, descriptor: Descriptor, nmr: Nmreq) -> None:
        """Say what a port is like.

        Raises: OSError.
        """
        header = self._header(nmr)
        request = NmreqPortInfoGet(
            nr_tx_slots=nmr.nr_tx_slots,
            nr_rx_slots=nmr.nr_rx_slots,
            nr_tx_rings=nmr.nr_tx_rings,
            nr_rx_rings=nmr.nr_rx_rings,
            nr_mem_id=nmr.nr_arg2,
        )
        self._requests.port_info_get(descriptor, header, request)
        _fill_in(nmr, request)

    def _header(self, nmr: Nmreq) -> NmreqHeader:
        first, last = self._versions
        if not first <= nmr.nr_version <= last:
            refuse(errno.EINVAL)
        # The last byte of a name is cut off, whatever it is.
        return NmreqHeader(nr_name=bytes(nmr.nr_name)[: NM_IFNAMSIZ - 1])


def _register(nmr: Nmreq, header: NmreqHeader) -> NmreqRegister:
    mode, flags, ringid = nmr.nr_flags & _MODE, nmr.nr_flags & ~_MODE, nmr.nr_ringid
    ring = ringid & _RING
    if mode == 0:
        if ringid & NrRingid.SW_RING:
            mode = NrMode.SW
        else:
            mode = NrMode.ONE_NIC if ringid & NrRingid.HW_RING else NrMode.ALL_NIC
    elif mode in (NrMode.PIPE_MASTER, NrMode.PIPE_SLAVE):
        brace = b"{" if mode == NrMode.PIPE_MASTER else b"}"
        header.nr_name = header.nr_name + brace + str(ring).encode()
        mode, ring = NrMode.ALL_NIC, 0
    if ringid & NrRingid.NO_TX_POLL:
        flags |= NrFlag.NO_TX_POLL
    if ringid & NrRingid.DO_RX_POLL:
        flags |= NrFlag.DO_RX_POLL
    return NmreqRegister(
        nr_tx_slots=nmr.nr_tx_slots,
        nr_rx_slots=nmr.nr_rx_slots,
        nr_tx_rings=nmr.nr_tx_rings,
        nr_rx_rings=nmr.nr_rx_rings,
        nr_mem_id=nmr.nr_arg2,
        nr_ringid=ring,
        nr_mode=mode,
        nr_extra_bufs=nmr.nr_arg3,
        nr_flags=flags,
    )


def _fill_in(nmr: Nmreq, answer: NmreqRegister | NmreqPortInfoGet) -> None:
    nmr.nr_memsize = answer.nr_memsize
    nmr.nr_tx_slots, nmr.nr_rx_slots = answer.nr_tx_slots, answer.nr_rx_slots
    nmr.nr_tx_rings, nmr.nr_rx_rings = answer.nr_tx_rings, answer.nr_rx_rings
    nmr.nr_arg2 = answer.nr_mem_id
