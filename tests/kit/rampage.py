"""A guest and a VMM gone mad: every word of two rings, every call of the face, at random.

As a program it does that to memory whose surroundings end the process when they are touched:

    python -m kit.rampage FIRST_SEED LAST_SEED
"""

from __future__ import annotations

import logging
import random
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from vnic.errors import PeerError
from vnic.features import OFFLOADS, Features
from vnic.hookspecs import QueueAddresses, ResetKind
from vnic.loop import Loop
from vnic.testing import SoftwareHost
from vnic_virtio_net.frontend import RING_FEATURES
from vnic_virtio_net.testing import HostileGuest, Ring
from vnic_virtio_net.testing.hostile import INDIRECT, NEXT, RX, TX, WRITE

from kit.segmentation import Packet
from kit.wire import Guards, open_wire, running, settle

log = logging.getLogger("kit.rampage")

REGION: Final = 1 << 20
HIGH: Final = 4 << 30
EXTRA: Final = HIGH + REGION
"""Where a region comes and goes, next to one that stays."""
LENGTHS: Final = (0, 1, 9, 11, 12, 13, 26, 60, 1514, 4096, 65574, REGION, 1 << 31, 0xFFFF_FFFF)
SIZES: Final = (1, 2, 8, 64, 256)
FEATURES: Final = RING_FEATURES | OFFLOADS


class Alarm(logging.Handler):
    """Notes what was logged as an error: an exception in a callback, a backend that broke."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.messages.append(self.format(record))


class Rampage:
    """One guest's life, as long as it is stepped."""

    def __init__(self, rng: random.Random, host: SoftwareHost) -> None:
        self.rng = rng
        self.host = host
        self.nic, self.wire = open_wire(host)
        self.n_offered = self.n_fed = 0
        self.feed, self.feeder = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.feed.setblocking(False)
        self.feeder.setblocking(False)
        self.wire.fd = self.feeder.fileno()
        self.alarm = Alarm()
        logging.getLogger("vnic").addHandler(self.alarm)
        self.noise = random.Random(1).randbytes(70_000)
        self.extra = bytearray(REGION)
        self.guest = self.born()
        self.steps: list[Callable[[], object]] = [
            *[self.write_chain] * 30,
            *[self.write_table] * 15,
            *[self.write_desc] * 3,
            *[self.publish] * 3,
            *[self.deliver] * 12,
            *[self.kick] * 12,
            *[self.settle] * 12,
            self.write_header,
            self.jump,
            self.scribble,
            self.restart,
            self.renegotiate,
            self.change_memory,
            self.change_wire,
        ]

    def close(self) -> None:
        """End it."""
        self.nic.close()
        self.feed.close()
        self.feeder.close()
        logging.getLogger("vnic").removeHandler(self.alarm)

    # ---- steps

    def born(self) -> HostileGuest:
        """Begin anew, with rings of other sizes in the same place."""
        self.host.failures.clear()
        for gpa in list(self.host._free):
            region = next(r for r in self.host.memory.regions if r.gpa == gpa)
            self.host._free[gpa] = (gpa, gpa + region.size)
        for region in self.host.memory.regions[:2]:
            memoryview(region)[:] = bytes(region.size)
        features = Features(self.rng.getrandbits(64)) & FEATURES
        guest = HostileGuest(self.nic, self.host, features=features, size=self.rng.choice(SIZES))
        self.area = guest.buffer(100_000)
        settle(self.host.loop)
        return guest

    def step(self) -> None:
        """Do anything."""
        self.rng.choice(self.steps)()

    def ring(self) -> tuple[Ring, int]:
        """Choose a ring, and what its descriptors should say."""
        index = self.rng.choice((RX, TX))
        return self.guest.rings[index], WRITE if index == RX else 0

    def gpa(self) -> int:
        """Choose an address: mostly one that means something."""
        rng = self.rng
        ring = rng.choice(self.guest.rings)
        base = rng.choice(
            (
                *[self.area] * 6,
                *(0, REGION, HIGH, EXTRA, EXTRA + REGION, 1 << 63, 0),
                *(ring.desc_gpa, ring.avail_gpa, ring.used_gpa),
            )
        )
        return (base + rng.choice((0, 0, 1, 16, -1, -8, rng.randrange(30_000)))) % 2**64

    def length(self) -> int:
        """Choose a length, likewise."""
        return self.rng.choice((*LENGTHS, self.rng.randrange(3000), self.rng.randrange(200)))

    def write_desc(self) -> None:
        """One descriptor, with anything in it."""
        rng, (ring, flag) = self.rng, self.ring()
        i, flags = rng.randrange(ring.size), rng.choice((flag, flag, flag | NEXT, rng.randrange(8)))
        next_ = rng.choice((rng.randrange(ring.size), i, ring.size, 0xFFFF))
        ring.desc(i, self.gpa(), self.length(), flags, next_)

    def write_chain(self) -> None:
        """A chain as it should be."""
        rng, (ring, flag) = self.rng, self.ring()
        n = rng.randint(1, min(5, ring.size))
        start = rng.randrange(ring.size - n + 1)
        cuts = [rng.choice((1, 4, 12, 40, 1514, 2000)) for _ in range(n)]
        cuts[-1] = rng.choice((cuts[-1], 100, 2000, 2000))
        at = self.area + rng.randrange(80_000)
        if not flag:
            hdr = rng.choice((bytes(12), bytes(12), b"\1\0" + bytes(10), rng.randbytes(12)))
            self.host.memory.view(at, 12)[:] = hdr
        chain = [(at + sum(cuts[:i]), cuts[i]) for i in range(n)]
        self.enter(ring, ring.chain(start, chain, flag))

    def write_table(self) -> None:
        """An indirect table, perhaps with something wrong in it."""
        rng, (ring, flag) = self.rng, self.ring()
        if Features.INDIRECT_DESC not in self.guest.features and rng.random() < 0.98:
            return
        n = rng.randint(1, 20)
        descs = [
            (self.gpa() if rng.random() < 0.1 else self.area, rng.choice((0, 12, 100)), flag | NEXT,
             i + 1 if rng.random() < 0.95 else rng.randrange(30))
            for i in range(n)
        ]  # fmt: skip
        descs[-1] = (self.area, 100, flag, 0)
        try:
            table = ring.table(*descs)
        except MemoryError:
            return
        head = rng.randrange(ring.size)
        n_bytes = 16 * n if rng.random() < 0.9 else rng.choice((16 * n - 8, self.length()))
        ring.desc(head, table, n_bytes, INDIRECT | (rng.random() < 0.1) * rng.choice((NEXT, WRITE)))
        self.enter(ring, head)

    def write_header(self) -> None:
        """Random bytes where frames begin."""
        at = self.area + self.rng.randrange(90_000)
        self.host.memory.view(at, 30)[:] = self.rng.randbytes(30)

    def publish(self) -> None:
        """Heads, sound or not, as many as fit and sometimes more."""
        ring, _ = self.ring()
        for _ in range(self.rng.choice((1, 1, 1, 3, ring.size))):
            self.enter(ring, self.rng.randrange(ring.size))

    def enter(self, ring: Ring, head: int) -> None:
        """Publish a head; where there is no room for it, only now and then."""
        if (ring.avail_idx - ring.used_idx) % 65536 < ring.size or self.rng.random() < 0.01:
            ring.publish(head)

    def jump(self) -> None:
        """An index, an entry, an event or flags of the avail ring."""
        rng, (ring, _) = self.rng, self.ring()
        what = rng.randrange(8)
        if what == 0:
            ring.avail_idx = rng.choice((ring.avail_idx - 1, rng.randrange(65536)))
        elif what == 1:
            ring.entry(rng.randrange(ring.size), rng.randrange(65536))
        elif what < 6:
            ring.used_event = rng.randrange(65536)
        else:
            ring.avail_flags = rng.randrange(65536)

    def scribble(self) -> None:
        """Random bytes anywhere: the guest may write where the device does."""
        region = self.rng.choice(self.host.memory.regions[:2])
        n = self.rng.choice((1, 2, 16, 300))
        at = self.rng.choice((self.rng.randrange(2000), self.rng.randrange(region.size - n)))
        memoryview(region)[at : at + n] = self.rng.randbytes(n)

    def deliver(self) -> None:
        """Frames from the wire, with any header."""
        rng = self.rng
        for _ in range(rng.choice((1, 1, 5, 40))):
            n = rng.choice((1, 14, 60, 60, 1514, 1514, 9000, 65562, rng.randint(1, 3000)))
            frame, hdr = self.noise[:n], rng.choice((None, None, None, None, rng.randbytes(12)))
            if rng.random() < 0.2:
                packet = Packet(
                    payload=self.noise[:n], gso_size=rng.choice((min(n, 9000), 1448, 90))
                )
                frame, hdr = packet.frame()[:65562], packet.header
            if rng.random() < 0.3:
                with suppress(BlockingIOError):
                    self.feed.send((hdr or bytes(12)) + frame)
                    self.n_fed += 1
            else:
                self.wire.pending.append((frame, hdr))
                self.n_offered += 1
        self.wire.link.readable()

    def kick(self) -> None:
        """Both queues, wanted or not."""
        self.guest.kick(self.rng.choice((RX, TX)))

    def restart(self) -> None:
        """Stop, start or enable a queue; sometimes where no ring is."""
        rng, face, index = self.rng, self.guest.face, self.rng.choice((RX, TX))
        what = rng.randrange(4)
        if what == 0:
            face.enable_queue(index, rng.random() < 0.9)
        elif what == 1:
            face.stop_queue(index)
        else:
            where = self.guest.rings[index].addresses
            base = rng.choice((self.guest.rings[index].used_idx, rng.randrange(65536)))
            if what == 2:
                anywhere = (where.desc_gpa, where.avail_gpa, where.used_gpa, self.gpa())
                parts = [rng.choice(anywhere) for _ in range(3)]
                size = rng.choice((where.size, *SIZES, 0, 3, 65536))
                where = QueueAddresses(
                    size=size, desc_gpa=parts[0], avail_gpa=parts[1], used_gpa=parts[2], base=base
                )
            self.try_to(lambda: self.guest.start(index, where))

    def renegotiate(self) -> None:
        """Any features, or a reset."""
        if self.rng.random() < 0.5:
            features = Features(self.rng.getrandbits(64)) & (FEATURES | Features(1 << 17))
            self.try_to(lambda: self.guest.face.set_features(features))
            self.host.failures.clear()  # a device that is negotiated with anew may fail anew
        else:
            self.nic.reset(self.rng.choice(tuple(ResetKind)))
            self.guest = self.born()

    def change_memory(self) -> None:
        """A region comes or goes."""
        memory = self.host.memory
        if memory.covers(EXTRA, 1):
            memory.remove(EXTRA, REGION)
        else:
            memory.add(EXTRA, REGION, buffer=self.extra, writable=self.rng.random() < 0.5)

    def change_wire(self) -> None:
        """A wire that is full, or no longer; that is cut, or mended."""
        what = self.rng.randrange(8)
        if what < 4:
            self.wire.takes = self.rng.choice((None, 0, 1, 100))
            self.wire.link.writable()
        elif what == 4 and self.rng.random() < 0.3:
            self.wire.link.down("cut")
        else:
            self.wire.link.up()
            self.wire.link.readable()

    def try_to(self, call: Callable[[], object]) -> None:
        """Call the face; it may refuse, and do nothing else."""
        with suppress(PeerError):
            call()

    # ---- what must hold

    def settle(self) -> None:
        """Let the device come to rest, and look at what it did."""
        settle(self.host.loop)
        self.check()
        if self.host.failures and self.rng.random() < 0.9:
            self.nic.reset(ResetKind.DEVICE)
            self.guest = self.born()

    def check(self) -> None:
        """Nothing raised; a failure has one reason; no frame is lost without being counted."""
        assert self.alarm.messages == []
        assert len(self.host.failures) <= 1, self.host.failures
        assert all(self.host.failures)
        counts = self.nic.counters()
        done = sum(n for name, n in counts.items() if name.startswith("rx_drop"))
        done += counts.get("rx_frames", 0) + counts.get("rx_discarded", 0)
        # What was fed may still be in the socket, or be the one that the room keeps.
        done += len(self.wire.pending)
        assert self.n_offered <= done <= self.n_offered + self.n_fed, counts
        assert self.wire.errors == []
        for frame, hdr in self.wire.sent:
            check_sound(frame, hdr)
        self.wire.sent.clear()


def check_sound(frame: bytes, hdr: bytes) -> None:
    """A frame that whoever gets it can rely on."""
    hdr_len, gso_size, start, offset = (
        int.from_bytes(hdr[at : at + 2], "little") for at in (2, 4, 6, 8)
    )
    assert 14 <= len(frame) <= 65562
    assert hdr[0] & ~3 == 0
    assert hdr[1] & 0x7F in (0, 1, 4, 5)
    assert hdr_len <= len(frame)
    assert start + offset + 2 <= len(frame) if hdr[0] & 1 else start == offset == 0
    assert (gso_size > 0 and hdr[0] & 1) if hdr[1] else gso_size == 0


def host_of(loop: Loop, *, shared: bool = False) -> tuple[SoftwareHost, Guards]:
    """Make a host with two regions between guards."""
    host = SoftwareHost(loop, regions=[(0, REGION), (HIGH, REGION)])
    return host, Guards.around(host, shared=shared)


def alone(seed: int, steps: int = 300) -> None:
    """One life among guards that must not be touched."""
    with running() as loop:
        host, guards = host_of(loop)
        guards.forbid()
        rampage = Rampage(random.Random(seed), host)
        for _ in range(steps):
            rampage.step()
        rampage.settle()
        rampage.close()


def main() -> None:
    """Live these lives.  See the module."""
    for seed in range(*map(int, sys.argv[1:])):
        try:
            alone(seed)
        except BaseException:
            log.exception("seed %d", seed)
            raise


if __name__ == "__main__":
    main()
