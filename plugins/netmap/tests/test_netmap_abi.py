"""The structs and numbers are those that were read off the module."""

from __future__ import annotations

import ctypes

import pytest
from vnic_netmap import abi
from vnic_netmap.abi import (
    NetmapIf,
    NetmapRing,
    NetmapSlot,
    Nmreq,
    NmreqHeader,
    NmreqOption,
    NmreqPortHdr,
    NmreqRegister,
)

LAYOUTS = [
    (
        NmreqHeader,
        88,
        "nr_version 0:2 nr_reqtype 2:2 nr_reserved 4:4 nr_name 8:64 nr_options 72:8 nr_body 80:8",
    ),
    (
        NmreqRegister,
        56,
        (
            "nr_offset 0:8 nr_memsize 8:8 nr_tx_slots 16:4 nr_rx_slots 20:4 nr_tx_rings 24:2 "
            "nr_rx_rings 26:2 nr_host_tx_rings 28:2 nr_host_rx_rings 30:2 nr_mem_id 32:2 "
            "nr_ringid 34:2 nr_mode 36:4 nr_extra_bufs 40:4 pad1 44:4 nr_flags 48:8"
        ),
    ),
    (NmreqPortHdr, 8, "nr_hdr_len 0:4"),
    (NmreqOption, 24, "nro_next 0:8 nro_reqtype 8:4 nro_status 12:4 nro_size 16:8"),
    (
        Nmreq,
        60,
        (
            "nr_name 0:16 nr_version 16:4 nr_offset 20:4 nr_memsize 24:4 nr_tx_slots 28:4 "
            "nr_rx_slots 32:4 nr_tx_rings 36:2 nr_rx_rings 38:2 nr_ringid 40:2 nr_cmd 42:2 "
            "nr_arg1 44:2 nr_arg2 46:2 nr_arg3 48:4 nr_flags 52:4 spare2 56:4"
        ),
    ),
    (
        NetmapIf,
        56,
        (
            "ni_name 0:16 ni_version 16:4 ni_flags 20:4 ni_tx_rings 24:4 ni_rx_rings 28:4 "
            "ni_bufs_head 32:4 ni_host_tx_rings 36:4 ni_host_rx_rings 40:4 ni_spare1 44:12"
        ),
    ),
    (
        NetmapRing,
        256,
        (
            "buf_ofs 0:8 num_slots 8:4 nr_buf_size 12:4 ringid 16:2 dir 18:2 head 20:4 cur 24:4 "
            "tail 28:4 flags 32:4 ts_sec 40:8 ts_usec 48:8 offset_mask 56:8 buf_align 64:8 "
            "sem 128:128"
        ),
    ),
    (NetmapSlot, 16, "buf_idx 0:4 len 4:2 flags 6:2 ptr 8:8"),
]


@pytest.mark.parametrize(("struct", "size", "fields"), LAYOUTS, ids=lambda value: str(value)[:40])
def test_each_field_is_where_the_module_has_it(
    struct: type[ctypes.Structure], size: int, fields: str
) -> None:
    assert ctypes.sizeof(struct) == size
    for word, place in zip(fields.split()[::2], fields.split()[1::2], strict=True):
        field = getattr(struct, word)
        assert f"{field.offset}:{field.size}" == place, word


def test_the_requests_have_the_numbers_of_both_systems() -> None:
    assert (abi.NIOCGINFO, abi.NIOCREGIF, abi.NIOCCTRL) == (0xC03C6991, 0xC03C6992, 0xC0586997)
    assert [abi._io(number, "linux") for number in (148, 149)] == [0x6994, 0x6995]
    assert [abi._io(number, "freebsd14") for number in (148, 149)] == [0x20006994, 0x20006995]
