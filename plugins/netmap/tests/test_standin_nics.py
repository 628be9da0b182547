"""NICs of the stand-in, as the module emulates them, and their hosts."""

from __future__ import annotations

import errno
import select

import pytest
from vnic_netmap.abi import NIOCRXSYNC, NIOCTXSYNC, NrMode
from vnic_netmap.testing import Client, StandIn, frame


def test_frames_go_out_on_the_wire_and_come_in_from_it(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0")
    with Client(stand_in, "eth0") as client:
        sent = [frame(1, 2, n) for n in (14, 60, 1514, 2048)]
        client.send(*sent)
        assert list(nic.to_wire) == sent
        for one in sent:
            nic.from_wire(one)
        assert client.receive() == sent


def test_fragments_leave_as_frames_of_their_own(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0")
    with Client(stand_in, "eth0") as client:
        client.send([frame(1, 2), b"second", b"third"])
        assert list(nic.to_wire) == [frame(1, 2), b"second", b"third"]


def test_each_ring_receives_what_the_nic_sorts_into_it(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0", rings=2)
    with Client(stand_in, "eth0") as client:
        nic.from_wire(frame(1, 2), ring=1)
        assert client.receive(0) == []
        assert client.receive(1) == [frame(1, 2)]


def test_who_has_one_ring_gets_that_and_the_host_the_others(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0", rings=2)
    with Client(stand_in, "eth0", mode=NrMode.ONE_NIC, nr_ringid=1) as client:
        nic.from_wire(frame(1, 2), ring=0)
        nic.from_wire(frame(1, 3), ring=1)
        assert client.receive() == [frame(1, 3)]
        assert list(nic.to_host) == [frame(1, 2)]


def test_host_rings_are_what_the_host_sends_and_gets(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0")
    with Client(stand_in, "eth0", mode=NrMode.SW) as host:
        nic.from_host(frame(1, 2))
        assert host.receive() == [frame(1, 2)]
        host.send(frame(3, 4))
        assert list(nic.to_host) == [frame(3, 4)]
        nic.from_wire(frame(5, 6))
        assert list(nic.to_host) == [frame(3, 4), frame(5, 6)]
        assert not nic.to_wire


def test_nic_and_host_rings_can_be_had_together(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0")
    with Client(stand_in, "eth0", mode=NrMode.NIC_SW) as client:
        assert (len(client.tx), len(client.rx)) == (2, 2)
        nic.from_host(frame(1, 2))
        nic.from_wire(frame(3, 4))
        assert [client.receive(0), client.receive(1)] == [[frame(3, 4)], [frame(1, 2)]]


def test_one_of_several_host_rings_can_be_had_alone(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0", rings=2, host_rings=3)
    with Client(stand_in, "eth0", mode=NrMode.ONE_SW, nr_ringid=2) as client:
        assert [ring.ring_id for ring in client.tx] == [4]


def test_without_netmap_the_nic_is_the_hosts(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0")
    nic.from_wire(frame(1, 2))
    nic.from_host(frame(3, 4))
    assert (list(nic.to_host), list(nic.to_wire)) == ([frame(1, 2)], [frame(3, 4)])


def test_a_wire_that_takes_nothing_pushes_back(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0", slots=16)
    with Client(stand_in, "eth0") as client, select.epoll() as edge:
        nic.stalled = True
        sent = [frame(1, 2, 60 + i) for i in range(20)]
        assert client.send(*sent) == 15
        edge.register(client.fd, select.EPOLLOUT | select.EPOLLET)
        assert edge.poll(0) == []
        assert client.send(*sent[15:]) == 0
        assert not nic.to_wire
        nic.resume()
        assert edge.poll(0) == [(client.fd, select.EPOLLOUT)]
        client.txsync()
        assert client.send(*sent[15:]) == 5
        assert list(nic.to_wire) == sent


def test_frames_wait_for_slots_and_too_many_are_lost(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0", slots=16)
    with Client(stand_in, "eth0") as client:
        sent = [frame(1, 2, 60 + i) for i in range(40)]
        for one in sent:
            nic.from_wire(one)
        got = client.receive()
        got += client.receive()
        assert got == sent[:17]


def test_a_frame_longer_than_a_buffer_is_lost(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0")
    with Client(stand_in, "eth0") as client:
        nic.from_wire(frame(1, 2, 2049))
        nic.from_wire(frame(1, 2, 2048))
        assert [len(one) for one in client.receive()] == [2048]


@pytest.mark.parametrize("bad", [{"length": 2049}, {"buf_idx": 0}, {"buf_idx": 1 << 30}])
def test_a_bad_slot_is_not_sent(stand_in: StandIn, bad: dict[str, int]) -> None:
    nic = stand_in.add_nic("eth0")
    with Client(stand_in, "eth0") as client:
        client.tx[0].put([frame(1, 2)])
        client.tx[0].put([frame(1, 3)])
        client.tx[0].set_slot(0, **bad)
        client.txsync()
        assert list(nic.to_wire) == [frame(1, 3)]


def test_a_nic_that_is_deleted_is_pollerr_and_its_syncs_are_eio(stand_in: StandIn) -> None:
    stand_in.add_nic("eth0")
    with Client(stand_in, "eth0") as client, select.epoll() as epoll:
        epoll.register(client.fd, select.EPOLLIN)
        assert epoll.poll(0) == []
        stand_in.delete("eth0")
        assert epoll.poll(0) == [(client.fd, select.EPOLLERR)]
        assert stand_in.poll(client.fd, select.POLLIN) == select.POLLERR
        for request in (NIOCTXSYNC, NIOCRXSYNC):
            with pytest.raises(OSError, match=r".") as caught:
                stand_in.ioctl(client.fd, request)
            assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="No such device"):
        Client(stand_in, "eth0")
