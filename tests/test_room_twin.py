"""The room over any ring, against a twin: what lies where afterwards, and what was dropped."""

from __future__ import annotations

import itertools
import random
import socket

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.segmentation import NEEDS_CSUM, Packet, completed, header
from kit.wire import PLAIN, Guards, Wire, open_wire, running, settle, sockets
from vnic.burst import Burst, Room
from vnic.features import GUEST_OFFLOADS, Features
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import HostileGuest
from vnic_virtio_net.testing.hostile import INDIRECT, NEXT, WRITE

Frame = tuple[bytes, bytes]
FRAME_MAX = 65562


NOISE = random.Random(1).randbytes(FRAME_MAX + 300)


def data(n: int, seed: int = 0) -> bytes:
    return NOISE[seed : seed + n]


# ---- a twin of one call --------------------------------------------------------------------------


@attrs.define
class Twin:
    """What becomes of frames, given the buffers that are posted: slowly, and in one place."""

    capacities: list[int]
    size: int
    mergeable: bool
    header_len: int
    offloads: bool
    reads: bool
    """Frames come from a descriptor, which nobody looks at before there is a buffer."""
    used: list[tuple[int, int]] = attrs.Factory(list)
    written: list[bytes] = attrs.Factory(list)
    dropped: int = 0

    def offer(self, frame: bytes, hdr: bytes, plain: list[bytes]) -> bool:
        """Take a frame, as it is or as what it stands for; False where it must wait."""
        if self.reads and len(self.used) == len(self.capacities):
            return False
        if not 14 <= len(frame) <= FRAME_MAX:
            self.dropped += 1
            return True
        first = len(self.used)
        whole = self.offloads or hdr == PLAIN
        if not whole and len(plain) > self.size:
            self.dropped += 1
            return True
        for part in [frame] if whole else plain:
            verdict = self._place(part, hdr if whole else PLAIN, len(self.capacities) - first)
            if verdict is not None:
                del self.used[first:], self.written[first:]
                self.dropped += verdict
                return verdict
        return True

    def _place(self, frame: bytes, hdr: bytes, posted: int) -> bool | None:
        """None: it is in.  Else whether it is dropped, since it could never be."""
        free = self.capacities[len(self.used) :]
        need = self.header_len + len(frame)
        fits = [i + 1 for i, n in enumerate(itertools.accumulate(free)) if n >= need]
        k = fits[0] if fits else 0
        if not free:
            return posted >= self.size
        if k != 1 and not self.mergeable:
            return True
        if k == 0:
            return posted >= self.size
        rest = (hdr[:10] + k.to_bytes(2, "little"))[: self.header_len] + frame
        for capacity in free[:k]:
            self.written.append(rest[:capacity])
            self.used.append((len(self.used), len(rest[:capacity])))
            rest = rest[capacity:]
        return None


@st.composite
def offered(draw: st.DrawFn) -> list[tuple[bytes, bytes, list[bytes]]]:
    """Frames, their headers, and the plain frames that each stands for."""
    out = []
    for i in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["plain", "plain", "sum", "tso"]))
        if kind == "tso":
            packet = Packet(
                ipv6=draw(st.booleans()),
                udp=draw(st.booleans()),
                payload=data(draw(st.integers(1, 900)), i),
                gso_size=draw(st.integers(90, 600)),
            )
            out.append((packet.frame(), packet.header, packet.segments()))
            continue
        frame = data(draw(st.one_of(st.integers(1, 700), st.sampled_from([13, 14, FRAME_MAX]))), i)
        hdr, plain = PLAIN, frame
        if kind == "sum" and len(frame) >= 14:
            start = draw(st.integers(0, min(0xFFFF, len(frame) - 2)))
            offset = draw(st.integers(0, min(0xFFFF, len(frame) - 2 - start)))
            hdr = header(NEEDS_CSUM, csum_start=start, csum_offset=offset)
            plain = completed(frame, start, offset)
        out.append((frame, hdr, [plain]))
    return out


cuts = st.lists(st.one_of(st.integers(0, 40), st.integers(41, 900)), min_size=1, max_size=5)


def offer(path: str, wire: Wire, frames: list[Frame], feed: socket.socket) -> None:
    """Have the wire offer these frames in that way, once."""
    burst = Burst.of([frame for frame, _ in frames], [hdr for _, hdr in frames])

    def recv(room: Room) -> int:
        wire.on_recv = lambda room: 0
        if path == "put":
            return room.put(burst)
        return sum(1 for _ in itertools.takewhile(lambda f: room.put_frame(*f), frames))

    if path == "readv":
        for frame, hdr in frames:
            feed.send(hdr + frame)
    else:
        wire.on_recv = recv
    wire.link.readable()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_frames_land_where_the_twin_puts_them_and_nowhere_else(draw: st.DataObject) -> None:
    size = draw.draw(st.sampled_from([1, 2, 4, 8, 16]), "size")
    mergeable = draw.draw(st.booleans(), "mergeable")
    legacy = not mergeable and draw.draw(st.booleans(), "legacy")
    offloads = draw.draw(st.booleans(), "offloads")
    path = draw.draw(st.sampled_from(["put", "put_frame", "readv"]), "path")
    layout = draw.draw(st.lists(cuts, max_size=size), "buffers")
    layout = [[*sizes, 12] if sum(sizes) < 12 else sizes for sizes in layout]
    frames = draw.draw(offered(), "frames")
    features = Features.INDIRECT_DESC | (GUEST_OFFLOADS if offloads else Features(0))
    if mergeable:
        features |= Features.MRG_RXBUF
    if not legacy:
        features |= Features.VERSION_1
    with running() as loop, sockets() as (feed, fd):
        host = SoftwareHost(loop, 1 << 18)
        guards = Guards.around(host)
        nic, wire = open_wire(host)
        guest = HostileGuest(nic, host, features=features, size=size)
        segments = [[(guest.buffer(n), n) for n in sizes] for sizes in layout]
        for i, buffer in enumerate(segments):
            table = [(gpa, n, WRITE | NEXT, j + 1) for j, (gpa, n) in enumerate(buffer)]
            table[-1] = (*table[-1][:2], WRITE, 0)
            guest.rx.desc(i, guest.rx.table(*table), 16 * len(table), INDIRECT)
            guest.rx.publish(i)
        settle(loop)
        before = image(host)
        wire.fd = fd
        offer(path, wire, [(frame, hdr) for frame, hdr, _ in frames], feed)
        settle(loop)

        header_len = 10 if legacy else 12
        twin = Twin(
            [sum(n) for n in layout], size, mergeable, header_len, offloads, path == "readv"
        )
        for frame, hdr, plain in frames:
            if not twin.offer(frame, hdr, plain):
                break
        assert guest.rx.used() == twin.used
        counts = nic.counters()
        assert sum(n for name, n in counts.items() if name.startswith("rx_drop")) == twin.dropped
        for buffer, content in zip(segments, twin.written, strict=False):
            assert b"".join(guest.bytes_at(gpa, n) for gpa, n in buffer).startswith(content)
        # Nothing else has changed, but the used ring; and posted buffers, where frames may have
        # lain that could not stay.
        tried = path == "readv" or (not offloads and any(hdr != PLAIN for _, hdr, _ in frames))
        after = image(host)
        blank(before, guest.rx.used_gpa, 6 + 8 * size)
        blank(after, guest.rx.used_gpa, 6 + 8 * size)
        blank(after, guest.tx.used_gpa, 6 + 8 * size)
        blank(before, guest.tx.used_gpa, 6 + 8 * size)
        for i, buffer in enumerate(segments):
            left = len(twin.written[i]) if i < len(twin.written) else 0
            for gpa, n in buffer:
                blank(before, gpa, n if tried else min(left, n))
                blank(after, gpa, n if tried else min(left, n))
                left -= min(left, n)
        assert before == after
        assert host.failures == []
        guards.check()
        nic.close()


def image(host: SoftwareHost) -> dict[int, bytearray]:
    return {region.gpa: bytearray(memoryview(region)) for region in host.memory.regions}


def blank(memory: dict[int, bytearray], gpa: int, n: int) -> None:
    base = max(at for at in memory if at <= gpa)
    memory[base][gpa - base : gpa - base + n] = bytes(n)
