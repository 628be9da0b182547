"""The switch against a slow twin: whatever is sent, each frame arrives once, or is counted."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.lan import ALL, Lan
from vnic_netmap.switch import FULL_S

UNKNOWN = b"\x02\xff\xff\xff\xff\xff"


@attrs.define
class TwinPort:
    """What a port is, without a burst in it: one frame after the other."""

    room: int
    full: bool = False
    stalled: bool = False
    queue: list[int] = attrs.Factory(list)
    got: list[int] = attrs.Factory(list)
    full_since: float | None = None
    deadline: float | None = None
    counts: Counter[str] = attrs.Factory(Counter)

    @property
    def waits(self) -> bool:
        return (self.full or bool(self.queue)) and not self.stalled

    def take(self, frames: list[int]) -> int:
        """Deliver for as long as there is room."""
        n = min(len(frames), self.room)
        self.got += frames[:n]
        self.room -= n
        self.full = n < len(frames)
        if n:
            self.full_since, self.stalled = None, False
        if not self.full:
            self.deadline = None
        return n

    def offer(self, frames: list[int]) -> int:
        n = 0
        if not self.full and not self.queue:
            n = self.take(frames)
        if self.stalled:
            self.counts["vale_drop_full"] += len(frames) - n
            return len(frames)
        return n

    def refill(self, n: int) -> None:
        self.room = n
        if self.full or self.queue:
            del self.queue[: self.take(self.queue)]

    def wait(self, now: float) -> None:
        if self.deadline is None:
            if self.full_since is None:
                self.full_since = now
            self.deadline = now + max(0.0, self.full_since + FULL_S - now)

    def tick(self, now: float) -> None:
        if self.deadline is not None and self.deadline <= now:
            self.deadline, self.stalled = None, True


class Twin:
    def __init__(self, rooms: list[int]) -> None:
        self.ports = [TwinPort(room) for room in rooms]

    def send(self, sender: int, burst: list[tuple[int, int]], now: float) -> int:
        """``burst``: (destination, number); len(ports) is all, and the sender is nowhere."""
        everybody = len(self.ports)
        first = burst[0][0]
        if first not in (sender, everybody) and all(to == first for to, _ in burst):
            port = self.ports[first]
            taken = 0 if port.waits else port.offer([number for _, number in burst])
            if taken < len(burst):
                port.wait(now)
            return taken
        cut = len(burst)
        for i, (to, _) in enumerate(burst):
            if to not in (sender, everybody) and self.ports[to].waits:
                cut = i
                break
        for index, port in enumerate(self.ports):
            mine = [(to, n) for to, n in burst[:cut] if to in (index, everybody)]
            if index == sender or not mine:
                continue
            taken = 0 if port.waits else port.offer([number for _, number in mine])
            for to, number in mine[taken:]:
                if to == everybody:
                    port.counts["vale_drop_flood"] += 1
                else:
                    port.queue.append(number)
        if cut < len(burst):
            self.ports[burst[cut][0]].wait(now)
        counts = self.ports[sender].counts
        counts["vale_to_all"] += sum(to == everybody for to, _ in burst[:cut])
        counts["vale_drop_nowhere"] += sum(to == sender for to, _ in burst[:cut])
        return cut


N = 4
sends = st.tuples(
    st.integers(0, N - 1),
    st.lists(st.integers(0, N + 1), min_size=1, max_size=12)
    | st.tuples(st.integers(0, N), st.integers(1, 200)).map(lambda t: [t[0]] * t[1])
    | st.lists(st.integers(0, N), min_size=1, max_size=3).map(lambda to: to * 60),
)
refills = st.tuples(st.integers(0, N - 1), st.sampled_from([0, 1, 2, 5, 30, 1000]))
steps = st.lists(
    sends.map(lambda args: ("send", args))
    | refills.map(lambda args: ("room", args))
    | st.tuples(st.sampled_from([0.001, 0.004, 0.01])).map(lambda args: ("later", args)),
    max_size=30,
)


class Rig:
    """The switch and its twin, side by side, and senders that keep what is not taken."""

    def __init__(self, lan: Lan, rooms: list[int]) -> None:
        self.lan = lan
        self.machines = self.lan.acquainted("abcd", rooms)
        self.macs = [machine.mac for machine in self.machines] + [ALL, UNKNOWN]
        self.twin = Twin(rooms)
        self.waiting: list[list[tuple[int, int]]] = [[] for _ in range(N)]
        self.due: list[list[int]] = [[] for _ in range(N)]
        """Numbers of the frames that were taken for each port, those for all included."""
        self.arrived: list[list[int]] = [[] for _ in range(N)]
        self.numbers = itertools.count()

    def send(self, sender: int, to: list[int]) -> None:
        self.waiting[sender] += [(i, next(self.numbers)) for i in to]
        self.resend(sender)

    def resend(self, sender: int) -> int:
        """Offer what waits, as a frontend does that was told of room; return how many went."""
        burst = self.waiting[sender][:256]
        if not burst:
            return 0
        me = self.machines[sender]
        taken = me.send(*(me.frame(self.macs[to], number) for to, number in burst))
        as_twin = [(min(to, N), number) for to, number in burst]
        assert taken == self.twin.send(sender, as_twin, self.lan.clock.now_s)
        for to, number in as_twin[:taken]:
            for port in [to] if to < N else set(range(N)) - {sender}:
                self.due[port].append(number)
        del self.waiting[sender][:taken]
        return taken

    def room(self, port: int, n: int) -> None:
        self.arrived[port] += [number for _, number in self.machines[port].got()]
        self.machines[port].room(n)
        self.twin.ports[port].refill(n)

    def later(self, seconds: float) -> None:
        self.lan.clock.now_s += seconds

    def compare(self) -> None:
        """Both did the same with every frame, so far."""
        self.lan.run()
        for i, (machine, port) in enumerate(zip(self.machines, self.twin.ports, strict=True)):
            port.tick(self.lan.clock.now_s)
            self.arrived[i] += [number for _, number in machine.got()]
            assert self.arrived[i] == port.got
            for name in COUNTED:
                assert machine.count(name) == port.counts[name], (i, name)
            machine.guest.room.n_max = port.room  # the fake forgot what it had when it was emptied

    def finish(self) -> None:
        """Let everybody send to the end, and give all guests room."""
        while any(self.waiting):
            self.later(FULL_S)
            self.compare()
            for sender in range(N):
                while self.resend(sender):
                    pass
        for port in range(N):
            self.room(port, 1 << 20)
        self.compare()


COUNTED = ("vale_drop_full", "vale_drop_flood", "vale_drop_nowhere", "vale_to_all")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 3, 40, 1000]), min_size=N, max_size=N), steps)
def test_whatever_is_sent_each_frame_arrives_once_and_in_order_or_is_counted(
    rooms: list[int], script: list[tuple[str, tuple[Any, ...]]]
) -> None:
    with Lan() as lan:
        rig = Rig(lan, rooms)
        for what, args in script:
            getattr(rig, what)(*args)
            rig.compare()
        rig.finish()
        for machine, due, arrived in zip(rig.machines, rig.due, rig.arrived, strict=True):
            assert len(set(arrived)) == len(arrived)
            assert set(arrived) <= set(due)
            n_dropped = sum(n for k, n in machine.link.counters().items() if "_drop_" in k)
            assert len(arrived) + n_dropped == len(due)


def test_the_order_of_a_sender_is_kept_towards_each_receiver() -> None:
    with Lan() as lan:
        rig = Rig(lan, [3, 0, 40, 1])
        for i in range(200):
            rig.send(i % 3, [3, i % N, N, 3])
            rig.room(3, i % 5)
            rig.later(0.001)
            rig.compare()
        rig.finish()
        for arrived, due in zip(rig.arrived, rig.due, strict=True):
            place = {number: i for i, number in enumerate(due)}
            by_sender: dict[int, list[int]] = defaultdict(list)
            for number in arrived:
                by_sender[number // 4 % 3].append(place[number])
            assert all(places == sorted(places) for places in by_sender.values())
