"""Patches: two backends joined, so that a switch has an uplink."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kit.fakes import FakeBackend, OnSocket
from kit.lan import ALL, LOTS, Lan
from kit.loops import LoopBench
from kit.missing import Missing
from kit.netns import Netns
from vnic.burst import Burst
from vnic.errors import ConfigError
from vnic.features import GUEST_OFFLOADS, NONE, OFFLOADS, Features
from vnic.hookspecs import hookimpl
from vnic.patch import Patch
from vnic.testing.bench import GUEST_MAC, OUTSIDE_MAC, to_be_cut
from vnic_netmap import Vale
from vnic_tap import Tap

ETH_P_ALL = 3
FAR = b"\2far__"
"""Somebody behind the far side."""


class FakeRegistry:
    """Gives the instances that it was made with, by name; else a switch's port, or a tap."""

    def __init__(self, **backends: Any) -> None:
        self.backends = backends

    def load(self, group: str, name: str) -> Any:
        assert group == "backends"
        if name in self.backends:
            return SimpleNamespace(cls=lambda: self.backends[name])
        return SimpleNamespace(cls=Tap if name == "tap0" else Vale)


class Stage:
    """A switch whose port ``up`` is patched to a fake backend."""

    def __init__(self, lan: Lan, fake: FakeBackend, *names: str) -> None:
        self.lan, self.fake = lan, fake
        self.machines = [lan.add(name) for name in names]
        registry: Any = FakeRegistry(fake0=fake)
        self.patch = Patch("vale0:up", "fake0", lan.loop, registry)


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan() as lan:
        yield lan


@pytest.fixture
def stage(lan: Lan) -> Iterator[Stage]:
    fake = FakeBackend()
    fake.capabilities = OFFLOADS
    stage = Stage(lan, fake, "a")
    yield stage
    stage.patch.close()


def numbers(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(frame[14:18], "big") for frame in frames]


# ---- frames --------------------------------------------------------------------------------------


def test_frames_cross_both_ways_as_they_are(stage: Stage) -> None:
    (a,) = stage.machines
    frame, header = to_be_cut()
    assert a.link.send(Burst.of([a.frame(ALL), frame], [None, header])) == 2
    assert stage.fake.sent == [a.frame(ALL), frame]
    assert stage.fake.headers == [bytes(12), header]
    stage.fake.deliver(a.mac + FAR + bytes(48))
    assert a.guest.frames == [a.mac + FAR + bytes(48)]


def test_what_the_far_side_cannot_take_stays_with_the_sender(stage: Stage) -> None:
    (a,) = stage.machines
    stage.fake.deliver(bytes(6) + FAR + bytes(48))  # so that the switch knows it
    stage.fake.takes = 2
    assert a.send_to(FAR, 5) == 2
    assert a.send_to(FAR, 3, first=2) == 0
    stage.fake.takes = None
    stage.fake.link.writable()
    stage.lan.run()
    assert a.guest.n_writable == 1
    assert a.send_to(FAR, 3, first=2) == 3
    assert numbers(stage.fake.sent) == [0, 1, 2, 3, 4]


def test_a_far_side_that_stays_full_costs_the_others_10_ms(stage: Stage) -> None:
    (a,) = stage.machines
    stage.fake.deliver(bytes(6) + FAR + bytes(48))
    stage.fake.takes = 0
    assert a.send_to(FAR) == 0
    stage.lan.run(0.011)
    assert a.send_to(FAR) == 1
    assert stage.patch.counters()["vale0:up vale_drop_full"] == 1


def test_what_a_full_switch_cannot_take_stays_with_the_far_side(lan: Lan) -> None:
    fake = FakeBackend()
    fake.capabilities = OFFLOADS
    stage = Stage(lan, fake, "a")
    (a,) = stage.machines
    a.send_to(ALL)
    a.guest.room.n_max = 2
    fake.deliver(*(a.frame(a, i)[:6] + FAR + a.frame(a, i)[12:] for i in range(5)))
    assert len(fake.pending) == 3
    assert "recv_disable" in fake.calls
    assert numbers(a.guest.refill(LOTS)) == [0, 1]
    lan.run()
    assert numbers(a.guest.frames) == [2, 3, 4]
    stage.patch.close()


def test_a_side_that_is_down_drops_and_counts_and_holds_nobody_up(stage: Stage) -> None:
    (a,) = stage.machines
    stage.fake.deliver(bytes(6) + FAR + bytes(48))
    stage.fake.takes = 1
    assert a.send_to(FAR, 4) == 1
    stage.fake.link.down("unplugged")
    stage.lan.run()
    assert a.send_to(FAR, 3) == 3
    assert stage.patch.counters()["fake0 tx_drop_link_down"] == 3


class Descriptor(OnSocket):
    """Frames behind headers, as a tap's; read by the room itself."""

    @hookimpl
    def recv(self, room: Any) -> int:
        return int(room.readv(self.ours.fileno())[0])


def test_what_was_read_and_cannot_be_sent_waits_in_order() -> None:
    bench = LoopBench()
    near, far = Descriptor(bench), FakeBackend()
    near.ours, near.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.ours.setblocking(False)
    registry: Any = FakeRegistry(near0=near, far0=far)
    patch = Patch("near0", "far0", bench.loop, registry)
    far.takes = 0
    for i in range(20):
        near.theirs.send(bytes(12) + bytes([i]) * 60)
    bench.settle()
    assert far.sent == []
    for takes in (3, 1, 7, 2):
        far.takes = takes
        far.link.writable()
        bench.settle()
    near.theirs.send(bytes(12) + bytes([20]) * 60)
    far.takes = None
    far.link.writable()
    bench.settle()
    assert far.sent == [bytes([i]) * 60 for i in range(21)]
    patch.close()
    near.ours.close()
    near.theirs.close()
    bench.close()


# ---- offload -------------------------------------------------------------------------------------


def plain_stage(lan: Lan) -> Stage:
    return Stage(lan, FakeBackend(), "a")


def test_what_the_far_side_cannot_segment_is_cut_on_the_way(lan: Lan) -> None:
    stage = plain_stage(lan)
    (a,) = stage.machines
    frame, header = to_be_cut()
    assert a.link.send(Burst.of([frame, a.frame(ALL)], [header, None])) == 2
    assert [len(frame) for frame in stage.fake.sent] == [1054, 1054, 554, 60]
    assert b"".join(f[54:] for f in stage.fake.sent[:3]) == frame[54:]
    assert not any(map(any, stage.fake.headers))
    assert stage.patch.counters()["vale0:up rx_segmented"] == 1
    stage.patch.close()


def test_a_burst_that_is_cut_into_more_than_a_burst_is_sent_whole(lan: Lan) -> None:
    stage = plain_stage(lan)
    (a,) = stage.machines
    frame, header = to_be_cut()
    assert a.link.send(Burst.of([frame] * 256, [header] * 256)) == 256
    assert len(stage.fake.sent) == 3 * 256
    stage.patch.close()


def test_a_far_side_that_fills_up_in_the_middle_of_a_frame_gets_the_rest_of_it(lan: Lan) -> None:
    stage = plain_stage(lan)
    (a,) = stage.machines
    frame, header = to_be_cut()
    stage.fake.takes = 2
    taken = a.link.send(Burst.of([frame] * 3, [header] * 3))
    assert taken == 3  # they are in the pool
    for _ in range(10):
        stage.fake.link.writable()
        lan.run()
    assert b"".join(f[54:] for f in stage.fake.sent) == frame[54:] * 3
    stage.patch.close()


def test_frames_from_a_descriptor_that_are_cut_into_more_than_a_burst_all_come() -> None:
    bench = LoopBench()
    near, far = Descriptor(bench), FakeBackend()
    near.ours, near.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.ours.setblocking(False)
    near.capabilities = OFFLOADS
    registry: Any = FakeRegistry(near0=near, far0=far)
    patch = Patch("near0", "far0", bench.loop, registry)
    frame, header = to_be_cut()
    header = header[:4] + (10).to_bytes(2, "little") + header[6:]  # 250 segments
    for n in range(1, 4):
        near.theirs.send(header + frame)
        near.theirs.send(header + frame)
        bench.settle()
        assert len(far.sent) == 500 * n
    near.theirs.send(bytes(12) + frame)
    bench.settle()
    assert far.sent[-1] == frame
    patch.close()
    near.ours.close()
    near.theirs.close()
    bench.close()


def test_each_side_is_told_what_the_other_can_take(lan: Lan) -> None:
    fake = FakeBackend()
    fake.capabilities = Features.CSUM | GUEST_OFFLOADS
    stage = Stage(lan, fake)
    assert fake.features[-1] == Features.CSUM | GUEST_OFFLOADS
    stage.patch.close()
    plain = FakeBackend()
    stage = Stage(lan, plain)
    assert plain.features[-1] == NONE
    stage.patch.close()


# ---- loops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patches",
    [
        [("vale0:x", "vale0:y")],
        [("vale0:x", "vale0:y"), ("vale0:z", "vale0:w")],
        [("vale0:x", "vale1:x"), ("vale0:y", "vale1:y")],
        [("vale0:x", "vale1:x"), ("vale1:y", "vale2:y"), ("vale2:x", "vale0:y")],
    ],
)
def test_frames_in_a_loop_of_patches_end(lan: Lan, patches: list[tuple[str, str]]) -> None:
    a, b = lan.add("a"), lan.add("b")
    registry: Any = FakeRegistry()
    opened = [Patch(one, other, lan.loop, registry) for one, other in patches]
    for i in range(10):
        assert a.send_to(ALL, 1, first=i) == 1
        assert b.send_to(a, 1, first=i) == 1
        LoopBench(lan.clock, lan.loop).settle()
    assert set(range(10)) <= set(numbers(b.guest.frames))
    counters = [n for p in opened for k, n in p.counters().items() if k.endswith("vale_drop_loop")]
    assert sum(counters) > 0
    for patch in opened:
        patch.close()


def test_two_switches_joined_are_one(lan: Lan) -> None:
    a, b, c = lan.add("a"), lan.add("b", switch="vale1"), lan.add("c", switch="vale1")
    patch = Patch("vale0:up", "vale1:up", lan.loop, FakeRegistry())  # type: ignore[arg-type]
    for sender in (a, b, c):
        sender.send_to(ALL)
        for receiver in (a, b, c):
            assert len(receiver.got()) == (receiver is not sender)
    a.send_to(c, 1, first=7)
    assert (b.got(), c.heard(a)) == ([], [7])
    patch.close()


# ---- opening and closing -------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("fake0", "vale0"), ("vale0", "fake0")])
def test_a_patch_that_cannot_be_opened_leaves_nothing_open(
    lan: Lan, names: tuple[str, str]
) -> None:
    fake = FakeBackend()
    registry: Any = FakeRegistry(fake0=fake)
    with pytest.raises(ConfigError, match="vale0: not a port of a switch"):
        Patch(*names, lan.loop, registry)
    assert fake.calls.count("cleanup") == fake.calls.count("init")


def test_closing_twice_is_allowed_and_ends_all_traffic(stage: Stage) -> None:
    (a,) = stage.machines
    stage.patch.close()
    stage.patch.close()
    assert a.send_to(ALL) == 1
    assert stage.fake.sent == []
    assert stage.fake.calls.count("cleanup") == 1
    stage.lan.run()


@pytest.mark.root
def test_a_switch_has_a_tap_for_an_uplink(lan: Lan) -> None:
    a = lan.add("a")
    try:
        netns = Netns()
    except Missing as missing:
        pytest.skip(str(missing))
    with netns:
        try:
            os.close(netns.open_tap("probe"))
            patch = netns.call(Patch, "vale0:up", "tap0", lan.loop, FakeRegistry())
        except (Missing, OSError) as missing:
            pytest.skip(str(missing))
        wire = netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        wire.settimeout(5)
        wire.bind(("tap0", ETH_P_ALL))
        up = OUTSIDE_MAC + GUEST_MAC + b"\x88\xb5" + bytes(46)
        down = GUEST_MAC + OUTSIDE_MAC + b"\x88\xb5" + bytes(46)
        assert a.send(up) == 1
        assert wire.recv(2000) == up
        wire.send(down)
        for _ in range(100):
            lan.loop.dispatch(0.05)
            if a.guest.frames:
                break
        assert a.guest.frames == [down]
        wire.close()
        patch.close()
