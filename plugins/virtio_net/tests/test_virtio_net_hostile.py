"""What goes through rings that are sound: headers, lengths and configuration of a hostile guest.

The comments name the rows of known faults of other implementations that a test answers.
"""

from __future__ import annotations

import mmap
import random

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.segmentation import ECN, NEEDS_CSUM, TCPV4, UFO, Packet, header
from kit.stage import Stage, staged
from kit.wire import PLAIN
from vnic.errors import PeerError
from vnic.features import OFFLOADS, Features
from vnic_virtio_net.testing import HostileGuest
from vnic_virtio_net.testing.hostile import INDIRECT, NEXT, RX, TX, WRITE

MODERN = Features.VERSION_1 | Features.INDIRECT_DESC
MRG = MODERN | Features.MRG_RXBUF
LEGACY = Features.INDIRECT_DESC
FRAME_MAX = 65562
NOISE = random.Random(3).randbytes(FRAME_MAX + 1)


def send(guest: HostileGuest, *parts: bytes) -> None:
    """Publish a chain of these, in a table, and kick."""
    table = [(guest.buffer(part), len(part), NEXT, i + 1) for i, part in enumerate(parts)]
    table[-1] = (*table[-1][:2], 0, 0)
    head = guest.tx.avail_idx % guest.tx.size
    guest.tx.desc(head, guest.tx.table(*table), 16 * len(table), INDIRECT)
    guest.tx.publish(head)
    guest.kick(TX)


# ---- from the guest ------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [MODERN, LEGACY])
@pytest.mark.parametrize("cut", [1, 2, 5, 9, 10, 11, 12, 13, 26])
def test_a_header_may_be_in_any_number_of_pieces(  # C7
    stage: Stage, features: Features, cut: int
) -> None:
    guest = stage.guest(features | OFFLOADS)
    hdr = header(NEEDS_CSUM, csum_start=14, csum_offset=2)
    whole = (hdr if features & Features.VERSION_1 else hdr[:10]) + NOISE[:60]
    send(guest, *[whole[i : i + cut] for i in range(0, len(whole), cut)])
    send(guest, whole[:cut], whole[cut:])
    stage.settle()
    assert stage.wire.sent == [(NOISE[:60], hdr)] * 2
    assert guest.tx.used() == [(0, 0), (1, 0)]  # C11: a device writes nothing to these


@pytest.mark.parametrize("features", [MODERN, LEGACY])
def test_a_chain_that_holds_no_frame_is_given_back_and_counted(  # C7
    stage: Stage, features: Features
) -> None:
    guest = stage.guest(features, size=32)
    least = (12 if features & Features.VERSION_1 else 10) + 14
    for n in range(least + 1):
        send(guest, bytes(n))
    stage.settle()
    assert guest.tx.used() == [(n, 0) for n in range(least + 1)]
    assert stage.counter("tx_drop_runt") == least
    assert [len(frame) for frame, _ in stage.wire.sent] == [14]


def test_a_flood_of_bad_chains_leaves_the_ring_usable(stage: Stage) -> None:  # C10
    guest = stage.guest(size=32768)
    gpa = guest.buffer(100)
    for i in range(32768):
        guest.tx.desc(i, gpa, 100 if i % 1000 == 999 else 7)
        guest.tx.entry(i, i)
    for lap in range(1, 4):
        guest.tx.avail_idx += 32768
        guest.kick(TX)
        stage.settle()
        assert guest.tx.used_idx == (lap * 32768) & 0xFFFF
        assert len(stage.wire.sent) == 32 * lap
    assert stage.counter("tx_drop_runt") == 3 * (32768 - 32)
    stage.check_neighbour()


@pytest.mark.parametrize("n", [FRAME_MAX - 1, FRAME_MAX, FRAME_MAX + 1])
def test_the_longest_frame_passes_and_no_longer_one(stage: Stage, n: int) -> None:  # C13
    guest = stage.guest(MODERN)
    send(guest, PLAIN, NOISE[:n])
    send(guest, PLAIN, bytes(60))
    stage.settle()
    want = [NOISE[:n], bytes(60)] if n <= FRAME_MAX else [bytes(60)]
    assert [frame for frame, _ in stage.wire.sent] == want
    assert stage.counter("tx_drop_too_long") == 2 - len(want)
    assert guest.tx.used() == [(0, 0), (1, 0)]


@pytest.mark.parametrize("more", [0, 12, 72, 0x10000])
def test_a_chain_of_four_gigabytes_and_a_bit_is_not_a_short_frame(  # C13
    stage: Stage, more: int
) -> None:
    guest = stage.guest(MODERN)
    n_bytes = 8 << 20
    stage.host.memory.add(1 << 34, n_bytes, buffer=mmap.mmap(-1, n_bytes))
    parts = [(1 << 34, more), *[(1 << 34, n_bytes)] * (2**32 // n_bytes)]
    table = [(gpa, n, NEXT, i + 1) for i, (gpa, n) in enumerate(parts)]
    table[-1] = (*table[-1][:2], 0, 0)
    guest.tx.desc(0, guest.tx.table(*table), 16 * len(table), INDIRECT)
    guest.tx.publish(0)
    guest.kick(TX)
    stage.settle()
    assert stage.wire.sent == []
    assert stage.counter("tx_drop_too_long") == 1
    assert guest.tx.used() == [(0, 0)]


TSO = Packet(payload=NOISE[:3000])


@pytest.mark.parametrize(  # C8
    "wrong",
    [
        header(NEEDS_CSUM, csum_start=60),
        header(NEEDS_CSUM, csum_start=59, csum_offset=0),
        header(NEEDS_CSUM, csum_start=0xFFFF, csum_offset=0xFFFF),
        header(NEEDS_CSUM, TCPV4, 54, 0, 34, 16),
        header(NEEDS_CSUM, TCPV4, 61, 100, 34, 16),
        header(0, TCPV4, 54, 100, 34, 16),
        header(NEEDS_CSUM, UFO, 42, 100, 34, 6),
        header(NEEDS_CSUM, 0x7F, 54, 100, 34, 16),
        header(NEEDS_CSUM, ECN, 54, 100, 34, 16),
    ],
)
def test_a_header_that_makes_no_sense_is_dropped_and_counted(stage: Stage, wrong: bytes) -> None:
    guest = stage.guest(MODERN | OFFLOADS)
    send(guest, wrong, NOISE[:60])
    send(guest, PLAIN, NOISE[:61])
    stage.settle()
    assert [len(frame) for frame, _ in stage.wire.sent] == [61]
    assert stage.counter("tx_drop_bad_header") == 1
    assert guest.tx.used() == [(0, 0), (1, 0)]


@pytest.mark.parametrize("asked", [header(NEEDS_CSUM, csum_start=34, csum_offset=16), TSO.header])
def test_an_offload_that_was_not_negotiated_is_not_done(stage: Stage, asked: bytes) -> None:  # C8
    guest = stage.guest(MODERN)
    send(guest, asked, TSO.frame())
    stage.settle()
    assert stage.wire.sent == []
    assert stage.counter("tx_drop_bad_header") == 1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.binary(min_size=12, max_size=12), st.integers(14, 3000)), max_size=8))
def test_any_header_is_passed_on_sound_or_its_frame_counted(  # C8
    frames: list[tuple[bytes, int]],
) -> None:
    with staged() as stage:
        guest = stage.guest(MODERN | OFFLOADS)
        for hdr, n in frames:
            send(guest, hdr, NOISE[:n])
        stage.settle()
        assert len(guest.tx.used()) == len(frames)
        assert len(stage.wire.sent) + stage.counter("tx_drop_bad_header") == len(frames)
        for frame, hdr in stage.wire.sent:
            check_sound(frame, hdr)


def check_sound(frame: bytes, hdr: bytes) -> None:
    """A header that whoever gets it can rely on."""
    flags, gso_type = hdr[0], hdr[1]
    hdr_len, gso_size, start, offset, n_buffers = (
        int.from_bytes(hdr[at : at + 2], "little") for at in (2, 4, 6, 8, 10)
    )
    assert flags & ~3 == 0
    assert n_buffers == 0
    assert gso_type & ~ECN in (0, 1, 4, 5)
    assert hdr_len <= len(frame)
    assert start + offset + 2 <= len(frame) if flags & NEEDS_CSUM else start == offset == 0
    assert (gso_size > 0 and flags & NEEDS_CSUM) if gso_type else gso_size == hdr_len == 0


# ---- to the guest --------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [MODERN, MRG, LEGACY])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_a_header_may_be_cut_over_descriptors(  # C1
    stage: Stage, features: Features, n: int
) -> None:
    guest = stage.guest(features)
    header_len = 10 if features == LEGACY else 12
    pieces = [guest.buffer(n) for _ in range(24)]
    rest = guest.buffer(100)
    table = [(gpa, n, WRITE | NEXT, i + 1) for i, gpa in enumerate(pieces)]
    guest.rx.desc(0, guest.rx.table(*table, (rest, 100, WRITE, 0)), 16 * 25, INDIRECT)
    guest.rx.publish(0)
    stage.wire.deliver(NOISE[:80])
    stage.settle()
    assert guest.rx.used() == [(0, header_len + 80)]
    content = b"".join(guest.bytes_at(gpa, n) for gpa in pieces) + guest.bytes_at(rest, 100)
    want = (bytes(10) + b"\1\0")[:header_len] + NOISE[:80]
    assert content == want.ljust(len(content), b"\0")


def test_a_long_frame_is_dropped_where_buffers_cannot_be_merged(stage: Stage) -> None:  # C4
    guest = stage.guest(MODERN)
    stage.post(guest, *[1526] * 8)
    stage.wire.deliver(NOISE[:65535], NOISE[:1515], NOISE[:1514], NOISE[:65535], NOISE[:60])
    stage.settle()
    assert guest.rx.used() == [(0, 1526), (1, 72)]
    assert stage.counter("rx_drop_too_long") == 3


def test_a_frame_longer_than_the_whole_ring_is_dropped(stage: Stage) -> None:  # C4
    guest = stage.guest(MRG)
    stage.post(guest, *[1526] * 8)
    stage.wire.deliver(NOISE[:65535], NOISE[:1514])
    stage.settle()
    assert guest.rx.used() == [(0, 1526)]
    assert stage.counter("rx_drop_too_long") == 1


@pytest.mark.parametrize("n", [64, 70, 1000])
def test_the_longest_frame_goes_into_small_buffers_or_is_dropped(stage: Stage, n: int) -> None:
    guest = stage.guest(MRG, size=2048)  # C12
    at = stage.post(guest, *[n] * 2048)
    stage.wire.deliver(NOISE[:65535], NOISE[:40])
    stage.settle()
    k = -(-65547 // n)
    used = guest.rx.used()
    if k > 1024:  # more than are ever held at a time
        assert used == [(0, 52)]
        assert stage.counter("rx_drop_too_long") == 1
        return
    assert used == [*((i, n) for i in range(k - 1)), (k - 1, 65547 - n * (k - 1)), (k, 52)]
    content = b"".join(guest.bytes_at(gpa, n) for gpa in at[:k])
    assert content[:65547] == bytes(10) + k.to_bytes(2, "little") + NOISE[:65535]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.binary(min_size=12, max_size=12), st.integers(1, 3000)), max_size=8),
    st.booleans(),
)
def test_any_header_from_the_wire_is_delivered_sound_or_counted(  # C8
    frames: list[tuple[bytes, int]], offloads: bool
) -> None:
    with staged() as stage:
        guest = stage.guest(MODERN | (OFFLOADS if offloads else Features(0)), size=128)
        at = stage.post(guest, *[3100] * 128)
        stage.wire.pending.extend((NOISE[:n], hdr) for hdr, n in frames)
        stage.wire.link.readable()
        stage.settle()
        counts = stage.nic.counters()
        done = sum(n for name, n in counts.items() if name.startswith("rx_drop"))
        assert done + counts["rx_frames"] + len(stage.wire.pending) == len(frames)
        for head, n in guest.rx.used():
            content = guest.bytes_at(at[head], n)
            assert content[10:12] == b"\1\0"
            if any(content[:8]):
                assert offloads
                check_sound(content[12:], content[:10] + bytes(2))


# ---- negotiation and configuration ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (1 << 2, "bit 2"),  # CTRL_GUEST_OFFLOADS
        (1 << 10, "GUEST_UFO"),
        (1 << 17, "bit 17"),  # CTRL_VQ: C5, C6, C15
        (1 << 22, "bit 22"),  # MQ: C6
        (1 << 34, "bit 34"),  # RING_PACKED
        (1 << 57, "bit 57"),  # HASH_REPORT: C2
        (1 << 60, "bit 60"),  # RSS: C3
        (1 << 63, "bit 63"),
        (1 << 64, "features"),
    ],
)
def test_a_feature_that_is_not_offered_is_refused(stage: Stage, bit: int, name: str) -> None:
    guest = stage.guest(MODERN)
    assert not guest.face.get_features() & bit
    with pytest.raises(PeerError, match=f"{name}.* not offered"):
        guest.face.set_features(MODERN | Features(bit))
    send(guest, PLAIN, bytes(60))
    stage.settle()
    assert len(stage.wire.sent) == 1


@pytest.mark.parametrize("n", [0, 1, 2, 4, 8, 12, 13, 256])
def test_configuration_space_has_an_end_and_cannot_be_written(stage: Stage, n: int) -> None:  # C9
    guest = stage.guest()
    whole = guest.face.read_config(0, 256)
    assert whole[12:] == bytes(244)
    for offset in [*range(300), 0x7FFF_FFFF, 0xFFFF_FFFF, 2**64 - 1]:
        want = whole[offset : offset + n].ljust(n, b"\0")
        assert guest.face.read_config(offset, n) == want
        guest.face.write_config(offset, b"\xff" * n)
    assert guest.face.read_config(0, 256) == whole


@pytest.mark.parametrize("base", [0, 1, 0x7FFF, 0xFFFF])
def test_a_queue_begins_where_it_is_told(stage: Stage, base: int) -> None:  # C14
    guest = stage.guest(MODERN)
    for index in (RX, TX):
        guest.face.stop_queue(index)
    guest.tx.avail_idx = guest.tx.used_idx = base
    guest.start(TX, attrs.evolve(guest.tx.addresses, base=base))
    send(guest, PLAIN, bytes(60))
    stage.settle()
    assert len(stage.wire.sent) == 1
    assert guest.face.stop_queue(TX) == (base + 1) & 0xFFFF
