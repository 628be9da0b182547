"""A guest that changes its rings and headers at any moment, from another process.

    python -m kit.race SECONDS SEED

Memory is shared with that process; its surroundings end ours when they are touched.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import attrs
from vnic.hookspecs import ResetKind
from vnic_virtio_net.testing import HostileGuest
from vnic_virtio_net.testing.hostile import INDIRECT, NEXT, RX, TX, WRITE

from kit.rampage import FEATURES, check_sound, host_of
from kit.wire import open_wire, running


def against(seconds: float, seed: int) -> int:
    """A life beside a process that changes the rings at any moment; how many frames were sent."""
    with running() as loop:
        host, guards = host_of(loop, shared=True)
        guards.forbid()
        rng = random.Random(seed)
        nic, wire = open_wire(host)
        guest = HostileGuest(nic, host, features=FEATURES, size=256)
        area = guest.buffer(1 << 18)
        lay_out(guest, area)
        child = os.fork()
        if child == 0:
            rewrite(guest, area, rng)
        n_sent = n_failed = 0
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                for ring in guest.rings:
                    ring.avail_idx += 64
                wire.pending.extend([(bytes(1514), None)] * 64)
                guest.kick(TX)
                guest.kick(RX)
                wire.link.readable()
                loop.dispatch()
                for frame, hdr in wire.sent:
                    check_sound(frame, hdr)
                n_sent += len(wire.sent)
                wire.sent.clear()
                wire.pending.clear()
                if host.failures:
                    n_failed += 1
                    host.failures.clear()
                    nic.reset(ResetKind.DEVICE)
                    nic.frontend.set_features(guest.features)
                    for index, ring in enumerate(guest.rings):
                        ring.avail_idx = ring.used_idx
                        guest.start(index, attrs.evolve(ring.addresses, base=ring.used_idx))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        nic.close()
        return min(n_sent, n_failed)


def lay_out(guest: HostileGuest, area: int) -> None:
    for i in range(256):
        guest.tx.desc(i, area + 512 * i, 400)
        guest.rx.desc(i, area + 512 * i, 2000, WRITE)
        guest.tx.entry(i, i)
        guest.rx.entry(i, i)


def rewrite(guest: HostileGuest, area: int, rng: random.Random) -> None:
    """For ever: make descriptors and headers wrong and right again, word by word."""
    view = guest.host.memory.view
    headers = view(area, 1 << 17)
    while True:
        for flag, ring in ((WRITE, guest.rx), (0, guest.tx)):
            i = rng.randrange(256)
            for gpa, n, flags, next_ in (
                (2**64 - 8, 400, flag, 0),
                (area, 0xFFFF_FFFF, flag, 0),
                (area, 400, flag | NEXT, i),
                (area, 400, flag | NEXT, 0xFFFF),
                (area, 48, INDIRECT, 0),
                (area + 512 * i, 400, flag, 0),
            ):
                ring.desc(i, gpa, n, flags, next_)
        at = 512 * rng.randrange(256)
        for hdr in (b"\1\1" + b"\xff" * 10, b"\1\0" + rng.randbytes(10), bytes(12)):
            headers[at : at + 12] = hdr


if __name__ == "__main__":
    if not against(float(sys.argv[1]), int(sys.argv[2])):
        raise SystemExit("the two never met: no frame was sent, or no ring found broken")
