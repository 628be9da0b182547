"""How the stand-in's switch forwards, and what it loses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from vnic_netmap.abi import NrFlag, NrMode
from vnic_netmap.testing import Client, StandIn, frame

MOREFRAG, INDIRECT = 0x20, 0x10

Ports = Callable[..., list[Client]]


@pytest.fixture
def ports(stand_in: StandIn) -> Iterator[Ports]:
    """Open that many ports of one switch."""
    with ExitStack() as stack:

        def open_them(n: int, **request: int) -> list[Client]:
            return [
                stack.enter_context(Client(stand_in, f"vale0:{i}", **request))
                for i in range(1, n + 1)
            ]

        yield open_them


def introduce(*clients: Client) -> None:
    """Have the switch learn who is where: client i is station i + 1."""
    for i, client in enumerate(clients, 1):
        client.send(frame(0, i))
    for client in clients:
        client.receive()


# ---- where frames go -----------------------------------------------------------------------------


def test_a_frame_for_all_goes_to_all_but_its_sender(ports: Ports) -> None:
    one, two, three = ports(3)
    one.send(frame(0, 1))
    assert [client.receive() for client in (one, two, three)] == [[], [frame(0, 1)], [frame(0, 1)]]


def test_a_frame_for_an_unknown_address_goes_to_all(ports: Ports) -> None:
    one, two, three = ports(3)
    one.send(frame(77, 1))
    assert [len(client.receive()) for client in (one, two, three)] == [0, 1, 1]


def test_the_switch_learns_who_is_behind_which_port(ports: Ports) -> None:
    one, two, three = clients = ports(3)
    introduce(*clients)
    one.send(frame(2, 1))
    assert [len(client.receive()) for client in clients] == [0, 1, 0]
    three.send(frame(0, 2))  # station 2 has moved
    introduce(one)
    two.receive()
    three.receive()
    one.send(frame(2, 1))
    assert [len(client.receive()) for client in clients] == [0, 0, 1]


def test_a_frame_for_its_senders_own_port_is_lost(ports: Ports) -> None:
    one, two = clients = ports(2)
    one.send(frame(0, 7))
    introduce(*clients)
    one.send(frame(7, 1))
    assert one.receive() == two.receive() == []


def test_switches_have_nothing_to_do_with_each_other(stand_in: StandIn, ports: Ports) -> None:
    (one,) = ports(1)
    with Client(stand_in, "vale1:2") as other:
        one.send(frame(0, 1))
        assert other.receive() == []


def test_frames_arrive_in_order_those_for_all_among_those_for_one(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    sent = [frame(i % 2 and 2, 1, 60 + i) for i in range(20)]
    one.send(*sent)
    assert two.receive() == sent


def test_contents_of_every_length_arrive_as_they_were(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    sent = [frame(2, 1, n) for n in range(14, 2049, 2)]
    for i in range(0, len(sent), 500):
        one.send(*sent[i : i + 500])
        assert two.receive() == sent[i : i + 500]


def test_a_ring_sends_to_the_ring_of_its_number_and_to_all_into_the_first(ports: Ports) -> None:
    one, two = clients = ports(2, nr_tx_rings=3, nr_rx_rings=3)
    introduce(*clients)
    one.send(frame(2, 1), ring=2)
    one.send(frame(0, 1), ring=2)
    two.rxsync()
    assert [ring.n_owned for ring in two.rx] == [1, 0, 1]


def test_the_ring_of_a_receiver_with_fewer_is_taken_modulo(stand_in: StandIn, ports: Ports) -> None:
    (one,) = ports(1, nr_tx_rings=3)
    with Client(stand_in, "vale0:2", nr_rx_rings=2) as two:
        introduce(one, two)
        one.send(frame(2, 1), ring=2)
        two.rxsync()
        assert [ring.n_owned for ring in two.rx] == [1, 0]


def test_what_is_for_a_ring_that_nobody_opened_is_lost(stand_in: StandIn, ports: Ports) -> None:
    (one,) = ports(1, nr_tx_rings=2)
    with Client(
        stand_in, "vale0:2", mode=NrMode.ONE_NIC, nr_ringid=1, nr_rx_rings=2, nr_tx_rings=2
    ) as two:
        introduce(one, two)
        one.send(frame(2, 1), ring=0)
        one.send(frame(2, 1), ring=1)
        assert len(two.receive()) == 1
    with Client(stand_in, "vale0:3", flags=NrFlag.TX_RINGS_ONLY):
        one.send(frame(0, 1))


# ---- no back-pressure ----------------------------------------------------------------------------


def test_a_full_receiver_loses_frames_and_the_sender_hears_nothing(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    n_sent = sum(one.send(*[frame(2, 1)] * 1023) for _ in range(3))
    assert n_sent == 3069
    assert len(two.receive()) == 1023


def test_a_full_receiver_holds_up_no_other(ports: Ports) -> None:
    one, two, three = clients = ports(3)
    introduce(*clients)
    one.send(*[frame(2, 1)] * 1023)
    one.send(*[frame(0, 1)] * 1023)
    assert len(three.receive()) == 1023
    assert len(two.receive()) == 1023


def test_from_the_first_frame_that_does_not_fit_on_all_are_lost(ports: Ports) -> None:
    one, two = clients = ports(2, nr_rx_slots=8)
    introduce(*clients)
    one.send([frame(2, 1), b"b", b"c"], [frame(2, 1), b"b", b"c"], [frame(2, 1), b"b"], frame(2, 1))
    assert [len(frame) for frame in two.receive_fragments()] == [3, 3]


# ---- frames in several slots ---------------------------------------------------------------------


def test_a_frame_of_several_slots_arrives_in_as_many(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    parts = [frame(2, 1, 1000), b"x" * 2048, b"", b"y"]
    one.send(parts)
    assert two.receive_fragments() == [parts]


def test_the_high_byte_of_the_flags_counts_the_fragments(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    start = two.rx[0].head
    one.send(frame(2, 1), [frame(2, 1), b"b", b"c"])
    two.rxsync()
    flags = [two.rx[0].slot(start + i)[2] for i in range(4)]
    assert flags == [0x100, 0x300 | MOREFRAG, 0x300 | MOREFRAG, 0x300]


def test_100_fragments_pass(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    parts = [frame(2, 1), *(bytes([i]) * i for i in range(1, 100))]
    one.send(parts)
    assert two.receive_fragments() == [parts]


@pytest.mark.parametrize("n", range(14))
def test_a_frame_whose_first_fragment_is_under_14_bytes_is_lost(ports: Ports, n: int) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    whole = frame(2, 1, 100)
    if n:
        one.send([whole[:n], whole[n:]])
    one.send(whole[:n], whole)
    assert two.receive() == [whole]


# ---- bad slots -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"length": 2049},
        {"length": 65535},
        {"buf_idx": 0},
        {"buf_idx": 1},
        {"buf_idx": 1 << 31},
        {"buf_idx": 0xFFFF_FFFF},
    ],
)
def test_a_slot_that_can_not_be_is_dropped_in_silence(ports: Ports, bad: dict[str, int]) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    ring = one.tx[0]
    bad_slot = (ring.head + 1) % ring.n_slots
    for n in (60, 61, 62):
        ring.put([frame(2, 1, n)])
    ring.set_slot(bad_slot, **bad)
    one.txsync()
    assert [len(frame) for frame in two.receive()] == [60, 62]


def test_a_bad_slot_in_the_middle_of_a_frame_arrives_empty(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    ring = one.tx[0]
    bad_slot = (ring.head + 1) % ring.n_slots
    ring.put([frame(2, 1), b"lost", b"end"])
    ring.set_slot(bad_slot, buf_idx=0)
    one.txsync()
    assert two.receive_fragments() == [[frame(2, 1), b"", b"end"]]


def test_a_receivers_bad_buffer_takes_frames_and_nothing_breaks(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    two.rx[0].set_slot(two.rx[0].tail, buf_idx=0x7FFF_FFFF)
    one.send(frame(2, 1), frame(2, 1, 61))
    two.rxsync()
    assert two.rx[0].n_owned == 2


def test_a_frame_whose_end_is_missing_ends_where_it_is(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    ring = one.tx[0]
    ring.put([frame(2, 1), b"b"])
    ring.head = ring.cur = ring.head - 1
    one.txsync()
    assert two.receive_fragments() == [[frame(2, 1)]]


def test_an_indirect_slot_is_sent_from_where_it_points(ports: Ports) -> None:
    one, two = clients = ports(2)
    introduce(*clients)
    data = ctypes.create_string_buffer(frame(2, 1, 500))
    ring = one.tx[0]
    for ptr in (ctypes.addressof(data), 8):
        ring.put([frame(2, 1)])
        slot = (ring.head - 1) % ring.n_slots
        ring.set_slot(slot, length=500, flags=INDIRECT, ptr=ptr)
    one.txsync()
    assert two.receive() == [frame(2, 1, 500)]
