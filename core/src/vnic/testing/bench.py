"""The bench that a backend is tried on: a loop, a link, a guest, and a filter that watches it."""

from __future__ import annotations

import gc
import random
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from vnic.burst import BURST_MAX, Burst, Room
from vnic.features import NONE, Features
from vnic.hookspecs import hookimpl
from vnic.link import Joint, Link, Receiving
from vnic.loop import Loop
from vnic.pool_kernel import Pool
from vnic.testing.packets import checksum

GUEST_MAC: Final = bytes.fromhex("020000000001")
OUTSIDE_MAC: Final = bytes.fromhex("020000000002")
_ETHERTYPE: Final = b"\x88\xb5"
"""IEEE 802, "Local Experimental EtherType 1": nobody answers it."""

_ROUNDS_MAX: Final = 500
"""Dispatches after which a loop that still has work is said to spin."""


def owe(kept: object, text: str) -> None:
    """Raises: AssertionError, with the text, where the promise is not kept."""
    if not kept:
        raise AssertionError(text)


def owe_no_raise(call: Callable[[], object], what: str) -> None:
    """Raises: AssertionError, where the call raises anything."""
    try:
        call()
    except Exception as error:
        owe(False, f"{what} raised {error!r}")


def from_guest(n: int, length: int = 60, first: int = 0) -> list[bytes]:
    """Make frames to the outside; each says its number, from ``first`` on, if it is long enough."""
    return [_frame(OUTSIDE_MAC + GUEST_MAC, length, i) for i in range(first, first + n)]


def to_guest(n: int, length: int = 60, first: int = 0) -> list[bytes]:
    """Make frames for the guest, numbered in the same way."""
    return [_frame(GUEST_MAC + OUTSIDE_MAC, length, i) for i in range(first, first + n)]


def _frame(addresses: bytes, length: int, number: int) -> bytes:
    body = number.to_bytes(4, "big") + random.Random(length << 32 | number).randbytes(length)
    return (addresses + _ETHERTYPE + body)[:length]


def to_be_cut() -> tuple[bytes, bytes]:
    """Make a TCP frame for the guest that is to become three, and its virtio-net header."""
    payload = random.Random(3).randbytes(2500)
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 0x10, 4096, 0, 0)
    addresses = bytes([10, 0, 0, 2, 10, 0, 0, 1])
    pseudo = checksum(addresses + struct.pack("!HH", 6, len(tcp) + len(payload))) ^ 0xFFFF
    tcp = tcp[:16] + struct.pack("!H", pseudo) + tcp[18:]
    length = 20 + len(tcp) + len(payload)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0, 64, 6, 0) + addresses
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    frame = GUEST_MAC + OUTSIDE_MAC + b"\x08\x00" + ip + tcp + payload
    return frame, struct.pack("<BBHHHHH", 1, 1, 14 + 20 + 20, 1000, 14 + 20, 16, 0)


def pool_of(frames: Sequence[bytes]) -> Pool:
    """Return memory with frames in it, as a burst; unlike `Burst.of`'s it can be overwritten."""
    pool = Pool(int(NONE))
    put(pool, frames)
    return pool


def put(pool: Pool, frames: Sequence[bytes]) -> None:
    """Add frames to it."""
    room = Room(pool.capsule, pool)
    room.open()
    room.put(Burst.of(frames))
    room.close()


def compare(got: Sequence[bytes], expected: Sequence[bytes], where: str) -> None:
    """Raises: AssertionError, which says what happened to which frame."""
    for i, (frame, wanted) in enumerate(zip(got, expected, strict=False)):
        if frame == wanted:
            continue
        if wanted not in got and frame in expected[i:]:
            owe(False, f"{where}: frame {i} never came; each is sent, or dropped and counted")
        if frame in expected:
            owe(False, f"{where}: frame {expected.index(frame)} came at place {i}; keep the order")
        owe(False, f"{where}: frame {i} has changed: {_difference(frame, wanted)}")
    owe(
        len(got) == len(expected),
        f"{where}: {len(got)} frames of {len(expected)}; each is sent, or dropped and counted",
    )


def _difference(frame: bytes, wanted: bytes) -> str:
    if len(frame) != len(wanted):
        return f"{len(frame)} bytes instead of {len(wanted)}"
    at = next(i for i, (a, b) in enumerate(zip(frame, wanted, strict=True)) if a != b)
    return f"byte {at} is {frame[at]:#04x} instead of {wanted[at]:#04x}"


def n_descriptors() -> int:
    """Return how many descriptors this process has open."""
    gc.collect()  # what others have left to the collector is not ours
    return len(list(Path("/dev/fd").iterdir()))


class Watcher:
    """A filter that passes everything on, and notes what was said and what was wrong with it."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.n_readable = 0
        self.discarded: list[int] = []
        """What each call that threw frames away returned."""
        self.receiving = True

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        """Listen to the backend."""
        self._link = link
        self.beneath: Any = link.beneath
        link.beneath_readable = self._readable

    @hookimpl
    def cleanup(self) -> None:
        """Nothing is held here."""

    @hookimpl
    def send(self, burst: Burst) -> int:
        """Pass it on, and look at the answer."""
        n = len(burst)
        return self._check("send", self.beneath.send(burst), n)

    @hookimpl
    def recv(self, room: Room) -> int:
        """Pass it on, and look at the answer."""
        n = self._check("recv", self.beneath.recv(room))
        if not self.receiving:
            self.discarded.append(n)
        return n

    def _readable(self) -> None:
        self.n_readable += 1
        self._link.readable()

    def _check(self, hook: str, n: object, n_max: int | None = None) -> int:
        if type(n) is not int or n < 0 or (n_max is not None and n > n_max):
            up_to = "of them" if n_max is None else f"from 0 to {n_max}"
            self.faults.append(f"{hook} returned {n!r}; it returns how many frames, {up_to}")
            return n_max or 0
        return n


class DiscardingWatcher(Watcher):
    """The same above a backend that has ``recv_discard``."""

    @hookimpl
    def recv_discard(self) -> int:
        """Pass it on, and look at the answer."""
        n = self._check("recv_discard", self.beneath.recv_discard())
        self.discarded.append(n)
        return n


class Guest:
    """As much of a frontend as a backend can notice: it sends, and receives while it has room."""

    def __init__(self, link: Link, n_buffers: int = BURST_MAX, offloads: Features = NONE) -> None:
        """``offloads``: GUEST_* bits of frames that it takes as they are."""
        self._link = link
        self._pool = Pool(int(offloads), n_buffers)
        self._room = Room(self._pool.capsule, self._pool)
        self._pending: deque[bytes] = deque()
        self.holds = False
        """Whether received frames stay in their buffers, so that room runs out."""
        self.frames: list[bytes] = []
        self.headers: list[bytes] = []
        self.n_readable = self.n_writable = 0
        self.on_frames: Callable[[], None] = _nothing
        link.on_readable = self._readable
        link.on_writable = self._writable

    def start(self) -> None:
        """Receive from now on."""
        self._link.recv_enable()
        self.receive()

    def receive(self) -> int:
        """Ask for frames; return how many were consumed.  What came is in `frames`."""
        n = self._receive()
        while not self.holds and self._link.receiving is Receiving.PAUSED:
            self._link.recv_enable()
            n += self._receive()
        return n

    def release(self) -> None:
        """Empty all buffers, and go on."""
        self.holds = False
        self._take()
        self.start()

    def send(self, frames: Sequence[bytes]) -> int:
        """Send frames; what is not taken waits, and is offered again when it may be.

        Returns how many wait.
        """
        self._pending += frames
        self._transmit()
        return self.n_waiting

    @property
    def n_waiting(self) -> int:
        """How many frames wait to be sent."""
        return len(self._pending)

    def _receive(self) -> int:
        self._room.open()
        n = self._link.recv(self._room)
        self._room.close()
        if not self.holds:
            self._take()
        return n

    def _take(self) -> None:
        burst = self._pool.burst
        if len(burst):
            self.frames += [bytes(frame) for frame in burst]
            self.headers += [burst.header(i) for i in range(len(burst))]
            self._pool.drop(len(burst))
            self.on_frames()

    def _readable(self) -> None:
        self.n_readable += 1
        self.receive()

    def _writable(self) -> None:
        self.n_writable += 1
        self._link.loop.schedule(self._transmit)

    def _transmit(self) -> None:
        while self._pending:
            burst = Burst.of([self._pending[i] for i in range(min(BURST_MAX, len(self._pending)))])
            taken = self._link.send(burst)
            for _ in range(taken):
                self._pending.popleft()
            if taken < len(burst):
                return


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


class Bench:
    """A loop with a clock that stands still, and, from `open` to `close`, a link on it."""

    def __init__(self, at_once_s: float, deadline_s: float) -> None:
        self.clock = Clock()
        self.loop = Loop(clock=self.clock)
        self._at_once_s = at_once_s
        self._deadline_s = deadline_s
        self._stuck = False
        self._link: Link | None = None
        self.loop.fileno()  # which opens a descriptor; all others from now on are the backend's

    def open(
        self, cls: type, name: str, options: Any, by: Callable[[Callable[[], None]], None]
    ) -> None:
        """Open a backend beneath a watcher; ``by`` makes the call.

        Raises: what the backend's ``init`` raises.
        """
        link = Link(name, self.loop)
        watcher = DiscardingWatcher() if hasattr(cls, "recv_discard") else Watcher()
        by(lambda: link.open([(watcher, "watcher", None), (cls(), name, options)]))
        self._link, self.link, self.watcher = link, link, watcher
        self.guest = Guest(link)

    def close(self) -> None:
        """End everything.  Twice is allowed."""
        if self._link is not None and not self._stuck:
            self._link.close()
        self.loop.close()

    def check(self) -> None:
        """Raises: AssertionError, if the backend raised or returned what it may not."""
        owe(not self.watcher.faults, "; ".join(self.watcher.faults))
        owe(self.link.is_up, f"the link went down: {self.link.reason}")

    def run_until(self, so: Callable[[], object], what: str) -> None:
        """Run the loop until it is so.

        Raises: AssertionError, with ``what``, when it isn't for long.
        """
        owe(self.wait(so), what)

    def wait(self, so: Callable[[], object]) -> bool:
        """Run the loop until it is so, or for long; return whether it is.

        Raises: AssertionError, if the backend raised or returned what it may not.
        """
        deadline = time.monotonic() + self._deadline_s
        while not so():
            self.check()
            if time.monotonic() > deadline:
                return False
            self.loop.dispatch(0.01)
        return True

    def settle(self) -> None:
        """Run the loop until it would sleep.

        Raises: AssertionError, for one that never would.
        """
        fd = self.loop.fileno()
        self.loop.dispatch()
        for _ in range(_ROUNDS_MAX):
            if not select.select([fd], [], [], 0)[0]:
                return
            self.loop.dispatch()
        owe(False, f"the loop had work for {_ROUNDS_MAX} rounds with nothing to do: it spins")

    def at_once(self, call: Callable[[], int], what: str) -> int:
        """Make a call that may not block.

        Raises: AssertionError, with ``what``, if it does; it is left to itself then.
        """
        results: list[int | BaseException] = []

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:
                results.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self._at_once_s)
        self._stuck = thread.is_alive()
        owe(not self._stuck, what)
        (result,) = results
        if isinstance(result, BaseException):
            raise result
        return result


def _nothing() -> None:
    return
