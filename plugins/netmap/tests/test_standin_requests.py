"""What the stand-in answers to NIOCCTRL: results, errors, limits."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from ctypes import addressof

import pytest
from vnic_netmap.abi import (
    NETMAP_API,
    NIOCCTRL,
    NIOCTXSYNC,
    NetmapReq,
    NetmapReqOpt,
    NmreqHeader,
    NmreqOption,
    NmreqPortHdr,
    NmreqPortInfoGet,
    NmreqRegister,
    NmreqValeAttach,
    NmreqValeDetach,
    NmreqValeList,
    NmreqValeNewif,
    NrFlag,
    NrMode,
)
from vnic_netmap.testing import Client, StandIn, control, frame


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        yield
    assert caught.value.errno == number


@pytest.fixture
def fd(stand_in: StandIn) -> Iterator[int]:
    """A descriptor that is bound to nothing."""
    fd = stand_in.open()
    yield fd
    stand_in.close(fd)


# ---- the header ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [14, 15])
def test_versions_14_and_15_are_taken(stand_in: StandIn, fd: int, version: int) -> None:
    body = NmreqPortInfoGet()
    header = NmreqHeader(nr_version=version, nr_reqtype=2, nr_body=addressof(body))
    stand_in.ioctl(fd, NIOCCTRL, header)
    assert body.nr_mem_id == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"nr_version": 13},
        {"nr_version": 16},
        {"nr_reserved": 1},
        {"nr_reqtype": 0},
        {"nr_reqtype": 999},
        {"nr_body": 0},
    ],
)
def test_a_header_that_can_not_be_is_einval(
    stand_in: StandIn, fd: int, wrong: dict[str, int]
) -> None:
    body = NmreqPortInfoGet()
    right = {"nr_version": NETMAP_API, "nr_reqtype": 2, "nr_body": addressof(body)}
    with refused(errno.EINVAL):
        stand_in.ioctl(fd, NIOCCTRL, NmreqHeader(**(right | wrong)))


def test_a_body_that_nobody_has_is_efault(stand_in: StandIn, fd: int) -> None:
    header = NmreqHeader(nr_version=NETMAP_API, nr_reqtype=2, nr_body=8)
    with refused(errno.EFAULT):
        stand_in.ioctl(fd, NIOCCTRL, header)


def test_a_closed_descriptor_is_ebadf(stand_in: StandIn) -> None:
    fd = stand_in.open()
    stand_in.close(fd)
    with refused(errno.EBADF):
        stand_in.ioctl(fd, NIOCTXSYNC)


def test_an_unknown_option_is_eopnotsupp_with_its_status_filled_in_and_nothing_bound(
    stand_in: StandIn, fd: int
) -> None:
    second = NmreqOption(nro_reqtype=200)
    first = NmreqOption(nro_reqtype=NetmapReqOpt.CSB, nro_next=addressof(second))
    body = NmreqRegister(nr_mode=NrMode.ALL_NIC)
    header = NmreqHeader(
        nr_version=NETMAP_API,
        nr_reqtype=NetmapReq.REGISTER,
        nr_name=b"vale0:1",
        nr_options=addressof(first),
        nr_body=addressof(body),
    )
    with refused(errno.EOPNOTSUPP):
        stand_in.ioctl(fd, NIOCCTRL, header)
    assert (first.nro_status, second.nro_status) == (errno.EOPNOTSUPP, errno.EOPNOTSUPP)
    assert body.nr_memsize == 0
    with refused(errno.ENXIO):
        stand_in.ioctl(fd, NIOCTXSYNC)


def test_a_chain_of_options_that_is_a_loop_ends(stand_in: StandIn, fd: int) -> None:
    option = NmreqOption(nro_reqtype=1)
    option.nro_next = addressof(option)
    body = NmreqRegister(nr_mode=NrMode.ALL_NIC)
    header = NmreqHeader(
        nr_version=NETMAP_API,
        nr_reqtype=NetmapReq.REGISTER,
        nr_options=addressof(option),
        nr_body=addressof(body),
    )
    with refused(errno.EINVAL):
        stand_in.ioctl(fd, NIOCCTRL, header)


# ---- REGISTER ------------------------------------------------------------------------------------


def test_register_fills_in_what_was_left_open(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as client:
        request = client.request
        assert (request.nr_tx_slots, request.nr_rx_slots) == (1024, 1024)
        assert (request.nr_tx_rings, request.nr_rx_rings) == (1, 1)
        assert (request.nr_host_tx_rings, request.nr_host_rx_rings) == (0, 0)
        assert request.nr_mem_id > 1


def test_a_ring_has_4096_slots_at_the_most(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1", nr_tx_slots=5000, nr_rx_slots=4096) as client:
        assert (client.request.nr_tx_slots, client.request.nr_rx_slots) == (4096, 4096)
        assert client.tx[0].n_slots == 4096


@pytest.mark.parametrize("mode", [0, 5, 6, 9, 99])
def test_a_mode_that_can_not_be_is_einval(stand_in: StandIn, mode: int) -> None:
    with refused(errno.EINVAL):
        Client(stand_in, "vale0:1", mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [NrMode.SW, NrMode.NIC_SW, NrMode.ONE_SW])
def test_a_vale_port_has_no_host_rings(stand_in: StandIn, mode: NrMode) -> None:
    with refused(errno.EINVAL):
        Client(stand_in, "vale0:1", mode=mode)


def test_one_nic_binds_one_ring_each_way(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0", rings=4)
    with Client(stand_in, "eth0", mode=NrMode.ONE_NIC, nr_ringid=2) as client:
        assert [ring.ring_id for ring in client.tx] == [2]
        assert [ring.ring_id for ring in client.rx] == [2]
        assert [bool(offset) for offset in client.ring_offsets[:5]] == [0, 0, 1, 0, 0]


def test_a_ring_that_is_not_there_is_einval(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0", rings=4)
    with refused(errno.EINVAL):
        Client(stand_in, "eth0", mode=NrMode.ONE_NIC, nr_ringid=4)
    with refused(errno.EINVAL):
        Client(stand_in, "eth0", mode=NrMode.ONE_SW, nr_ringid=1)


def test_where_only_the_other_direction_has_the_ring_the_first_stands_in(
    stand_in: StandIn,
) -> None:
    with Client(
        stand_in, "vale0:1", mode=NrMode.ONE_NIC, nr_ringid=2, nr_tx_rings=3, nr_rx_rings=1
    ) as client:
        assert [ring.ring_id for ring in client.tx] == [2]
        assert [ring.ring_id for ring in client.rx] == [0]


def test_rings_of_one_direction_can_be_had_alone(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1", flags=NrFlag.RX_RINGS_ONLY) as client:
        assert (len(client.tx), len(client.rx)) == (0, 1)
    with Client(stand_in, "vale0:1", flags=NrFlag.TX_RINGS_ONLY) as client:
        assert (len(client.tx), len(client.rx)) == (1, 0)


def test_an_exclusive_ring_is_busy_for_others(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1", flags=NrFlag.EXCLUSIVE), refused(errno.EBUSY):
        Client(stand_in, "vale0:1")
    with Client(stand_in, "vale0:1"), refused(errno.EBUSY):
        Client(stand_in, "vale0:1", flags=NrFlag.EXCLUSIVE)
    with Client(stand_in, "vale0:1", flags=NrFlag.EXCLUSIVE):
        pass


def test_a_descriptor_is_bound_once(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as client, refused(errno.EBUSY):
        body = NmreqRegister(nr_mode=NrMode.ALL_NIC)
        control(stand_in, client.fd, NetmapReq.REGISTER, "vale0:2", body)


def test_an_interface_that_is_not_there_is_enxio(stand_in: StandIn) -> None:
    with refused(errno.ENXIO):
        Client(stand_in, "eth7")


def test_a_mem_id_that_nobody_has_is_einval(stand_in: StandIn) -> None:
    with refused(errno.EINVAL):
        Client(stand_in, "vale0:1", nr_mem_id=77)


def test_an_mtu_above_the_size_of_buffers_is_einval(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0", mtu=9000)
    stand_in.add_nic("eth1", mtu=2048)
    with refused(errno.EINVAL):
        Client(stand_in, "eth0")
    with Client(stand_in, "eth1"):
        pass


def test_what_a_module_may_be_built_without_is_eopnotsupp(stand_in: StandIn) -> None:
    with refused(errno.EOPNOTSUPP):
        Client(stand_in, "vale0:1", mode=NrMode.NULL)
    for flag in (NrFlag.MONITOR_TX, NrFlag.MONITOR_RX):
        with refused(errno.EOPNOTSUPP):
            Client(stand_in, "vale0:1", flags=flag)


# ---- names and limits ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vale", "vale0", "vale-0:1", "vale0123456789ab:1", "vale 0:1"])
def test_a_bad_switch_name_is_enomem(stand_in: StandIn, name: str) -> None:
    with refused(errno.ENOMEM):
        Client(stand_in, name)


def test_behind_the_colon_are_15_characters_at_the_most(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:" + 15 * "x"):
        pass
    with refused(errno.ENOMEM):
        Client(stand_in, "vale0:" + 16 * "x")


def test_there_are_8_switches_at_the_most(stand_in: StandIn) -> None:
    with ExitStack() as stack:
        for i in range(8):
            stack.enter_context(Client(stand_in, f"vale{i}:1", nr_tx_slots=8, nr_rx_slots=8))
        with refused(errno.ENOMEM):
            Client(stand_in, "vale8:1")
    with Client(stand_in, "vale8:1"):
        pass


def test_a_switch_has_254_ports_at_the_most(stand_in: StandIn) -> None:
    with ExitStack() as stack:
        mem_id = 0
        for i in range(255):
            fd = stand_in.open()
            stack.callback(stand_in.close, fd)
            body = NmreqRegister(nr_mode=NrMode.ALL_NIC, nr_tx_slots=1, nr_rx_slots=1)
            body.nr_mem_id = mem_id if i % 8 else 0  # 254 memories are many descriptors
            with refused(errno.ENOMEM) if i == 254 else nullcontext():
                control(stand_in, fd, NetmapReq.REGISTER, f"vale0:{i}", body)
            mem_id = body.nr_mem_id


def test_a_port_that_has_the_name_of_a_nic_means_the_nic_which_register_does_not_put_there(
    stand_in: StandIn,
) -> None:
    stand_in.add_nic("eth0")
    with refused(errno.EINVAL):
        Client(stand_in, "vale0:eth0")


@pytest.mark.parametrize("name", ["eth0{", "eth0}", "{1", "}1"])
def test_a_pipe_without_a_port_or_an_id_is_einval(stand_in: StandIn, name: str) -> None:
    with refused(errno.EINVAL):
        Client(stand_in, name)


# ---- PORT_INFO -----------------------------------------------------------------------------------


def test_port_info_tells_of_a_port_without_binding_it(stand_in: StandIn, fd: int) -> None:
    stand_in.add_nic("eth0", rings=3, slots=512, host_rings=2)
    body = NmreqPortInfoGet()
    control(stand_in, fd, NetmapReq.PORT_INFO_GET, "eth0", body)
    assert (body.nr_tx_slots, body.nr_rx_slots) == (512, 512)
    assert (body.nr_tx_rings, body.nr_rx_rings) == (3, 3)
    assert (body.nr_host_tx_rings, body.nr_host_rx_rings) == (2, 2)
    assert body.nr_mem_id == 1
    with refused(errno.ENXIO):
        stand_in.ioctl(fd, NIOCTXSYNC)


def test_port_info_of_nobody_is_enxio(stand_in: StandIn, fd: int) -> None:
    with refused(errno.ENXIO):
        control(stand_in, fd, NetmapReq.PORT_INFO_GET, "eth0", NmreqPortInfoGet())


# ---- virtio-net headers --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 10, 12])
def test_a_header_has_0_10_or_12_bytes(stand_in: StandIn, n: int) -> None:
    with Client(stand_in, "vale0:1") as client:
        client.set_header(n)
        assert client.header() == n


@pytest.mark.parametrize("n", [1, 8, 11, 13, 20])
def test_a_header_of_another_length_is_einval(stand_in: StandIn, n: int) -> None:
    with Client(stand_in, "vale0:1") as client, refused(errno.EINVAL):
        client.set_header(n)


def test_the_port_whose_header_is_set_or_got_must_exist(stand_in: StandIn, fd: int) -> None:
    for kind in (NetmapReq.PORT_HDR_SET, NetmapReq.PORT_HDR_GET):
        with refused(errno.ENXIO):
            control(stand_in, fd, kind, "vale0:1", NmreqPortHdr(nr_hdr_len=12))


def test_a_nic_has_no_header_and_none_can_be_set(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0")
    with Client(stand_in, "eth0") as client:
        assert client.header() == 0
        with refused(errno.ENXIO):
            client.set_header(12)


def test_a_pipe_has_no_header_and_none_can_be_set(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1{1") as client:
        assert client.header() == 0
        with refused(errno.ENXIO):
            client.set_header(12)


def test_a_port_that_has_a_header_is_eio_to_who_does_not_accept_one(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as client:
        client.set_header(10)
        with refused(errno.EIO):
            Client(stand_in, "vale0:1")
        with Client(stand_in, "vale0:1", flags=NrFlag.ACCEPT_VNET_HDR) as second:
            assert second.header() == 10


def test_an_ephemeral_port_goes_back_to_no_header(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as client:
        client.set_header(12)
    with Client(stand_in, "vale0:1") as client:
        assert client.header() == 0


def test_a_persistent_port_keeps_its_header(stand_in: StandIn, fd: int) -> None:
    control(stand_in, fd, NetmapReq.VALE_NEWIF, "v0", NmreqValeNewif())
    control(stand_in, fd, NetmapReq.VALE_ATTACH, "vale0:v0", NmreqValeAttach())
    with Client(stand_in, "vale0:v0") as client:
        client.set_header(12)
    with refused(errno.EIO):
        Client(stand_in, "vale0:v0")
    with Client(stand_in, "vale0:v0", flags=NrFlag.ACCEPT_VNET_HDR) as client:
        assert client.header() == 12


# ---- switches ------------------------------------------------------------------------------------


def test_list_finds_a_port_by_its_name(stand_in: StandIn, fd: int) -> None:
    with Client(stand_in, "vale0:1"), Client(stand_in, "vale1:x"), Client(stand_in, "vale1:y"):
        body = NmreqValeList()
        control(stand_in, fd, NetmapReq.VALE_LIST, "vale1:y", body)
        assert (body.nr_bridge_idx, body.nr_port_idx) == (1, 1)
        with refused(errno.ENOENT):
            control(stand_in, fd, NetmapReq.VALE_LIST, "vale2:y", body)
        with refused(errno.EINVAL):
            control(stand_in, fd, NetmapReq.VALE_LIST, "eth0", body)


def test_list_walks_all_ports_of_all_switches(stand_in: StandIn, fd: int) -> None:
    names = ["vale0:1", "vale0:2", "valex:1"]
    found = []
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(Client(stand_in, name))
        body = NmreqValeList()
        with refused(errno.ENOENT):
            while True:
                header = control(stand_in, fd, NetmapReq.VALE_LIST, "", body)
                found.append(header.nr_name.decode())
                body.nr_port_idx += 1
    assert found == names


def test_a_nic_can_be_put_on_a_switch_and_taken_off(stand_in: StandIn, fd: int) -> None:
    nic = stand_in.add_nic("eth0")
    control(stand_in, fd, NetmapReq.VALE_ATTACH, "vale0:eth0", NmreqValeAttach())
    with refused(errno.EBUSY):
        control(stand_in, fd, NetmapReq.VALE_ATTACH, "vale0:eth0", NmreqValeAttach())
    with refused(errno.EBUSY):
        Client(stand_in, "eth0")
    with Client(stand_in, "vale0:1") as client:
        client.send(frame(0, 1))
        nic.from_wire(frame(1, 9))
        assert client.receive() == [frame(1, 9)]
    assert list(nic.to_wire) == [frame(0, 1)]
    control(stand_in, fd, NetmapReq.VALE_DETACH, "vale0:eth0", NmreqValeDetach())
    with refused(errno.ENXIO):
        control(stand_in, fd, NetmapReq.VALE_DETACH, "vale0:eth0", NmreqValeDetach())
    with Client(stand_in, "eth0"):
        pass


def test_the_host_can_be_put_on_the_switch_with_its_nic(stand_in: StandIn, fd: int) -> None:
    nic = stand_in.add_nic("eth0")
    body = NmreqValeAttach(reg=NmreqRegister(nr_mode=NrMode.NIC_SW))
    control(stand_in, fd, NetmapReq.VALE_ATTACH, "vale0:eth0", body)
    nic.from_host(frame(0, 3))
    nic.from_wire(frame(3, 4))
    assert list(nic.to_wire) == [frame(0, 3)]
    assert list(nic.to_host) == [frame(3, 4)]
    control(stand_in, fd, NetmapReq.VALE_DETACH, "vale0:eth0", NmreqValeDetach())


def test_a_port_that_is_no_interface_can_not_be_attached(stand_in: StandIn, fd: int) -> None:
    with refused(errno.EINVAL):
        control(stand_in, fd, NetmapReq.VALE_ATTACH, "vale0:1", NmreqValeAttach())


def test_newif_makes_a_port_that_stays_until_delif(stand_in: StandIn, fd: int) -> None:
    body = NmreqValeNewif(nr_tx_slots=64)
    control(stand_in, fd, NetmapReq.VALE_NEWIF, "v0", body)
    assert (body.nr_tx_slots, body.nr_rx_slots) == (64, 1024)
    with refused(errno.EEXIST):
        control(stand_in, fd, NetmapReq.VALE_NEWIF, "v0", body)
    with Client(stand_in, "v0"), refused(errno.EBUSY):
        control(stand_in, fd, NetmapReq.VALE_DELIF, "v0")
    control(stand_in, fd, NetmapReq.VALE_DELIF, "v0")
    with refused(errno.ENXIO):
        control(stand_in, fd, NetmapReq.VALE_DELIF, "v0")


def test_newif_makes_nothing_of_a_switchs_name_and_delif_deletes_no_nic(
    stand_in: StandIn, fd: int
) -> None:
    stand_in.add_nic("eth0")
    with refused(errno.EINVAL):
        control(stand_in, fd, NetmapReq.VALE_NEWIF, "vale0:1", NmreqValeNewif())
    with refused(errno.EINVAL):
        control(stand_in, fd, NetmapReq.VALE_DELIF, "eth0")


def test_the_name_in_the_header_ends_at_its_64th_byte(stand_in: StandIn, fd: int) -> None:
    header = NmreqHeader(nr_version=NETMAP_API, nr_reqtype=NetmapReq.PORT_INFO_GET)
    body = NmreqPortInfoGet()
    header.nr_body = addressof(body)
    ctypes.memset(addressof(header) + NmreqHeader.nr_name.offset, ord("x"), 64)
    with refused(errno.ENXIO):
        stand_in.ioctl(fd, NIOCCTRL, header)
