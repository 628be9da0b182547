"""Frames on netmap ports: several slots, several rings, headers that differ, and no room."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from ctypes import sizeof
from typing import Any

import pytest
from vnic.burst import Burst
from vnic.features import GUEST_OFFLOADS, NONE
from vnic.link import Receiving
from vnic.loop import Loop
from vnic.testing.bench import from_guest, to_be_cut, to_guest
from vnic.testing.packets import checksum
from vnic_netmap import system
from vnic_netmap.abi import NIOCRXSYNC, NIOCTXSYNC, NetmapRing, NetmapSlot, SlotFlag

Open = Callable[..., Any]
Run = Callable[[], None]

PIPE = ("netmap:p{1", "netmap:p}1")
PORTS = ("netmap:vale0:1", "netmap:vale0:2")


def tso(gso_size: int = 1000, payload_len: int = 2500) -> tuple[bytes, bytes]:
    frame, header = to_be_cut()
    assert len(frame) == 54 + payload_len
    return frame, header[:4] + gso_size.to_bytes(2, "little") + header[6:]


def udp(payload: bytes, csum_start: int = 34) -> tuple[bytes, bytes]:
    """A frame whose UDP checksum is to be done: of ``payload``, at an offset of choice."""
    head = to_guest(1, 14)[0][:12] + b"\x88\xb5" + bytes(csum_start - 14)
    return head + bytes(8) + payload, bytes([1, 0, 0, 0, 0, 0, csum_start, 0, 6, 0, 0, 0])


def summed(frame: bytes, header: bytes) -> bytes:
    start, at = header[6], header[6] + header[8]
    return frame[:at] + checksum(frame[start:]).to_bytes(2, "big") + frame[at + 2 :]


# ---- system calls -------------------------------------------------------------------------------


def test_a_burst_is_one_txsync_and_a_recv_one_rxsync(module: Any, side: Open, loop: Loop) -> None:
    a, b = (side(name) for name in PIPE)
    module.n_calls.clear()
    a.link.send(Burst.of(from_guest(200)))
    assert module.n_calls == {"txsync": 1}
    module.n_calls.clear()
    b.guest.receive()
    assert module.n_calls == {"rxsync": 1}
    assert b.guest.frames == from_guest(200)


@pytest.mark.parametrize("name", PORTS)
def test_on_freebsd_the_same_calls_are_made_by_their_numbers_there(
    name: str, side: Open, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its poll syncs in fewer cases than Linux's: the calls do it, whatever poll does.
    from vnic_netmap import port
    from vnic_netmap.testing import StandIn

    with StandIn(platform="freebsd") as stand_in:
        monkeypatch.setattr(system, "current", stand_in)
        for call in ("NIOCTXSYNC", "NIOCRXSYNC"):
            monkeypatch.setattr(port, call, getattr(port, call) | 0x20000000)
        a, b = (side(name) for name in PIPE)
        a.guest.send(from_guest(2000))
        run()
        assert b.guest.frames == from_guest(2000)
        a.link.close()
        b.link.close()


# ---- several slots ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [PIPE, PORTS])
def test_long_frames_cross_in_several_slots_both_ways(
    names: tuple[str, str], side: Open, run: Run
) -> None:
    a, b = (side(name, slots=64) for name in names)
    for size in (2035, 2036, 2037, 2047, 2048, 2049, 9014, 65535):
        a.guest.send(from_guest(1, size))
        b.guest.send(to_guest(1, size))
        run()
        assert (b.guest.frames, a.guest.frames) == (from_guest(1, size), to_guest(1, size))
        b.guest.frames.clear()
        a.guest.frames.clear()


def test_a_nic_is_never_given_a_frame_in_pieces(module: Any, side: Open, run: Run) -> None:
    # Emulated NICs send each slot as a frame of its own.
    nic = module.add_nic("eth0")
    one = side("netmap:eth0")
    one.guest.send([*from_guest(1, 2048), *from_guest(1, 2049), *from_guest(1, 60)])
    run()
    assert list(nic.to_wire) == [*from_guest(1, 2048), *from_guest(1, 60)]
    assert one.dropped() == {"netmap_drop_too_long": 1}


def test_a_nic_that_can_is_given_pieces_if_told_so(module: Any, side: Open, run: Run) -> None:
    nic = module.add_nic("eth0")
    one = side("netmap:eth0", fragments=True)
    one.guest.send(from_guest(1, 3000))
    run()
    assert b"".join(nic.to_wire) == from_guest(1, 3000)[0]
    assert one.dropped() == {}


def test_a_frame_longer_than_the_ring_is_dropped_and_counted_not_waited_for(
    side: Open, run: Run
) -> None:
    a, b = (side(name, slots=16) for name in PORTS)
    a.guest.send([*from_guest(1, 65000), *from_guest(1)])
    run()
    assert b.guest.frames == from_guest(1)
    assert a.dropped() == {"netmap_drop_too_long": 1}


# ---- several rings ------------------------------------------------------------------------------


def test_order_is_kept_over_several_rings_of_a_switchs_port(side: Open, run: Run) -> None:
    a, b = (side(name, rings=4, slots=64) for name in PORTS)
    b.guest.send(to_guest(1))  # shows its address: what is for all goes to the first ring
    for first in (0, 150, 400):
        a.guest.send(from_guest(150, first=first))
        run()
        assert b.guest.frames == from_guest(150, first=first)
        b.guest.frames.clear()


def test_a_recv_takes_a_burst_of_all_rings_and_the_level_brings_the_rest(
    module: Any, side: Open, run: Run
) -> None:
    nic = module.add_nic("eth0", rings=3)
    one = side("netmap:eth0", n_buffers=256)
    one.link.recv_disable()
    for ring in range(3):
        for frame in to_guest(300, first=300 * ring):
            nic.from_wire(frame, ring)
    first = [one.guest.start() or len(one.guest.frames)]
    run()
    assert sorted(one.guest.frames) == sorted(to_guest(900))
    assert first == [256]


def test_a_ring_that_is_never_empty_does_not_keep_the_others_from_their_turn(
    module: Any, side: Open, run: Run, loop: Loop
) -> None:
    nic = module.add_nic("eth0", rings=2)
    one = side("netmap:eth0")
    nic.from_wire(to_guest(1, first=1_000_000)[0], 1)
    for i in range(30):
        for frame in to_guest(256, first=256 * i):
            nic.from_wire(frame, 0)
        one.guest.receive()
    assert to_guest(1, first=1_000_000)[0] in one.guest.frames


# ---- no room ------------------------------------------------------------------------------------


def test_a_full_pipe_holds_back_and_nothing_is_lost(side: Open, run: Run) -> None:
    a, b = side(PIPE[0], slots=32), side(PIPE[1], slots=32, n_buffers=8)
    b.guest.holds = True
    frames = [frame for i in range(60) for frame in from_guest(1, 100 + i * 131, i)]
    a.guest.send(frames)
    run()
    assert a.guest.n_waiting > 0
    assert a.link.counts["tx_full"] >= 1
    for _ in range(60):
        b.guest.release()
        b.guest.holds = True
        run()
    assert b.guest.frames == frames
    assert a.dropped() == b.dropped() == {}


def test_waiting_for_a_long_frames_slots_does_not_spin(
    module: Any, side: Open, run: Run, loop: Loop
) -> None:
    a, b = side(PIPE[0], slots=64), side(PIPE[1], slots=64)
    b.link.recv_disable()
    a.guest.send([*from_guest(60), *from_guest(1, 65535)])
    run()
    assert a.guest.n_waiting == 1
    ring = ring_of(a)
    assert ring.head != ring.cur == ring.tail  # there are slots, but not enough
    module.n_calls.clear()
    for _ in range(50):
        loop.dispatch()
    assert not module.n_calls
    b.guest.start()
    run()
    assert b.guest.frames == [*from_guest(60), *from_guest(1, 65535)]


def ring_of(side: Any) -> NetmapRing:
    """Return a copy of a port's first transmit ring."""
    mapping = side.backend._port._mapping
    ring = next(at for at in range(0, len(mapping) - 256, 128) if is_tx_ring(mapping, at))
    return NetmapRing.from_buffer_copy(mapping, ring)


def is_tx_ring(mapping: Any, at: int) -> bool:
    ring = NetmapRing.from_buffer_copy(mapping, at)
    return ring.dir == 1 and ring.nr_buf_size == 2048 and ring.num_slots == 64 and ring.cur != 0


def test_a_switch_drops_for_a_full_receiver_and_the_sender_never_waits(
    side: Open, run: Run
) -> None:
    a, b = (side(name) for name in PORTS)
    b.link.recv_disable()
    a.guest.send(from_guest(3 * 1023))
    assert a.guest.n_waiting == 0
    b.guest.start()
    run()
    assert b.guest.frames == from_guest(1023)


def test_a_stalled_wire_holds_back(module: Any, side: Open, run: Run) -> None:
    nic = module.add_nic("eth0", rings=2, slots=64)
    one = side("netmap:eth0")
    nic.stalled = True
    one.guest.send(from_guest(200))
    run()
    assert one.guest.n_waiting == 200 - 2 * 63
    nic.resume()
    run()
    assert sorted(nic.to_wire) == from_guest(200)


# ---- discarding ---------------------------------------------------------------------------------


def test_discarding_is_bounded_and_reads_no_frame(module: Any, side: Open, run: Run) -> None:
    a, b = side(PIPE[0], slots=4096), side(PIPE[1], slots=4096)
    b.link.recv_disable()
    a.guest.send(from_guest(4000))
    discard = b.backend.recv_discard
    module.n_calls.clear()
    assert [discard() for _ in range(5)] == [1024, 1024, 1024, 928, 0]
    assert module.n_calls == {"rxsync": 5}


def test_what_comes_without_a_receiver_is_discarded_and_counted(side: Open, run: Run) -> None:
    a, b = (side(name) for name in PIPE)
    b.link.recv_discard()
    a.guest.send([*from_guest(2000), *from_guest(3, 9000)])
    run()
    assert b.link.counts["rx_discarded"] == 2003
    b.guest.start()
    a.guest.send(from_guest(2, first=7))
    run()
    assert b.guest.frames == from_guest(2, first=7)


def test_a_frame_without_an_end_is_counted_while_frames_are_discarded(side: Open, run: Run) -> None:
    a, b = (side(name, slots=8) for name in PIPE)
    b.link.recv_disable()
    a.guest.send(from_guest(7))
    b.backend._port.rxsync()
    mapping = b.backend._port._mapping
    (ring,) = (at for at in range(0, len(mapping) - 256, 128) if is_full_rx_ring(mapping, at))
    for slot in range(7):
        mapping[ring + sizeof(NetmapRing) + slot * sizeof(NetmapSlot) + 6] = SlotFlag.MOREFRAG
    b.link.recv_discard()
    run()
    assert b.dropped() == {"netmap_drop_endless": 1}


def is_full_rx_ring(mapping: Any, at: int) -> bool:
    ring = NetmapRing.from_buffer_copy(mapping, at)
    return (ring.dir, ring.num_slots, ring.nr_buf_size, ring.head, ring.tail) == (0, 8, 2048, 0, 7)


# ---- headers that differ ------------------------------------------------------------------------


@pytest.mark.parametrize("header", [12, 10])
def test_between_equal_headers_a_frame_to_be_cut_crosses_whole(
    side: Open, run: Run, header: int
) -> None:
    a, b = (side(name, offloads=GUEST_OFFLOADS, header=header) for name in PORTS)
    frame, hdr = tso()
    a.link.send(Burst.of([frame], [hdr]))
    run()
    assert b.guest.frames == [frame]
    assert b.guest.headers[0][:10] == hdr[:10]


def test_ten_and_twelve_bytes_of_header_understand_each_other(side: Open, run: Run) -> None:
    a, b = (
        side(name, offloads=GUEST_OFFLOADS, header=header)
        for name, header in zip(PORTS, (12, 10), strict=True)
    )
    frame, hdr = tso()
    sizes = range(2030, 2050)
    for one, other in ((a, b), (b, a)):
        one.link.send(Burst.of([frame], [hdr]))
        one.link.send(Burst.of([to_guest(1, size)[0] for size in sizes]))
        run()
        assert other.guest.frames == [frame, *(to_guest(1, size)[0] for size in sizes)]
        assert other.guest.headers[0][:10] == hdr[:10]


def test_frames_without_a_header_reach_ports_that_have_one_at_every_length(
    side: Open, run: Run
) -> None:
    # Fault of the module: a frame that leaves less than 12 bytes of its buffer becomes a slot that
    # is longer than that.  So no slot is filled so far.
    for header in (10, 12):
        a, b = side(PORTS[0], header=0), side(PORTS[1], header=header)
        frames = [frame for size in range(2030, 2060) for frame in from_guest(1, size)]
        a.guest.send(frames)
        run()
        assert b.guest.frames == frames
        assert b.dropped() == {}
        a.link.close()
        b.link.close()


def test_a_slot_longer_than_its_buffer_is_dropped_and_counted(
    module: Any, side: Open, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same fault, from a port of another program, that fills its slots.
    a, b = side(PORTS[0], header=0), side(PORTS[1], header=12)
    a.backend._port.rings.set_framing(0, 0, True)
    a.guest.send([*from_guest(1, 2036), *from_guest(1, 2040), *from_guest(1, 60)])
    run()
    assert b.guest.frames == [*from_guest(1, 2036), *from_guest(1, 60)]
    assert b.dropped() == {"netmap_drop_rx_slot": 1}


def test_to_a_port_without_a_header_the_module_cuts_and_sums(side: Open, run: Run) -> None:
    a, b = side(PORTS[0]), side(PORTS[1], header=0)
    frame, hdr = tso()
    a.link.send(Burst.of([frame], [hdr]))
    run()
    assert [len(got) for got in b.guest.frames] == [1514, 54 + 2500 - 1460]
    assert b"".join(got[54:] for got in b.guest.frames) == frame[54:]
    plain, asks = udp(bytes(range(200)))
    a.link.send(Burst.of([plain], [asks]))
    run()
    assert b.guest.frames[2] == summed(plain, asks)


@pytest.mark.parametrize("csum_start", [34, 35])
@pytest.mark.parametrize("length", [1990, 1991, 1992, 1993, 4030, 4031, 9000])
def test_a_checksum_over_several_slots_is_right_wherever_it_starts(
    side: Open, run: Run, csum_start: int, length: int
) -> None:
    # Fault of the module: it is wrong where a fragment has an odd length from there on.
    a, b = side(PORTS[0]), side(PORTS[1], header=0)
    frame, hdr = udp(bytes(i * 7 & 0xFF for i in range(length)), csum_start)
    a.link.send(Burst.of([frame], [hdr]))
    run()
    assert b.guest.frames == [summed(frame, hdr)]


def test_what_the_module_would_drop_is_done_by_the_link(side: Open, run: Run) -> None:
    # USO and ECN, which it does not know: the link cuts such frames.
    a, b = side(PORTS[0]), side(PORTS[1], header=0)
    frame, hdr = tso()
    a.link.set_features(a.link.offers)
    a.link.send(Burst.of([frame], [hdr[:1] + b"\x81" + hdr[2:]]))
    run()
    assert len(b.guest.frames) == 3
    assert a.dropped() == {}


def test_a_guest_without_offloads_has_them_done(side: Open, run: Run) -> None:
    a, b = side(PORTS[0]), side(PORTS[1], offloads=NONE)
    a.link.send(Burst.of(*([each] for each in tso())))
    run()
    assert len(b.guest.frames) == 3
    assert not any(any(header[:10]) for header in b.guest.headers)


# ---- what goes wrong ----------------------------------------------------------------------------


def test_an_interface_that_goes_takes_the_link_down_with_the_reason_and_no_spin(
    module: Any, side: Open, run: Run, loop: Loop
) -> None:  # F5
    module.add_nic("eth0")
    one = side("netmap:eth0")
    run()
    module.delete("eth0")
    run()
    assert not one.link.is_up
    assert one.link.reason == (
        "netmap:eth0: its interface is gone, or its driver; bring it back; then open this NIC again"
    )
    assert not module.left_open
    module.n_calls.clear()
    assert one.link.send(Burst.of(from_guest(3))) == 3
    assert not module.n_calls
    assert one.link.counts["tx_drop_link_down"] == 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ENXIO, errno.ENOMEM])
def test_a_sync_that_fails_in_a_burst_ends_the_port_after_it(
    module: Any, side: Open, run: Run, number: int
) -> None:  # F4, F7
    a, b = (side(name) for name in PIPE)
    module.fail(NIOCTXSYNC, number)
    assert a.link.send(Burst.of(from_guest(3))) == 3
    assert a.link.is_up  # a frontend is in the middle of its burst
    run()
    assert not a.link.is_up
    assert a.dropped() == {"netmap_drop_gone": 3}
    module.fail(NIOCRXSYNC, number)
    assert b.guest.receive() == 0
    run()
    assert not b.link.is_up
    assert not module.left_open


def test_a_discard_that_fails_ends_the_port(module: Any, side: Open, run: Run) -> None:
    a, _ = (side(name) for name in PIPE)
    module.fail(NIOCRXSYNC, errno.EIO)
    assert a.backend.recv_discard() == 0
    run()
    assert not a.link.is_up


def test_rings_that_another_program_wrote_to_end_the_port_and_not_the_process(
    module: Any, side: Open, run: Run, loop: Loop
) -> None:  # F7
    a, b = (side(name) for name in PORTS)
    module.scribble(a.fd)
    for _ in range(3):
        a.guest.send(from_guest(100))
        b.guest.send(to_guest(100))
        run()
    assert not a.link.is_up
    assert "end what else writes to them" in a.link.reason
    assert b.link.is_up


def test_a_paused_guest_hears_nothing_and_the_ring_keeps_its_frames(
    side: Open, run: Run, loop: Loop
) -> None:  # F6
    a, b = side(PIPE[0]), side(PIPE[1], n_buffers=3)
    b.guest.holds = True
    a.guest.send(from_guest(50))
    run()
    assert b.link.receiving is Receiving.PAUSED
    assert not select.select([loop.fileno()], [], [], 0)[0]
    b.guest.release()
    run()
    assert b.guest.frames == from_guest(50)
