"""The scenario: what holds for every frontend on every backend, step by step."""

from __future__ import annotations

import pytest
from kit.segmentation import Packet
from vnic.link import Receiving

from matrix.cell import Cell
from matrix.faulty import FAULTS, Faulty
from matrix.frames import into, out, to_be_cut, to_be_summed

SIZES = (14, 15, 59, 60, 61, 590, 1514, 1515, 2036, 2037, 2048, 2049, 9014, 16380, 16381, 65535)
BURSTS = (1, 2, 3, 63, 64, 65, 255, 256)

# ---- frames --------------------------------------------------------------------------------------


@pytest.mark.needs("arrive")
def test_frames_cross_both_ways_at_once(cell: Cell) -> None:
    n = min(50, cell.outside.holds)
    for first in range(0, 8 * n, n):
        cell.send(*out(n, first=first))
        cell.arrive(*into(n, first=first))
        cell.loop.dispatch()
    cell.check()


@pytest.mark.parametrize("offload", [False, True], ids=["plain", "offload"])
def test_frames_of_14_to_65535_bytes_leave_or_count(cell: Cell, offload: bool) -> None:
    cell.drive(offload=offload)
    longest = max(cell.outside.sizes)
    if cell.outside.comes_back:
        longest = min(longest, cell.frontend.takes)
    for size in SIZES:
        cell.send(*out(2, size))
        cell.settle()
    cell.check(lost=2 * sum(size > longest for size in SIZES))


@pytest.mark.needs("arrive")
@pytest.mark.parametrize("offload", [False, True], ids=["plain", "offload"])
def test_frames_of_14_to_65535_bytes_arrive_or_count(cell: Cell, offload: bool) -> None:
    cell.drive(offload=offload)
    sizes = [size for size in SIZES if size <= max(cell.outside.sizes)]
    for size in sizes:
        cell.arrive(*into(2, size))
        cell.settle()
    cell.check(lost=2 * sum(size > cell.frontend.takes for size in sizes))


def test_bursts_of_1_to_256_frames_leave(cell: Cell) -> None:
    for n in BURSTS:
        cell.send(*out(n))
        cell.check()


@pytest.mark.needs("arrive")
def test_bursts_of_1_to_256_frames_arrive(cell: Cell) -> None:
    for n in BURSTS:
        cell.arrive(*into(n))
        cell.check()


# ---- offload -------------------------------------------------------------------------------------


def packets(payload: int) -> list[Packet]:
    """TCP and UDP over IPv4 and IPv6, of which a burst makes segments."""
    noise = bytes(range(251)) * (payload // 251 + 1)
    return [
        Packet(ipv6=ipv6, udp=udp, payload=noise[:payload], gso_size=1400)
        for ipv6 in (False, True)
        for udp in (False, True)
    ]


LONG = [to_be_cut(packet) for packet in packets(65535 - 14 - 40 - 20)]
OFFLOADED = [
    *(to_be_summed(packet) for packet in packets(1000)),
    *(to_be_cut(packet) for packet in packets(1430)),
    *(to_be_cut(packet) for packet in packets(20_000)),
    *LONG,
]


def test_what_is_to_be_summed_and_cut_leaves(cell: Cell) -> None:
    cell.drive(offload=True)
    for frame in OFFLOADED:
        cell.send(frame.turned())
        cell.settle()
    cell.check()


@pytest.mark.needs("arrive_offloaded")
@pytest.mark.parametrize("offload", [False, True], ids=["plain", "offload"])
def test_what_is_to_be_summed_and_cut_arrives(cell: Cell, offload: bool) -> None:
    cell.drive(offload=offload)
    for frame in OFFLOADED:
        cell.arrive(frame)
        cell.settle()
    cell.check()


# ---- full and empty rings ------------------------------------------------------------------------


@pytest.mark.needs("fill")
def test_a_full_backend_leaves_frames_in_the_ring(cell: Cell) -> None:
    cell.outside.fill()
    length = min(1500, max(cell.outside.sizes))
    for first in range(0, 30_000, 64):
        cell.send(*out(64, length, first))
        cell.settle()
        if cell.nic.link.counters().get("tx_full"):
            break
    assert cell.n_waiting
    cell.outside.drain()
    cell.check()


@pytest.mark.needs("arrive")
def test_a_guest_without_buffers_leaves_frames_outside(cell: Cell) -> None:
    cell.overfill_guest()
    assert cell.nic.link.receiving is Receiving.PAUSED
    cell.reads = True
    cell.check()


@pytest.mark.needs("arrive")
def test_many_frames_cross_by_short_rings(cell: Cell) -> None:
    cell.drive(ring=8)
    n = min(100, cell.outside.holds)
    for first in range(0, 6 * n, n):
        cell.send(*out(n, first=first))
        cell.arrive(*into(n, first=first))
        cell.settle()
    cell.check()


# ---- without a receiver --------------------------------------------------------------------------


@pytest.mark.needs("arrive")
def test_without_a_receiver_frames_are_discarded(cell: Cell) -> None:
    cell.cross(3)
    cell.stop()
    n = min(300, cell.outside.holds)
    cell.arrive(*into(n, first=3))
    cell.check(lost=n)
    cell.drive()
    cell.send(*out(3, first=3))
    cell.arrive(*into(3, first=3 + n))
    cell.check(lost=n)


@pytest.mark.needs("arrive")
def test_what_waits_for_a_guest_is_not_for_the_next(cell: Cell) -> None:
    cell.overfill_guest()
    cell.stop()
    cell.check(lost=None)
    lost = cell.n_lost
    assert lost
    cell.drive()
    cell.arrive(*into(3, first=9000))
    cell.check(lost=lost)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.needs("refuse")
def test_what_the_host_refuses_is_counted(cell: Cell) -> None:
    cell.outside.refuse()
    cell.send(*out(3))
    cell.check(lost=3)
    cell.outside.accept()
    cell.send(*out(3, first=3))
    cell.check(lost=3)


def test_a_backend_that_fails_takes_its_link_down(cell: Cell) -> None:
    for i, fault in enumerate(FAULTS):
        cell.open_again(Faulty(fault), ring=8)
        cell.send(*out(5, first=5 * i))
        cell.check(lost=5)
        assert not cell.nic.link.is_up, fault
        assert fault.split()[0] in cell.nic.link.reason
        assert not cell.driver.link_up
    cell.open_again()
    cell.cross(3, first=5 * len(FAULTS))


@pytest.mark.needs("arrive")
def test_a_backend_that_fails_to_pause_takes_its_link_down(cell: Cell) -> None:
    cell.open_again(Faulty("recv_disable raises"))
    cell.overfill_guest()
    assert not cell.nic.link.is_up
    assert "recv_disable" in cell.nic.link.reason
    assert not cell.driver.link_up
    cell.reads = True
    cell.settle()
    assert cell.n_counted <= cell.n_lost  # a backend that is broken is asked for no more
    cell.open_again()
    cell.cross(3, first=5000)


@pytest.mark.needs("hang_up")
def test_a_network_that_goes_takes_the_link_down(cell: Cell) -> None:
    cell.cross(3)
    cell.outside.hang_up()
    cell.settle()
    assert not cell.nic.link.is_up
    assert cell.nic.link.reason
    assert not cell.driver.link_up
    cell.send(*out(5, first=3))
    cell.check(lost=5)
    cell.drive()
    cell.send(*out(5, first=8))
    cell.check(lost=10)


# ---- the end -------------------------------------------------------------------------------------


def test_a_busy_nic_is_closed_and_opened_again(cell: Cell) -> None:
    cell.reads = False
    for first in range(0, 700, 100):
        cell.send(*out(100, first=first))
        if "arrive" not in cell.outside.cannot:
            cell.arrive(*into(min(20, cell.outside.holds), first=first))
        cell.loop.dispatch()
    cell.close_nic()
    cell.settle()
    assert cell.n_lost_out <= cell.n_counted <= cell.n_lost
    cell.open_again()
    cell.cross(3, first=2000)
