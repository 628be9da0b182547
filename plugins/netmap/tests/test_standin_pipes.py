"""Pipes of the stand-in: both ends, back-pressure, buffers that travel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vnic_netmap.abi import NetmapReq, NmreqPortInfoGet, NrMode
from vnic_netmap.testing import Client, StandIn, control, frame

MOREFRAG = 0x20


@pytest.fixture(params=["eth0", "vale0:1", "nowhere"])
def ends(stand_in: StandIn, request: pytest.FixtureRequest) -> Iterator[tuple[Client, Client]]:
    """Both ends of a pipe: of a NIC, of a switch's port, of an interface that isn't there."""
    stand_in.add_nic("eth0")
    name = request.param
    with Client(stand_in, f"{name}{{1") as master, Client(stand_in, f"{name}}}1") as slave:
        yield master, slave


def test_what_one_end_sends_the_other_receives(ends: tuple[Client, Client]) -> None:
    for sender, receiver in (ends, ends[::-1]):
        sent = [frame(1, 2, n) for n in range(14, 200)]
        assert sender.send(*sent) == len(sent)
        assert receiver.receive() == sent


def test_a_pipe_pushes_back_and_loses_nothing(ends: tuple[Client, Client]) -> None:
    sender, receiver = ends
    sent = [frame(1, 2, 60 + i % 500) for i in range(3069)]
    n, got = 0, []
    for _ in range(10):
        n += sender.send(*sent[n:])
        assert sender.send(frame(1, 2)) == 0 or n == len(sent)
        got += receiver.receive()
        sender.txsync()
    assert got[: len(sent)] == sent


def test_buffers_travel_and_come_back(ends: tuple[Client, Client]) -> None:
    sender, receiver = ends
    buf_idx = sender.tx[0].slot(0)[0]
    sender.send(frame(1, 2))
    receiver.rxsync()
    assert receiver.rx[0].slot(0)[0] == buf_idx
    other = receiver.rx[0].slot(5)[0]
    receiver.rx[0].set_slot(0, buf_idx=other, flags=1)
    receiver.rx[0].take()
    receiver.rxsync()
    assert sender.tx[0].slot(0)[0] == other


def test_only_whole_frames_are_shown(ends: tuple[Client, Client]) -> None:
    sender, receiver = ends
    ring = sender.tx[0]
    ring.put([frame(1, 2), b"b", b"c"])
    ring.head = ring.cur = 2
    sender.txsync()
    assert receiver.receive() == []
    ring.head = ring.cur = 3
    sender.txsync()
    assert receiver.receive_fragments() == [[frame(1, 2), b"b", b"c"]]


def test_a_frame_of_any_length_passes_even_a_bad_one(ends: tuple[Client, Client]) -> None:
    sender, receiver = ends
    sender.send(b"x", b"")
    assert receiver.receive() == [b"x", b""]


def test_both_ends_have_their_names(ends: tuple[Client, Client]) -> None:
    master, slave = ends
    assert master.netmap_if.ni_name == master.name.encode()
    assert slave.netmap_if.ni_name == slave.name.encode()


def test_both_ends_share_their_parents_memory(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as parent, Client(stand_in, "vale0:1{x") as end:
        assert end.request.nr_mem_id == parent.request.nr_mem_id


def test_an_end_is_there_before_the_other(stand_in: StandIn) -> None:
    with Client(stand_in, "eth7}2") as slave:
        slave.send(frame(1, 2))
        with Client(stand_in, "eth7{2") as master:
            assert master.receive() == [frame(1, 2)]
        slave.send(frame(1, 2))
        with Client(stand_in, "eth7{2") as master:
            assert master.receive() == [frame(1, 2)]


def test_pipes_of_one_port_are_apart(stand_in: StandIn) -> None:
    with (
        Client(stand_in, "x{1") as one,
        Client(stand_in, "x}1") as one_end,
        Client(stand_in, "x{2"),
        Client(stand_in, "x}2") as two_end,
    ):
        one.send(frame(1, 2))
        assert two_end.receive() == []
        assert one_end.receive() == [frame(1, 2)]


def test_the_rings_of_one_end_are_those_of_the_other_in_the_opposite_direction(
    stand_in: StandIn,
) -> None:
    with (
        Client(stand_in, "x{1", nr_tx_slots=64, nr_rx_slots=32, nr_tx_rings=2) as master,
        Client(stand_in, "x}1") as slave,
    ):
        assert [ring.n_slots for ring in slave.rx] == [64, 64]
        assert [ring.n_slots for ring in slave.tx] == [32]
        master.send(frame(1, 2), ring=1)
        assert [slave.receive(0), slave.receive(1)] == [[], [frame(1, 2)]]


@pytest.mark.parametrize("mode", [NrMode.SW, NrMode.NIC_SW])
def test_a_pipe_has_no_host_rings(stand_in: StandIn, mode: NrMode) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        Client(stand_in, "x{1", mode=mode)


def test_an_interface_that_was_made_for_a_pipe_goes_with_it(stand_in: StandIn) -> None:
    fd = stand_in.open()
    with Client(stand_in, "nowhere{1"):
        control(stand_in, fd, NetmapReq.PORT_INFO_GET, "nowhere", NmreqPortInfoGet())
    with pytest.raises(OSError, match="No such device"):
        control(stand_in, fd, NetmapReq.PORT_INFO_GET, "nowhere", NmreqPortInfoGet())
    stand_in.close(fd)
