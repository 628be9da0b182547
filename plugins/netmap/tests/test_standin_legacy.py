"""The stand-in as an old module, and as FreeBSD's: legacy requests, other numbers."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import addressof

import pytest
from vnic_netmap.abi import (
    NETMAP_API,
    NIOCCTRL,
    NIOCGINFO,
    NIOCREGIF,
    NIOCTXSYNC,
    NetmapReq,
    Nmreq,
    NmreqHeader,
    NmreqOption,
    NmreqPortInfoGet,
    NmreqRegister,
    NrCmd,
    NrFlag,
    NrMode,
    NrRingid,
)
from vnic_netmap.testing import Client, StandIn, control

LINUX_TXSYNC, LINUX_RXSYNC = 0x6994, 0x6995
FREEBSD_TXSYNC, FREEBSD_RXSYNC = 0x2000_6994, 0x2000_6995


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
        yield
    assert caught.value.errno == number


@contextmanager
def regif(stand_in: StandIn, name: bytes, **fields: int) -> Iterator[tuple[int, Nmreq]]:
    """Register by the legacy request; give the descriptor and what came back."""
    fd = stand_in.open()
    try:
        nmr = Nmreq(nr_name=name, **({"nr_version": NETMAP_API} | fields))
        stand_in.ioctl(fd, NIOCREGIF, nmr)
        yield fd, nmr
    finally:
        stand_in.close(fd)


def ring_offsets(stand_in: StandIn, fd: int, nmr: Nmreq) -> list[int]:
    """Return the ring_ofs[] of what is bound."""
    n = nmr.nr_tx_rings + nmr.nr_rx_rings + 2
    with stand_in.mmap(fd, nmr.nr_memsize) as mapping:
        at = nmr.nr_offset + 56
        with memoryview(mapping)[at : at + 8 * n] as view:
            return view.cast("q").tolist()


def name_in_memory(stand_in: StandIn, fd: int, nmr: Nmreq) -> bytes:
    with stand_in.mmap(fd, nmr.nr_memsize) as mapping:
        return mapping[nmr.nr_offset :][:16].partition(b"\0")[0]


def test_regif_fills_in_the_request(stand_in: StandIn) -> None:
    with regif(stand_in, b"vale0:1", nr_tx_slots=256, nr_arg3=2) as (fd, nmr):
        assert (nmr.nr_tx_slots, nmr.nr_rx_slots) == (256, 1024)
        assert (nmr.nr_tx_rings, nmr.nr_rx_rings) == (1, 1)
        assert nmr.nr_arg2 > 1
        assert nmr.nr_arg3 == 2
        assert name_in_memory(stand_in, fd, nmr) == b"vale0:1"


def test_regif_and_niocctrl_bind_the_same_port(stand_in: StandIn) -> None:
    with regif(stand_in, b"vale0:1") as (_, nmr), Client(stand_in, "vale0:1") as client:
        assert client.request.nr_mem_id == nmr.nr_arg2


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({}, [1, 1, 0, 1, 1, 0]),
        ({"nr_flags": NrMode.ALL_NIC}, [1, 1, 0, 1, 1, 0]),
        ({"nr_ringid": NrRingid.SW_RING}, [0, 0, 1, 0, 0, 1]),
        ({"nr_ringid": NrRingid.HW_RING | 1}, [0, 1, 0, 0, 1, 0]),
        ({"nr_flags": NrMode.NIC_SW}, [1, 1, 1, 1, 1, 1]),
        ({"nr_flags": NrMode.ONE_NIC, "nr_ringid": 1}, [0, 1, 0, 0, 1, 0]),
        ({"nr_flags": NrMode.ALL_NIC | NrFlag.RX_RINGS_ONLY}, [0, 0, 0, 1, 1, 0]),
    ],
)
def test_the_mode_is_in_nr_flags_or_else_in_bits_of_nr_ringid(
    stand_in: StandIn, fields: dict[str, int], bound: list[int]
) -> None:
    stand_in.add_nic("eth0", rings=2)
    with regif(stand_in, b"eth0", **fields) as (fd, nmr):
        assert [bool(offset) for offset in ring_offsets(stand_in, fd, nmr)] == bound


def test_pipes_are_a_mode_and_their_id_is_the_ringid(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0")
    with (
        regif(stand_in, b"eth0", nr_flags=NrMode.PIPE_MASTER, nr_ringid=7) as (one, nmr_one),
        regif(stand_in, b"eth0", nr_flags=NrMode.PIPE_SLAVE, nr_ringid=7) as (two, nmr_two),
    ):
        assert name_in_memory(stand_in, one, nmr_one) == b"eth0{7"
        assert name_in_memory(stand_in, two, nmr_two) == b"eth0}7"


def test_legacy_names_are_cut_at_15_in_silence(stand_in: StandIn) -> None:
    with regif(stand_in, b"vale0:1234567890") as (fd, nmr):
        assert name_in_memory(stand_in, fd, nmr) == b"vale0:123456789"


def test_command_5_sets_the_header_and_12_gets_it(stand_in: StandIn) -> None:
    with regif(stand_in, b"vale0:1") as (fd, _):
        request = {"nr_name": b"vale0:1", "nr_version": NETMAP_API}
        stand_in.ioctl(fd, NIOCREGIF, Nmreq(nr_cmd=NrCmd.BDG_VNET_HDR, nr_arg1=10, **request))
        nmr = Nmreq(nr_cmd=NrCmd.VNET_HDR_GET, **request)
        stand_in.ioctl(fd, NIOCREGIF, nmr)
        assert nmr.nr_arg1 == 10
        with refused(errno.EIO), regif(stand_in, b"vale0:1"):
            pass
        with regif(stand_in, b"vale0:1", nr_flags=NrMode.ALL_NIC | NrFlag.ACCEPT_VNET_HDR):
            pass


def test_ginfo_tells_of_a_port_without_binding_it(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0", rings=2, slots=512)
    fd = stand_in.open()
    nmr = Nmreq(nr_name=b"eth0", nr_version=NETMAP_API)
    stand_in.ioctl(fd, NIOCGINFO, nmr)
    assert (nmr.nr_tx_slots, nmr.nr_rx_slots, nmr.nr_tx_rings, nmr.nr_arg2) == (512, 512, 2, 1)
    with refused(errno.ENXIO):
        stand_in.ioctl(fd, NIOCTXSYNC)
    stand_in.close(fd)


def test_a_version_before_14_is_einval(stand_in: StandIn) -> None:
    with refused(errno.EINVAL), regif(stand_in, b"vale0:1", nr_version=13):
        pass


def test_no_tx_poll_is_a_bit_of_nr_ringid(stand_in: StandIn) -> None:
    for ringid, n in ((0, 1), (NrRingid.NO_TX_POLL, 0)):
        nic = stand_in.add_nic(f"eth{n}")
        with regif(stand_in, f"eth{n}".encode(), nr_ringid=ringid) as (fd, nmr):
            tx = nmr.nr_offset + ring_offsets(stand_in, fd, nmr)[0]
            with stand_in.mmap(fd, nmr.nr_memsize) as mapping:
                mapping[tx + 20] = mapping[tx + 24] = 1  # head and cur: the first slot is to go
                stand_in.poll(fd, 1)
        assert len(nic.to_wire) == n


def test_an_old_module_knows_no_niocctrl_but_the_rest() -> None:
    with StandIn(control=False) as stand_in:
        with refused(errno.EOPNOTSUPP):
            Client(stand_in, "vale0:1")
        with regif(stand_in, b"vale0:1", nr_version=11) as (fd, _):
            stand_in.ioctl(fd, LINUX_TXSYNC)


# ---- FreeBSD -------------------------------------------------------------------------------------


@pytest.fixture
def freebsd() -> Iterator[StandIn]:
    with StandIn(platform="freebsd") as stand_in:
        yield stand_in


def test_freebsd_has_other_numbers_for_the_syncs(freebsd: StandIn, stand_in: StandIn) -> None:
    for system, right, wrong in (
        (stand_in, (LINUX_TXSYNC, LINUX_RXSYNC), FREEBSD_TXSYNC),
        (freebsd, (FREEBSD_TXSYNC, FREEBSD_RXSYNC), LINUX_TXSYNC),
    ):
        with Client(system, "vale0:1") as client:
            for number in right:
                system.ioctl(client.fd, number)
            with pytest.raises(OSError, match=r".") as caught:
                system.ioctl(client.fd, wrong)
            assert caught.value.errno == (errno.ENXIO if system is freebsd else errno.EOPNOTSUPP)


def test_freebsd_has_another_number_for_eopnotsupp(freebsd: StandIn) -> None:
    option = NmreqOption(nro_reqtype=1)
    body = NmreqRegister(nr_mode=NrMode.ALL_NIC)
    header = NmreqHeader(
        nr_version=NETMAP_API,
        nr_reqtype=NetmapReq.REGISTER,
        nr_name=b"vale0:1",
        nr_options=addressof(option),
        nr_body=addressof(body),
    )
    fd = freebsd.open()
    with refused(45):
        freebsd.ioctl(fd, NIOCCTRL, header)
    assert option.nro_status == 45
    freebsd.close(fd)


def test_freebsd_has_the_same_structs_and_numbers_otherwise(freebsd: StandIn) -> None:
    with Client(freebsd, "vale0:1") as client:
        control(freebsd, client.fd, NetmapReq.PORT_INFO_GET, "vale0:1", NmreqPortInfoGet())
    with regif(freebsd, b"vale0:1"):
        pass


def test_an_error_says_what_it_is(stand_in: StandIn) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        Client(stand_in, "eth0")
