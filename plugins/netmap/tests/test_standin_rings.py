"""Whose slots are whose in the stand-in, what poll says of it, and when a port is let go."""

from __future__ import annotations

import errno
import select
import threading
from collections.abc import Callable, Iterator

import pytest
from vnic_netmap.abi import NIOCRXSYNC, NIOCTXSYNC, NrFlag
from vnic_netmap.testing import Client, Ring, StandIn, frame

IN, OUT, ERR = select.POLLIN, select.POLLOUT, select.POLLERR


@pytest.fixture
def one(stand_in: StandIn) -> Iterator[Client]:
    with Client(stand_in, "vale0:1", nr_tx_slots=16, nr_rx_slots=16) as client:
        yield client


@pytest.fixture
def two(stand_in: StandIn) -> Iterator[Client]:
    with Client(stand_in, "vale0:2", nr_tx_slots=16, nr_rx_slots=16) as client:
        yield client


def seen(fd: int) -> int:
    """What a real poll sees."""
    poll = select.poll()
    poll.register(fd, IN | OUT)
    return poll.poll(0)[0][1] if poll.poll(0) else 0


# ---- ownership -----------------------------------------------------------------------------------


def test_at_most_num_slots_minus_1_are_usable(one: Client, two: Client) -> None:
    assert one.tx[0].n_owned == 15
    assert one.send(*[frame(0, 1)] * 20) == 15
    assert one.tx[0].n_owned == 15
    two.rxsync()
    assert two.rx[0].n_owned == 15


def test_tail_moves_only_inside_the_owners_system_calls(one: Client, two: Client) -> None:
    for i in range(3):
        one.send(frame(0, 1))
        assert two.rx[0].tail == i
        two.rxsync()
        assert two.rx[0].tail == i + 1


def test_slots_that_are_not_let_go_are_not_used_again(one: Client, two: Client) -> None:
    one.send(*[frame(0, 1, 60 + i) for i in range(15)])
    two.rxsync()
    ring = two.rx[0]
    one.send(*[frame(0, 1, 200)] * 15)  # lost
    two.rxsync()
    assert [ring.slot(i)[1] for i in range(15)] == [60 + i for i in range(15)]
    ring.head = ring.cur = 5
    two.rxsync()
    one.send(*[frame(0, 1, 200)] * 15)
    two.rxsync()
    assert ring.tail == 4  # five more
    assert [ring.slot(i)[1] for i in range(5, 15)] == [60 + i for i in range(5, 15)]


def test_what_is_between_head_and_cur_is_not_sent(one: Client, two: Client) -> None:
    ring = one.tx[0]
    ring.put([frame(0, 1)])
    ring.put([frame(0, 1)])
    ring.head = 1
    one.txsync()
    assert len(two.receive()) == 1
    ring.head = 2
    one.txsync()
    assert len(two.receive()) == 1


def test_cur_at_tail_with_head_held_back_waits_for_more(one: Client, two: Client) -> None:
    one.send(frame(0, 1))
    two.rxsync()
    assert seen(two.fd) & IN
    two.rx[0].cur = two.rx[0].tail
    two.rxsync()
    assert not seen(two.fd) & IN
    one.send(frame(0, 1))
    assert seen(two.fd) & IN
    assert len(two.receive()) == 2


def test_the_tail_that_user_space_overwrote_is_put_right(one: Client, two: Client) -> None:
    one.view[one.tx[0].at + 28] = 3
    one.send(frame(0, 1))
    assert one.tx[0].tail == 0
    assert len(two.receive()) == 1


def test_the_flag_of_a_changed_buffer_is_taken_back_by_the_sync(one: Client, two: Client) -> None:
    one.tx[0].put([frame(0, 1)])
    one.tx[0].set_slot(0, flags=1)
    one.txsync()
    assert one.tx[0].slot(0)[2] == 0
    two.rxsync()
    two.rx[0].set_slot(0, flags=1)
    two.rx[0].take()
    two.rxsync()
    assert two.rx[0].slot(0)[2] == 0


def _beyond(ring: Ring) -> None:
    ring.head = ring.cur = ring.n_slots


def _past_tail(ring: Ring) -> None:
    ring.head = ring.cur = (ring.tail + 1) % ring.n_slots


def _cur_before_head(ring: Ring) -> None:
    ring.head, ring.cur = 2, 1


BAD = pytest.mark.parametrize("spoil", [_beyond, _past_tail, _cur_before_head])


@BAD
def test_the_syncs_say_nothing_of_a_bad_head_or_cur_but_poll_does(
    stand_in: StandIn, one: Client, two: Client, spoil: Callable[[Ring], None]
) -> None:
    two.send(*[frame(0, 2)] * 4)
    one.rxsync()
    one.send(*[frame(0, 1)] * 3)
    assert len(two.receive()) == 3
    for ring, request in ((one.tx[0], NIOCTXSYNC), (one.rx[0], NIOCRXSYNC)):
        if ring.n_owned == ring.n_slots - 1 and spoil is _past_tail:
            continue  # all of it is user space's: there is nothing past tail
        before = ring.head, ring.cur
        spoil(ring)
        stand_in.ioctl(one.fd, request)
        assert seen(one.fd) & ERR
        ring.head, ring.cur = before
        stand_in.ioctl(one.fd, request)
        assert not seen(one.fd) & ERR
        spoil(ring)
        assert stand_in.poll(one.fd, IN | OUT) & ERR
        ring.head, ring.cur = before
        assert not stand_in.poll(one.fd, IN | OUT) & ERR
    assert two.receive() == []


def test_pointers_outside_of_the_ring_are_put_right(one: Client) -> None:
    ring = one.tx[0]
    ring.head, ring.cur = 77, 1 << 31
    one.txsync()
    assert (ring.head, ring.cur, ring.tail) == (0, 0, 15)


# ---- poll ----------------------------------------------------------------------------------------


def test_an_unbound_descriptor_is_pollerr_mmap_einval_and_sync_enxio(stand_in: StandIn) -> None:
    fd = stand_in.open()
    assert seen(fd) == ERR
    assert stand_in.poll(fd, IN | OUT) == ERR
    with pytest.raises(OSError, match=r".") as mmap_error:
        stand_in.mmap(fd, 4096)
    assert mmap_error.value.errno == errno.EINVAL
    for request in (NIOCTXSYNC, NIOCRXSYNC):
        with pytest.raises(OSError, match=r".") as sync_error:
            stand_in.ioctl(fd, request)
        assert sync_error.value.errno == errno.ENXIO
    stand_in.close(fd)


def test_a_descriptor_is_readable_and_writable_independently(stand_in: StandIn) -> None:
    with Client(stand_in, "x{1") as one, Client(stand_in, "x}1") as two:
        assert seen(one.fd) == OUT
        two.send(frame(0, 2))
        assert seen(one.fd) == IN | OUT
        one.send(*[frame(0, 1)] * 1023)
        assert seen(one.fd) == IN
        one.receive()
        assert seen(one.fd) == 0
        two.receive()
        assert seen(one.fd) == OUT


def test_select_poll_and_epoll_level_and_edge_triggered_all_work(one: Client, two: Client) -> None:
    with select.epoll() as level, select.epoll() as edge:
        level.register(two.fd, select.EPOLLIN)
        edge.register(two.fd, select.EPOLLIN | select.EPOLLET)
        assert level.poll(0) == edge.poll(0) == []
        assert select.select([two.fd], [], [], 0)[0] == []
        for _ in range(2):
            one.send(frame(0, 1))
            assert select.select([two.fd], [], [], 0)[0] == [two.fd]
            assert seen(two.fd) & IN
            assert edge.poll(0) == [(two.fd, select.EPOLLIN)]
            assert edge.poll(0) == []
            assert level.poll(0) == level.poll(0) == [(two.fd, select.EPOLLIN)]
        two.receive()
        assert level.poll(0) == []


def test_an_edge_comes_with_each_delivery_though_nothing_was_read(one: Client, two: Client) -> None:
    with select.epoll() as edge:
        edge.register(two.fd, select.EPOLLIN | select.EPOLLET)
        for _ in range(3):
            one.send(frame(0, 1))
            assert len(edge.poll(0)) == 1
            assert edge.poll(0) == []


def test_a_writer_that_waits_for_an_edge_is_woken_by_room(stand_in: StandIn) -> None:
    with Client(stand_in, "x{1") as one, Client(stand_in, "x}1") as two, select.epoll() as edge:
        one.send(*[frame(0, 1)] * 1023)
        edge.register(one.fd, select.EPOLLOUT | select.EPOLLET)
        assert edge.poll(0) == []
        two.receive()
        assert edge.poll(0) == [(one.fd, select.EPOLLOUT)]


def test_who_sleeps_in_epoll_is_woken(one: Client, two: Client) -> None:
    with select.epoll() as epoll:
        epoll.register(two.fd, select.EPOLLIN)
        sender = threading.Timer(0.05, lambda: one.send(frame(0, 1)))
        sender.start()
        assert epoll.poll(10) == [(two.fd, select.EPOLLIN)]
        sender.join()


def test_pollin_flushes_what_is_to_be_sent(stand_in: StandIn, one: Client, two: Client) -> None:
    one.tx[0].put([frame(0, 1)])
    assert stand_in.poll(one.fd, IN) == 0
    assert len(two.receive()) == 1


def test_pollin_flushes_nothing_with_no_tx_poll(stand_in: StandIn, two: Client) -> None:
    with Client(stand_in, "vale0:3", flags=NrFlag.NO_TX_POLL) as quiet:
        quiet.tx[0].put([frame(0, 3)])
        assert stand_in.poll(quiet.fd, IN) == 0
        assert two.receive() == []
        assert stand_in.poll(quiet.fd, OUT) == OUT  # which has to look for room
        assert len(two.receive()) == 1


def test_poll_shows_what_has_come_as_rxsync_does(
    stand_in: StandIn, one: Client, two: Client
) -> None:
    one.send(frame(0, 1))
    assert stand_in.poll(two.fd, IN | OUT) == IN | OUT
    assert two.rx[0].tail == 1
    two.rx[0].take()
    assert stand_in.poll(two.fd, IN) == 0
    assert not seen(two.fd) & IN


def test_freebsds_poll_syncs_nothing_while_slots_are_there() -> None:
    with (
        StandIn(platform="freebsd") as freebsd,
        Client(freebsd, "vale0:1", flags=NrFlag.NO_TX_POLL) as one,
        Client(freebsd, "vale0:2", flags=NrFlag.NO_TX_POLL) as two,
    ):
        one.tx[0].put([frame(0, 1)])
        assert freebsd.poll(one.fd, OUT) == OUT
        assert freebsd.poll(two.fd, IN) == 0
        freebsd.ioctl(one.fd, 0x2000_6994)
        assert freebsd.poll(two.fd, IN) == IN
        assert two.rx[0].tail == 1
        one.tx[0].put([frame(0, 1)])
        freebsd.ioctl(one.fd, 0x2000_6994)
        assert freebsd.poll(two.fd, IN) == IN
        assert two.rx[0].tail == 1  # but a sync would show 2
        freebsd.ioctl(two.fd, 0x2000_6995)
        assert two.rx[0].tail == 2


# ---- closing -------------------------------------------------------------------------------------


def test_a_port_stays_registered_until_its_mapping_is_closed_too(stand_in: StandIn) -> None:
    client = Client(stand_in, "vale0:1", flags=NrFlag.EXCLUSIVE)
    stand_in.close(client.fd)
    with pytest.raises(OSError, match=r".") as caught:
        Client(stand_in, "vale0:1")
    assert caught.value.errno == errno.EBUSY
    client.view.release()
    client.mapping.close()
    with Client(stand_in, "vale0:1"):
        pass


def test_the_mapping_can_not_be_closed_while_there_are_views_of_it(stand_in: StandIn) -> None:
    client = Client(stand_in, "vale0:1")
    with pytest.raises(BufferError):
        client.mapping.close()
    client.close()
    client.mapping.close()


def test_a_mapping_that_is_dropped_lets_go_as_well(stand_in: StandIn) -> None:
    client = Client(stand_in, "vale0:1", flags=NrFlag.EXCLUSIVE)
    stand_in.close(client.fd)
    assert stand_in.left_open == ["mapping of vale0:1"]
    del client
    assert stand_in.left_open == []


def test_epoll_forgets_a_descriptor_with_its_mapping_as_of_any_duplicate(stand_in: StandIn) -> None:
    with select.epoll() as epoll, Client(stand_in, "vale0:2") as two:
        client = Client(stand_in, "vale0:1")
        epoll.register(client.fd, select.EPOLLIN)
        stand_in.close(client.fd)
        two.send(frame(0, 2))
        assert epoll.poll(0) == [(client.fd, select.EPOLLIN)]
        client.view.release()
        client.mapping.close()
        assert epoll.poll(0) == []


def test_two_descriptors_of_a_port_see_the_same_rings(stand_in: StandIn, two: Client) -> None:
    with Client(stand_in, "vale0:1") as first, Client(stand_in, "vale0:1") as second:
        first.tx[0].put([frame(0, 1)])
        second.txsync()
        assert len(two.receive()) == 1
        assert first.tx[0].tail == 0


def test_what_is_left_open_is_named() -> None:
    with pytest.raises(AssertionError, match="left open: descriptor of vale0:1"), StandIn() as it:
        client = Client(it, "vale0:1")
    client.view.release()
    client.mapping.close()
