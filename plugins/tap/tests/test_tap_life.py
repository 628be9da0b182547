"""A tap from attaching to letting go: what it takes over, what it leaves, how it goes away."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from typing import Any

import pytest
from kit.descriptors import n_open
from vnic import ConfigError, Features
from vnic.burst import Burst
from vnic.features import GUEST_OFFLOADS
from vnic.loop import Loop
from vnic_tap import Tap
from vnic_tap.device import TUNSETOFFLOAD, TUNSETSNDBUF, TUNSETVNETHDRSZ, TUNSETVNETLE

pytestmark = pytest.mark.root

FRAME = bytes.fromhex("02aabbccdd01 02aabbccdd02 88b5") + bytes(46)
TUNSETVNETBE = TUNSETVNETLE + 2

GONE = "tap0: the interface was deleted while in use; add it again, then open this NIC again"


def test_an_interface_is_made_up_and_with_its_mtu(world: Any) -> None:
    world.nic(mtu=4000)
    shown = world.ip("link", "show", "tap0")
    assert "mtu 4000" in shown
    assert "LOWER_UP" in shown


def test_cleanup_leaves_no_descriptor_and_no_interface(world: Any) -> None:
    world.nic("warmup").link.close()
    world.close()
    before = n_open()
    nic = world.nic()
    nic.link.send(Burst.of([FRAME]))
    nic.link.close()
    nic.loop.close()
    assert n_open() == before
    assert world.netns.interfaces().keys() == {"lo"}


def test_cleanup_twice_and_hooks_after_it_do_nothing(world: Any) -> None:
    nic = world.nic()
    hooks = nic.link._layers[0].hooks
    for _ in range(2):
        hooks.cleanup()
    assert hooks.send(Burst.of([FRAME])) == 1
    assert hooks.recv(nic.room) == 0
    hooks.set_capabilities(GUEST_OFFLOADS)
    assert Features.GUEST_TSO4 in hooks.get_capabilities()


def test_cleanup_before_init_does_nothing() -> None:
    Tap().cleanup()


def test_cleanup_with_frames_pending_leaves_nothing(world: Any) -> None:
    nic, wire = world.nic(), world.wire()
    for _ in range(10):
        wire.send(FRAME)
    nic.link.close()
    nic.settle()
    assert nic.room.frames == []
    assert world.netns.interfaces().keys() == {"lo"}


def test_a_persistent_tap_stays_and_is_attached_to_again(world: Any) -> None:
    world.make_tap()
    for _ in range(3):
        nic, wire = world.nic(), world.wire()
        assert nic.link.send(Burst.of([FRAME])) == 1
        assert wire.recv_frames(1) == [FRAME]
        world.close()
    assert "tap0" in world.netns.interfaces()


def test_persist_says_whether_it_stays(world: Any) -> None:
    world.nic(persist=True).link.close()
    assert "tap0" in world.netns.interfaces()
    world.nic().link.close()
    assert "tap0" in world.netns.interfaces()
    world.nic(persist=False).link.close()
    assert "tap0" not in world.netns.interfaces()


def test_one_that_was_made_to_stay_is_its_makers(world: Any) -> None:
    world.nic(persist=True).link.close()
    assert "user root" in world.ip("-d", "link", "show", "tap0")


def test_one_that_somebody_made_keeps_its_owner(world: Any) -> None:
    world.make_tap("tap0", "user", "nobody")
    world.nic(persist=True).link.close()
    assert "user nobody" in world.ip("-d", "link", "show", "tap0")


def test_what_cannot_be_opened_is_not_made_to_stay(world: Any) -> None:
    with pytest.raises(ConfigError):
        world.nic(persist=True, mtu=65535)
    world.close()
    assert world.netns.interfaces().keys() == {"lo"}


def test_nothing_is_left_of_the_last_user_of_a_persistent_tap(world: Any, packet: Any) -> None:
    world.make_tap()
    fd = world.netns.open_tap("tap0")
    for request, value in ((TUNSETVNETHDRSZ, 20), (TUNSETVNETBE, 1), (TUNSETSNDBUF, 4)):
        try:
            fcntl.ioctl(fd, request, struct.pack("=i", value))
        except OSError:
            assert request == TUNSETVNETBE  # not every kernel is built with it
    fcntl.ioctl(fd, TUNSETOFFLOAD, 0x0F)
    os.close(fd)

    nic, wire = world.nic(), world.wire()
    sent = packet(4, 6, bytes(4200), gso_size=1400)
    wire.send(sent.frame(), sent.header())
    nic.run_until(lambda: len(nic.room.frames) == 3)
    assert [len(data) for data in nic.room.frames] == [1454] * 3
    assert nic.link.send(Burst.of([sent.frame()] * 3, [sent.header()] * 3)) == 3
    data, header = wire.recv()
    assert data == sent.frame()
    assert header[4:6] == sent.header()[4:6]


def test_deleted_while_in_use_takes_the_link_down_once_and_spins_never(world: Any) -> None:  # F5
    nic = world.nic()
    n_calls = 0
    watch = next(iter(nic.loop._watches.values()))
    callback = watch.callback

    def counted(events: int) -> None:
        nonlocal n_calls
        n_calls += 1
        callback(events)

    watch.callback = counted
    world.netns.delete("tap0")
    nic.run_until(lambda: not nic.link.is_up)
    assert nic.link.reason == GONE
    after = n_calls
    nic.settle()
    assert n_calls == after
    assert after < 10
    assert nic.ups == [False]
    assert nic.loop._watches == {}
    assert nic.link.send(Burst.of([FRAME])) == 1
    assert nic.link.counters()["tx_drop_link_down"] == 1


def test_deleted_while_frames_are_thrown_away_ends_the_same_way(world: Any) -> None:  # F5
    nic = world.nic()
    nic.link.recv_discard()
    world.netns.delete("tap0")
    nic.run_until(lambda: not nic.link.is_up)
    assert nic.link.reason == GONE
    assert nic.loop._watches == {}


@pytest.mark.parametrize("guest", ["sends", "has room again"])
def test_deleted_under_a_paused_guest_is_known_at_its_next_move(
    world: Any, guest: str
) -> None:  # F5
    nic = world.nic()
    nic.link.recv_disable()
    world.netns.delete("tap0")
    nic.settle()
    if guest == "sends":
        assert nic.link.send(Burst.of([FRAME])) == 1
    else:
        nic.link.recv_enable()
    nic.run_until(lambda: not nic.link.is_up)
    assert nic.link.reason == GONE
    assert nic.loop._watches == {}


def test_deleted_under_a_sender_drops_and_counts_and_says_so_from_the_loop(
    world: Any,
) -> None:  # F5
    nic = world.nic()
    world.netns.delete("tap0")
    assert nic.link.send(Burst.of([FRAME, FRAME])) == 2
    assert nic.link.counters()["tx_drop_EBADFD"] == 2
    assert nic.link.is_up  # a frontend in the middle of a burst isn't called back
    assert nic.link.recv(nic.room) == 0
    nic.link.set_features(GUEST_OFFLOADS)
    nic.run_until(lambda: not nic.link.is_up)
    assert nic.link.reason == GONE


def test_after_recv_disable_no_frame_calls_anybody(world: Any) -> None:  # F6
    nic, wire = world.nic(), world.wire()
    nic.link.recv_disable()
    for _ in range(10):
        wire.send(FRAME)
        nic.settle()
    assert nic.n_readable == 0
    nic.link.recv_enable()
    nic.run_until(lambda: len(nic.room.frames) == 10)


def test_one_that_fails_takes_its_link_down_and_no_other(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # F7
    loop = Loop()
    nic, other = world.nic("tap0", loop=loop), world.nic("tap1", loop=loop)

    def broken(*_: object) -> tuple[int, int]:
        raise RuntimeError("readv is broken")

    monkeypatch.setattr(nic.room, "readv", broken)
    for name in ("tap0", "tap1"):
        world.wire(name).send(FRAME)
    other.run_until(lambda: other.room.frames == [FRAME])
    nic.run_until(lambda: not nic.link.is_up)
    assert nic.link.reason == "recv: readv is broken"
    assert nic.ups == [False]
    assert other.link.send(Burst.of([FRAME])) == 1
    assert other.link.is_up


def test_deleted_it_can_be_made_again_by_a_new_link(world: Any) -> None:
    nic = world.nic()
    world.netns.delete("tap0")
    nic.run_until(lambda: not nic.link.is_up)
    again, wire = world.nic(), world.wire()
    assert again.link.send(Burst.of([FRAME])) == 1
    assert wire.recv_frames(1) == [FRAME]


def test_an_interface_moved_to_another_namespace_goes_on(world: Any) -> None:
    nic = world.nic()
    with type(world.netns)() as other:
        world.move("tap0", other)
        nic.settle()
        assert nic.link.is_up
        other.up("tap0")
        assert nic.link.send(Burst.of([FRAME])) == 1
        assert other.counters("tap0")["rx_packets"] == 1


def test_a_nic_opens_where_an_asyncio_loop_is_running(world: Any) -> None:
    async def inside(open_link: Any, layers: Any) -> None:
        open_link(layers)

    nic = world.nic(mtu=2000, by=lambda *call: asyncio.run(inside(*call)))
    assert nic.link.is_up
    assert "mtu 2000" in world.ip("link", "show", "tap0")
