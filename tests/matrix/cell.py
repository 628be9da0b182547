"""A cell: one frontend on one backend, a guest's driver at one end, the outside at the other."""

from __future__ import annotations

import select
import time
from collections import deque
from typing import Any, Final

from kit.outsides import Outside
from vnic.link import Link
from vnic.loop import Loop
from vnic.nic import Nic
from vnic.testing import Driver, SoftwareHost
from vnic.testing.bench import Clock

from matrix.accounts import Account
from matrix.frames import Given, into, is_from_guest, out
from matrix.frontends import RING, Frontend

MEMORY: Final = 1 << 30
"""Of the guest; only what is used is there."""
DEADLINE_S: Final = 5.0
"""What hasn't come in so long is said to be lost."""
ROUNDS_MAX: Final = 2000
"""Dispatches after which a loop that still has work is said to spin."""


class Cell:
    """A NIC with its guest and its world, and the accounts of what they gave each other.

    The clock stands still, so that whoever waits for a while waits for ever.
    """

    nic: Nic
    host: SoftwareHost

    def __init__(self, frontend: Frontend, outside: type[Outside]) -> None:
        self.frontend = frontend
        self.loop = Loop(clock=Clock())
        self.loop.fileno()
        self.outside = outside(self.loop)
        self.driver: Driver | None = None
        self.reads = True
        """Whether the guest takes what has come for it, and posts the buffers again."""
        self._pending: deque[Given] = deque()  # for which the guest's ring has no room yet
        self._out = Account("from the guest")
        self._in = Account("to the guest")
        self._n_kept = 0  # frames that drivers which were stopped had not sent
        self._n_counted = 0  # drops of NICs that are closed
        self._n_posted = self._n_taken = 0  # frames that this NIC's drivers gave it, and got

    # ---- life

    def open(self, *filters: Any) -> None:
        """Open a NIC on the backend, beneath filters; it has no driver yet."""
        link = Link("nic0", self.loop)
        self.nic = self.frontend.nic(link)
        self._n_posted = self._n_taken = 0
        self.host = SoftwareHost(self.loop, MEMORY)
        layers: list[Any] = [(filter_, "filter", None) for filter_ in filters]
        outside = self.outside
        layers.append((outside.plugin(), outside.name, outside.options))
        outside.open(lambda: link.open(layers))
        self.nic.attach(self.host)

    def drive(self, *, offload: bool = False, ring: int = RING) -> None:
        """Start a driver of the NIC, after the one before it."""
        self.stop()
        self.driver = self.frontend.drive(self.nic, self.host, offload, ring)
        self.reads = True
        self.settle()

    def stop(self) -> None:
        """Stop the driver.  What it had not sent it keeps."""
        if (driver := self._give_up()) is not None:
            driver.stop()

    def close_nic(self) -> None:
        """Close the NIC, in whatever state it is.  Twice is allowed."""
        if not self.nic.closed:
            self._give_up()
            self.nic.close()
            self._n_counted += self._n_counted_by_nic()

    def _give_up(self) -> Driver | None:
        """Have the guest take what it was given, and keep what was not sent; return its driver."""
        driver = self.driver
        if driver is not None:
            self._take(RING)
            self._n_posted -= driver.n_outstanding
            self._n_kept += len(self._pending) + driver.n_outstanding
            self._pending.clear()
            self.driver = None
        return driver

    def open_again(self, *filters: Any, ring: int = RING) -> None:
        """Begin anew, with a new NIC; what was given before may come now, or never."""
        self.close_nic()
        self._out.forget()
        self._in.forget()
        self._n_kept, self._n_counted = 0, -self.outside.n_lost()
        self.open(*filters)
        self.drive(ring=ring)

    def close(self) -> None:
        """Take everything apart."""
        if hasattr(self, "nic"):
            self.close_nic()
        self.outside.close()
        self.loop.close()

    # ---- what the sides do

    def send(self, *frames: Given) -> None:
        """Have the guest send frames; those that its ring has no room for follow later."""
        self._out.give([frame.padded(self.frontend.pads_to) for frame in frames])
        self._pending += frames
        self._move()

    def arrive(self, *frames: Given) -> None:
        """Have frames come from the outside."""
        self._in.give([frame.padded(self.frontend.pads_to) for frame in frames])
        plain: list[bytes] = []
        for frame in frames:
            if frame.is_plain:
                plain.append(frame.frame)
            else:
                self.outside.arrive(plain)
                plain = []
                self.outside.arrive_offloaded(frame.frame, frame.header)
        self.outside.arrive(plain)

    def cross(self, n: int, first: int = 0) -> None:
        """Have short frames cross both ways, and all of them arrive."""
        self.send(*out(n, first=first))
        if "arrive" not in self.outside.cannot:
            self.arrive(*into(n, first=first))
        self.check()

    def overfill_guest(self) -> None:
        """Have the guest stop reading, and frames arrive until a few wait outside."""
        self.reads = False
        n = self.outside.holds // 2
        for first in range(0, RING + n, n):
            self.arrive(*into(min(n, RING + n - first), first=first))
            self.settle()

    # ---- running

    def settle(self) -> None:
        """Run everything, until nobody has anything to do.

        Raises: AssertionError, where that takes for ever; DriverError.
        """
        for _ in range(ROUNDS_MAX):
            self.loop.dispatch()
            if not self._move() and not select.select([self.loop.fileno()], [], [], 0)[0]:
                return
        raise AssertionError(f"after {ROUNDS_MAX} rounds there still was work: it spins")

    def _move(self) -> int:
        """Do what both sides have to do now; return how many frames moved."""
        moved = 0
        if self.driver is not None:
            while self._pending:
                some = [self._pending[i] for i in range(min(256, len(self._pending)))]
                n = self.driver.send([g.frame for g in some], [g.header for g in some])
                for _ in range(n):
                    self._pending.popleft()
                self._n_posted += n
                moved += n
                if n < len(some):
                    break
            if self.reads:
                moved += self._take(256)
        departed = [] if self.outside.comes_back else self.outside.departed_offloaded()
        for frame, header in departed:
            self._out.get(frame, header)
        return moved + len(departed)

    def _take(self, limit: int) -> int:
        """Have the guest take frames; what comes from itself has come back, and so has left."""
        assert self.driver is not None
        received = self.driver.recv(limit)
        for frame, header in received:
            back = self.outside.comes_back and is_from_guest(frame)
            (self._out if back else self._in).get(frame, header)
        self._n_taken += len(received)
        return len(received)

    # ---- the accounts

    @property
    def n_waiting(self) -> int:
        """How many frames wait in the guest's ring, or for it, to be sent."""
        return len(self._pending) + (self.driver.n_outstanding if self.driver else 0)

    @property
    def n_lost_out(self) -> int:
        """How many of the frames that the guest has sent are nowhere.

        Raises: AssertionError, where something left that was not sent, or not in that order.
        """
        return self._out.n_missing - self.n_waiting - self._n_kept

    @property
    def n_lost(self) -> int:
        """How many of all that were given are nowhere.

        Raises: AssertionError, as `n_lost_out`.
        """
        return self.n_lost_out + self._in.n_missing

    @property
    def n_counted(self) -> int:
        """How many frames were counted as lost, on whichever side."""
        own = 0 if self.nic.closed else self._n_counted_by_nic()
        return self._n_counted + own + self.outside.n_lost()

    def _n_counted_by_nic(self) -> int:
        counts = self.nic.counters().items()
        return sum(n for name, n in counts if "_drop_" in name or name == "rx_discarded")

    def check(self, lost: int | None = 0) -> None:
        """Wait until all frames have arrived, or are counted; so many of them (None: any number).

        Raises: AssertionError, where that doesn't come, or the device at rest is not as it should.
        """
        deadline = time.monotonic() + DEADLINE_S
        self.settle()
        while self.n_lost != (self.n_counted if lost is None else lost):
            if time.monotonic() > deadline:
                break
            self.loop.dispatch(0.01)
            self.settle()
        account = f"{self.n_lost} lost, {self.n_counted} counted: {self.nic.counters()}"
        assert self.n_lost == self.n_counted, account
        assert lost is None or self.n_lost == lost, f"{account}, and {lost} had to be lost"
        if self.driver is not None and self.reads:
            self.driver.check()
            self._check_statistics(self.driver)

    def _check_statistics(self, driver: Driver) -> None:
        """Hold what the NIC says of itself against what its guest gave and took."""
        says = self.nic.frontend.counters()
        dropped = sum(n for name, n in says.items() if name.startswith("tx_drop_"))
        assert says["tx_frames"] + dropped == self._n_posted - driver.n_outstanding
        assert says["rx_frames"] == self._n_taken or says["rx_segmented"]  # of one frame, several
