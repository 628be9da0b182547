"""What a test can have go wrong in the stand-in, and that nothing breaks or leaks by it."""

from __future__ import annotations

import errno
import gc
import select
from collections.abc import Iterator
from contextlib import suppress
from ctypes import addressof
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic_netmap.abi import (
    NETMAP_API,
    NIOCCTRL,
    NIOCRXSYNC,
    NIOCTXSYNC,
    NetmapReq,
    NmreqHeader,
    NmreqRegister,
    NrFlag,
    NrMode,
)
from vnic_netmap.testing import Client, StandIn, frame

ANY = select.POLLIN | select.POLLOUT


# ---- injected ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", ["open", "mmap", NIOCCTRL, NetmapReq.REGISTER], ids=["open", "mmap", "ctrl", "register"]
)
def test_a_call_fails_as_often_as_it_was_told_to(stand_in: StandIn, call: int | NetmapReq) -> None:
    stand_in.fail(call, errno.EACCES, times=2)
    for _ in range(2):
        with pytest.raises(OSError, match="Permission denied"):
            Client(stand_in, "vale0:1")
    with Client(stand_in, "vale0:1"):
        pass


@pytest.mark.parametrize("request_", [NIOCTXSYNC, NIOCRXSYNC])
def test_a_sync_that_fails_moves_nothing(stand_in: StandIn, request_: int) -> None:
    with Client(stand_in, "vale0:1") as one, Client(stand_in, "vale0:2") as two:
        one.tx[0].put([frame(0, 1)])
        two.send(frame(0, 2))
        stand_in.fail(request_, errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            stand_in.ioctl(one.fd, request_)
        assert one.rx[0].tail == 0
        assert two.receive() == []
        one.txsync()
        assert one.receive() == [frame(0, 2)]
        assert two.receive() == [frame(0, 1)]


def test_failures_come_in_the_order_in_which_they_were_told(stand_in: StandIn) -> None:
    for number in (errno.ENOENT, errno.EACCES):
        stand_in.fail("open", number)
    with pytest.raises(FileNotFoundError):
        stand_in.open()
    with pytest.raises(PermissionError):
        stand_in.open()


@pytest.mark.parametrize("byte", [0x00, 0xA5, 0xFF])
@pytest.mark.parametrize("name", ["vale0:1", "eth0", "x{1"])
def test_rings_that_were_scribbled_over_hurt_nobody_else(
    stand_in: StandIn, name: str, byte: int
) -> None:
    nic = stand_in.add_nic("eth0")
    with (
        Client(stand_in, name) as victim,
        Client(stand_in, "vale0:2") as two,
        Client(stand_in, "vale0:3") as three,
    ):
        two.send(frame(0, 2))
        nic.from_wire(frame(0, 9))
        stand_in.scribble(victim.fd, byte)
        error = select.POLLERR if byte else 0  # all zeroes could be meant
        assert stand_in.poll(victim.fd, ANY) & select.POLLERR == error
        for _ in range(3):
            victim.txsync()
            victim.rxsync()
            two.send(frame(0, 2))
        assert three.receive() == [frame(0, 2)] * 4


# ---- random rings --------------------------------------------------------------------------------

SLOTS = 8
U32 = st.one_of(st.integers(0, 2 * SLOTS), st.integers(0, 0xFFFF_FFFF))
SLOT = st.fixed_dictionaries(
    {},
    optional={
        "buf_idx": U32,
        "length": st.one_of(st.integers(0, 80), st.integers(0, 65535)),
        "flags": st.integers(0, 65535),
        "ptr": st.one_of(st.just(0), st.integers(0, (1 << 64) - 1)),
    },
)
STEP = st.tuples(
    st.sampled_from(["vale0:1", "vale0:2", "vale0:3", "eth0", "x{1", "x}1"]),
    st.sampled_from(["tx", "rx"]),
    st.one_of(st.none(), st.tuples(st.integers(0, SLOTS - 1), SLOT)),
    st.one_of(st.none(), U32),
    st.one_of(st.none(), U32),
)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEP, max_size=40), lengths=st.tuples(*[st.sampled_from([0, 10, 12])] * 3))
def test_whatever_user_space_writes_no_call_raises_and_no_other_memory_changes(
    steps: list[tuple[str, str, tuple[int, dict[str, int]] | None, int | None, int | None]],
    lengths: tuple[int, int, int],
) -> None:
    with StandIn() as stand_in:
        nic = stand_in.add_nic("eth0", slots=SLOTS)
        clients = {}
        for name in ("vale0:1", "vale0:2", "vale0:3", "eth0", "x{1", "x}1"):
            clients[name] = Client(
                stand_in,
                name,
                flags=NrFlag.ACCEPT_VNET_HDR,
                nr_tx_slots=SLOTS,
                nr_rx_slots=SLOTS,
            )
        for i, n in enumerate(lengths, 1):
            clients[f"vale0:{i}"].set_header(n)
        bystander = Client(stand_in, "vale1:1", nr_tx_slots=SLOTS, nr_rx_slots=SLOTS)
        before = bytes(bystander.view[: 1 << 20])
        for name, direction, slot, head, cur in steps:
            client = clients[name]
            ring = (client.tx if direction == "tx" else client.rx)[0]
            if slot is not None:
                ring.set_slot(slot[0], **slot[1])
            if head is not None:
                ring.head = head
            if cur is not None:
                ring.cur = cur
            nic.from_wire(frame(1, 9))
            client.txsync()
            client.rxsync()
            stand_in.poll(client.fd, ANY)
            assert ring.tail < SLOTS
        assert bytes(bystander.view[: 1 << 20]) == before
        for client in (*clients.values(), bystander):
            client.close()


@settings(max_examples=300, deadline=None)
@given(
    kind=st.integers(0, 12),
    name=st.one_of(
        st.sampled_from([b"vale0:1", b"vale0:eth0", b"eth0", b"v0", b"x{1", b"vale0:1}2", b""]),
        st.binary(max_size=63),
    ),
    content=st.binary(min_size=64, max_size=64),
    mode=st.integers(0, 9),
    mem_id=st.integers(0, 4),
)
def test_any_request_is_answered_or_refused(
    kind: int, name: bytes, content: bytes, mode: int, mem_id: int
) -> None:
    body = NmreqRegister.from_buffer_copy(content)
    body.nr_mode, body.nr_mem_id, body.nr_extra_bufs = mode, mem_id, body.nr_extra_bufs & 0xFFFF
    with StandIn() as stand_in:
        stand_in.add_nic("eth0")
        fd, other = stand_in.open(), stand_in.open()
        for descriptor in (fd, other):
            for each in (kind, NetmapReq.VALE_NEWIF, NetmapReq.VALE_ATTACH, kind):
                header = NmreqHeader(nr_version=NETMAP_API, nr_reqtype=each)
                header.nr_name = name.split(b"\0")[0]
                header.nr_body = 0 if each == NetmapReq.VALE_DELIF else addressof(body)
                with suppress(OSError):
                    stand_in.ioctl(descriptor, NIOCCTRL, header)
        stand_in.close(fd)
        stand_in.close(other)


@pytest.mark.parametrize("n_extra", [0, 40])
def test_a_port_that_its_memory_has_no_room_for_is_enomem_and_takes_none(
    stand_in: StandIn, n_extra: int
) -> None:
    with Client(stand_in, "vale0:1", nr_tx_slots=8, nr_rx_slots=8, nr_extra_bufs=n_extra) as one:
        mem_id = one.request.nr_mem_id
        for _ in range(50):
            with pytest.raises(OSError, match="Cannot allocate memory"):
                Client(stand_in, "vale0:2", nr_mem_id=mem_id, nr_tx_slots=4096, nr_rx_slots=64)
        with Client(stand_in, "vale0:2", nr_mem_id=mem_id) as two:
            two.send(frame(0, 2))
            assert one.receive() == [frame(0, 2)]


# ---- nothing is left -----------------------------------------------------------------------------


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    def held() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        return len(list(Path("/proc/self/fd").iterdir())), maps.count("memfd:netmap")

    before = held()
    yield
    assert held() == before


@pytest.mark.usefixtures("nothing_is_left")
def test_nothing_is_left_of_a_stand_in() -> None:
    for _ in range(3):
        with StandIn() as stand_in:
            stand_in.add_nic("eth0")
            for name in ("vale0:1", "vale1:1", "eth0", "eth0{1", "x}2"):
                with Client(stand_in, name) as client:
                    client.send(frame(0, 1))


@pytest.mark.usefixtures("nothing_is_left")
def test_nothing_is_left_of_requests_that_fail() -> None:
    with StandIn() as stand_in:
        stand_in.add_nic("eth0", mtu=9000)
        for name, mode in (
            ("eth0", NrMode.ALL_NIC),
            ("eth1", NrMode.ALL_NIC),
            ("vale0:1", NrMode.SW),
            ("vale0:eth0", NrMode.ALL_NIC),
            ("vale", NrMode.ALL_NIC),
            ("y{1", NrMode.SW),
            ("y{", NrMode.ALL_NIC),
            ("vale0:1{2", NrMode.NIC_SW),
        ):
            for _ in range(20):
                with pytest.raises(OSError, match=r"."):
                    Client(stand_in, name, mode=mode)
        assert stand_in.left_open == []


@pytest.mark.usefixtures("nothing_is_left")
def test_nothing_is_left_of_a_stand_in_that_ends_first() -> None:
    stand_in = StandIn()
    client = Client(stand_in, "vale0:1")
    stand_in.shut_down()
    client.view[0] = 1  # still mapped, as long as user space wants
    client.view.release()
    client.mapping.close()
