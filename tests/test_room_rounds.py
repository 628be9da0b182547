"""A guest that takes its time: whatever it is offered arrives once, in order, to the byte."""

from __future__ import annotations

import random
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from kit.segmentation import Packet
from kit.wire import PLAIN, Guards, open_wire, running, settle, sockets
from vnic.burst import Room
from vnic.features import GUEST_OFFLOADS, Features
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import Driver, Shape

LONGEST = 9000
NOISE = random.Random(2).randbytes(LONGEST + 300)

Offer = tuple[bytes, bytes, list[bytes]]
"""A frame, its header, and the plain frames that it stands for."""


@st.composite
def offers(draw: st.DrawFn) -> list[Offer]:
    out: list[Offer] = []
    for i in range(draw(st.integers(1, 60))):
        n = draw(st.one_of(st.integers(14, 200), st.integers(14, 1514), st.integers(14, LONGEST)))
        if n > 200 and draw(st.integers(0, 3)) == 0:
            packet = Packet(payload=NOISE[i : i + n - 54], gso_size=draw(st.integers(300, 1448)))
            out.append((packet.frame(), packet.header, packet.segments()))
        else:
            frame = NOISE[i : i + n]
            out.append((frame, PLAIN, [frame]))
    return out


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Shape, Features]:
    """Rings in which each buffer is posted, so that what is too long for them is told at once."""
    size = draw(st.sampled_from([1, 2, 8, 32, 128]))
    features = draw(st.sampled_from([Features(0), Features.VERSION_1, Features.MRG_RXBUF]))
    features |= draw(st.sampled_from([Features(0), Features.EVENT_IDX, Features.IN_ORDER]))
    cuts = draw(
        st.sampled_from([(20,), (64,), (600,), (1526,), (12, 1514), (1, 3, 9, 1700), (9100,)])
    )
    indirect = len(cuts) > 1 or draw(st.booleans())
    features |= Features.INDIRECT_DESC if indirect else Features(0)
    features |= GUEST_OFFLOADS if draw(st.booleans()) else Features(0)
    return Shape(max(size, len(cuts)), cuts=cuts, indirect=indirect), features


def expected(offer: Offer, driver: Driver, n_buffers: int) -> list[bytes]:
    """What the guest gets of one offer: nothing, if that could never fit."""
    frame, header, plain = offer
    parts = [frame] if header == PLAIN or driver.features & GUEST_OFFLOADS else plain
    capacity = driver.rx.capacity
    hdr_len = 12 if driver.features & (Features.VERSION_1 | Features.MRG_RXBUF) else 10
    needs = [-(-(hdr_len + len(part)) // capacity) for part in parts]
    if Features.MRG_RXBUF in driver.features:
        return parts if sum(needs) <= n_buffers and len(parts) <= n_buffers else []
    return parts if max(needs) == 1 and len(parts) <= n_buffers else []


@settings(deadline=None, max_examples=80)
@given(shapes(), offers(), st.data())
def test_frames_arrive_once_in_order_whatever_the_ring(
    shape_of: tuple[Shape, Features], frames: list[Offer], draw: st.DataObject
) -> None:
    shape, features = shape_of
    path = draw.draw(st.sampled_from(["put", "readv", "both"]))
    takes = draw.draw(st.lists(st.integers(0, 40), max_size=10))
    with running() as loop, sockets() as (feed, fd):
        host = SoftwareHost(loop, 1 << 22)
        guards = Guards.around(host)
        nic, wire = open_wire(host)
        driver = Driver(nic, host, features=features, rx=shape, tx=Shape(4, cuts=(100,)))
        settle(loop)
        wire.fd = fd
        to_feed = deque(frames if path == "readv" else frames[: len(frames) // 2])
        got: list[bytes] = []
        n_buffers = driver.rx.n_slots

        def recv(room: Room) -> int:
            """First what comes from the descriptor, which keeps a frame; then by hand."""
            n = room.readv(fd)[0]
            while not to_feed and later and not room.full and room.put_frame(*later[0][:2]):
                later.popleft()
                n += 1
            return n

        later = deque(() if path == "readv" else frames[len(frames) // 2 :])
        if path != "put":
            wire.on_recv = recv
        else:
            wire.pending.extend((frame, header) for frame, header, _ in frames)
            to_feed.clear()
            later.clear()
        idle = 0
        while idle < 3:
            while to_feed:
                try:
                    feed.send(to_feed[0][1] + to_feed[0][0])
                except BlockingIOError:
                    break
                to_feed.popleft()
            wire.link.readable()
            settle(loop)
            part = driver.recv(takes.pop() if takes else 1000)
            settle(loop)
            got += [frame for frame, _ in part]
            idle = 0 if part or takes or to_feed else idle + 1
        driver.check()
        want = [part for offer in frames for part in expected(offer, driver, n_buffers)]
        assert got == want
        counts = nic.counters()
        assert counts["rx_frames"] + counts["rx_drop_too_long"] == len(frames)
        assert not wire.pending
        assert not later
        assert host.failures == []
        assert wire.errors == []
        guards.check()
        nic.close()
