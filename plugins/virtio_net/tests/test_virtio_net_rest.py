"""Rings that rest while another NIC of the loop is busy: what comes to them is never overlooked."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.wire import open_wire, running
from vnic import loop as loops
from vnic.features import Features
from vnic.loop import Loop
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import Driver, Shape

RESTS = loops._IDLE_POLLS + 1
"""Rounds without work after which a ring is armed and rests."""

MODERN = Features.VERSION_1 | Features.MRG_RXBUF


class Quiet:
    """A NIC with short rings, on a loop that another poller keeps busy for ever."""

    def __init__(self, loop: Loop, face: Literal["vhost", "pci"], features: Features) -> None:
        host = SoftwareHost(loop, 1 << 20)
        self.loop = loop
        self.nic, self.wire = open_wire(host)
        loop.poll(lambda: True, lambda: True)
        shape = Shape(8, cuts=(1612,))
        self.driver = Driver(self.nic, host, features=features, rx=shape, tx=shape, face=face)
        self.numbers = map("{:060}".format, itertools.count())
        self.sent: list[bytes] = []
        self.delivered: list[bytes] = []
        self.received: list[bytes] = []
        self.rounds(2)

    def frames(self, n: int) -> list[bytes]:
        return [number.encode() for number in itertools.islice(self.numbers, n)]

    def send(self, n: int) -> None:
        frames = self.frames(n)
        self.sent += frames[: self.driver.send(frames)]

    def takes(self, n: int | None) -> None:
        """The wire takes so many frames of a burst; None: all, and says that it does."""
        self.wire.takes = n
        if n is None:
            self.wire.link.writable()

    def deliver(self, n: int) -> None:
        frames = self.frames(n)
        self.delivered += frames
        self.wire.deliver(*frames)

    def recv(self, n: int) -> None:
        """The guest takes so many frames, and posts their buffers again."""
        self.received += [frame for frame, _ in self.driver.recv(n)]

    def restart(self, n: int) -> None:
        """The queues are stopped, which throws away what waits, and started ``n`` rounds later."""
        del self.delivered[len(self.delivered) - len(self.wire.pending) :]
        self.driver.pause()
        self.rounds(n)
        self.driver.resume()

    def rounds(self, n: int) -> None:
        for _ in range(n):
            self.loop._round()

    def check(self) -> None:
        """After a few rounds nothing is left that could have been done."""
        self.rounds(4)
        if self.wire.takes is None:
            assert [frame for frame, _ in self.wire.sent] == self.sent
            assert self.driver.n_outstanding == 0
        n_there = len(self.delivered) - len(self.wire.pending) - len(self.received)
        assert not self.wire.pending or n_there == self.driver.rx.size


steps = st.lists(
    st.tuples(st.just("send"), st.integers(1, 9))
    | st.tuples(st.just("deliver"), st.integers(1, 9))
    | st.tuples(st.just("recv"), st.integers(1, 9))
    | st.tuples(st.just("takes"), st.sampled_from([0, 1, None]))
    | st.tuples(st.just("rounds"), st.sampled_from([1, RESTS, 3 * RESTS]))
    | st.tuples(st.just("restart"), st.sampled_from([0, RESTS])),
    max_size=25,
)


@pytest.fixture(autouse=True)
def _found_by_nothing_but_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_ROUNDS_OF_REST", 1 << 30)


@pytest.mark.parametrize("face", ["vhost", "pci"])
@pytest.mark.parametrize("event_idx", [False, True])
@settings(deadline=None, max_examples=40)
@given(script=steps)
def test_whatever_happens_beside_a_busy_nic_is_seen_within_a_few_rounds(
    face: Literal["vhost", "pci"], event_idx: bool, script: list[tuple[str, int | None]]
) -> None:
    features = MODERN | Features.EVENT_IDX if event_idx else MODERN
    with running() as loop:
        quiet = Quiet(loop, face, features)
        for what, n in script:
            if what != "restart" or face == "vhost":
                getattr(quiet, what)(n)
            quiet.check()
        quiet.takes(None)
        while len(quiet.received) < len(quiet.delivered):
            quiet.recv(8)
            quiet.check()
        assert quiet.received == quiet.delivered
        quiet.driver.check()
        quiet.nic.close()


def test_a_ring_that_rests_is_kicked_once_and_polled_from_then_on() -> None:
    with running() as loop:
        quiet = Quiet(loop, "vhost", MODERN)
        kick, kicks = quiet.driver._kick_device, list[int]()

        def kicked(index: int) -> None:
            kicks.append(index)
            kick(index)

        quiet.driver._kick_device = kicked
        for n_kicks in (1, 2):
            quiet.rounds(RESTS)
            for _ in range(20):
                quiet.send(2)
                quiet.check()
            assert kicks == [1] * n_kicks
        quiet.nic.close()
