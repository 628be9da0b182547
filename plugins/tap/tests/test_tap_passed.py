"""A descriptor that somebody else opened is used as it is, by whoever has it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kit.descriptors import n_open
from vnic import BackendError, ConfigError
from vnic.burst import Burst
from vnic.link import Link
from vnic.loop import Loop
from vnic_tap import Macvtap, Tap
from vnic_tap.device import (
    IFF_MULTI_QUEUE,
    IFF_NO_PI,
    IFF_TAP,
    IFF_TUN,
    IFF_VNET_HDR,
    TUNSETIFF,
    TUNSETOFFLOAD,
)

FRAME = bytes.fromhex("02aabbccdd01 02aabbccdd02 88b5") + bytes(46)
TUNSETQUEUE = TUNSETIFF + 15
IFF_DETACH_QUEUE = 0x0400
RIGHT = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
WANTED = "; pass one that was opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR"


def refused(fd: int, prefix: str = "tap", **options: Any) -> str:
    """Open it; return the error's text, without its beginning."""
    n_before = n_open()
    plugin = Macvtap if prefix == "macvtap" else Tap
    layer = plugin(), f"{prefix}:fd={fd}", plugin.Options(**options)
    loop = Loop()
    try:
        with pytest.raises((ConfigError, BackendError)) as caught:
            Link("nic0", loop).open([layer])
    finally:
        loop.close()
    assert n_open() == n_before
    text = str(caught.value)
    assert text.startswith(f"{prefix}:fd={fd}")
    return text.removeprefix(f"{prefix}:fd={fd}")


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


# ---- without root --------------------------------------------------------------------------------


@pytest.mark.parametrize("fd", [99_999, 999_999_999])
def test_a_number_that_is_no_open_descriptor_says_so(fd: int) -> None:
    assert refused(fd) == (
        f": this process has no descriptor {fd}; "
        "have whoever starts it pass one on, and give its number"
    )


def test_a_descriptor_that_is_no_tap_says_what_it_is() -> None:
    with closing(os.open("/dev/null", os.O_RDWR)) as fd:
        assert refused(fd) == (f": descriptor {fd} is no tap, but /dev/null; give the tap's number")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert f": descriptor {ours.fileno()} is no tap, but socket:[" in refused(ours.fileno())


@pytest.mark.parametrize(
    ("prefix", "options", "said"),
    [
        ("tap", {"persist": True}, "persist: that is for whoever opened the descriptor to decide"),
        ("tap", {"persist": False, "netns": "blue"}, "persist and netns: that is for whoever"),
        ("macvtap", {"parent": "eth0", "mode": "vepa"}, "parent and mode: that is for whoever"),
    ],
)
def test_what_is_its_owners_to_decide_is_no_option(
    prefix: str, options: dict[str, Any], said: str
) -> None:
    assert said in refused(0, prefix, **options)


# ---- in a namespace ------------------------------------------------------------------------------


@pytest.fixture
def opened(world: Any) -> Iterator[Callable[[int], int]]:
    """Open /dev/net/tun with these flags, or without any interface."""
    with contextlib.ExitStack() as fds:

        def make(flags: int) -> int:
            fd = world.netns.call(os.open, "/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fds.callback(os.close, fd)
            if flags:
                request = struct.pack("=16sH22x", b"tap0", flags)
                world.netns.call(fcntl.ioctl, fd, TUNSETIFF, request)
            return fd

        yield make


@pytest.mark.root
class TestPassed:
    def test_frames_cross_and_the_descriptor_stays_its_owners(self, world: Any) -> None:
        fd = world.open_tap()
        world.netns.up("tap0")
        for _ in range(2):
            nic, wire = world.nic(f"tap:fd={fd}", inside=False), world.wire()
            assert nic.link.send(Burst.of([FRAME])) == 1
            assert wire.recv_frames(1) == [FRAME]
            wire.send(FRAME)
            nic.run_until(lambda nic=nic: nic.room.frames == [FRAME])
            nic.link.close()
        os.fstat(fd)
        assert "tap0" in world.netns.interfaces()

    def test_a_frame_that_is_still_to_be_segmented_crosses_whole(
        self, world: Any, packet: Any
    ) -> None:
        nic = world.nic(f"tap:fd={world.open_tap()}")
        world.netns.up("tap0")
        nic.link.set_features(nic.link.capabilities)
        wire, sent = world.wire(), packet(4, 6, bytes(60_000), gso_size=1400)
        assert nic.link.send(Burst.of([sent.frame()], [sent.header()])) == 1
        assert wire.recv()[0] == sent.frame()
        wire.send(sent.frame(), sent.header())
        nic.run_until(lambda: nic.room.frames == [sent.frame()])

    def test_its_interface_is_left_as_it_is(self, world: Any) -> None:
        fd = world.open_tap()
        nic = world.nic(f"tap:fd={fd}", mtu=9000)  # what the guest is told; the wire is another's
        shown = world.ip("link", "show", "tap0")
        assert "mtu 1500" in shown
        assert "state DOWN" in shown
        assert nic.link.send(Burst.of([FRAME])) == 1
        assert nic.link.counters()["tx_drop_EIO"] == 1

    def test_what_its_last_user_left_there_is_set(self, world: Any, packet: Any) -> None:
        fd = world.open_tap()
        os.set_blocking(fd, True)
        fcntl.ioctl(fd, TUNSETOFFLOAD, 0x0F)
        world.netns.up("tap0")
        nic, wire = world.nic(f"tap:fd={fd}"), world.wire()
        sent = packet(4, 6, bytes(4200), gso_size=1400)
        wire.send(sent.frame(), sent.header())
        nic.run_until(lambda: len(nic.room.frames) == 3)
        assert nic.link.recv(nic.room) == 0  # at once: it doesn't block

    def test_deleted_while_in_use_takes_the_link_down(self, world: Any) -> None:  # F5
        fd = world.open_tap()
        nic = world.nic(f"tap:fd={fd}")
        world.netns.delete("tap0")
        nic.run_until(lambda: not nic.link.is_up)
        assert nic.link.reason.startswith(f"tap:fd={fd}: the interface was deleted while in use")
        assert nic.loop._watches == {}

    def test_deleted_before_it_is_opened_is_refused(self, world: Any) -> None:
        fd = world.open_tap()
        world.netns.delete("tap0")
        assert refused(fd) == NOT_ATTACHED

    def test_one_that_was_never_attached_is_refused(self, opened: Any) -> None:
        assert refused(opened(0)) == NOT_ATTACHED

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (
                IFF_TUN | IFF_NO_PI | IFF_VNET_HDR,
                "it is a tun, which carries IP packets and no Ethernet frames",
            ),
            (IFF_TAP | IFF_NO_PI, "its frames have no virtio-net header (IFF_VNET_HDR)"),
            (
                RIGHT | IFF_MULTI_QUEUE,
                "it is one queue of a multi-queue tap, whose frames may go to others",
            ),
        ],
        ids=["tun", "no header", "multi-queue"],
    )
    def test_one_whose_frames_we_cannot_read_is_refused(
        self, opened: Any, flags: int, said: str
    ) -> None:
        assert refused(opened(flags)) == f" (tap0): {said}{WANTED}"

    def test_a_detached_queue_is_refused(self, opened: Any) -> None:
        fd = opened(RIGHT | IFF_MULTI_QUEUE)
        fcntl.ioctl(fd, TUNSETQUEUE, struct.pack("=16sH22x", b"", IFF_DETACH_QUEUE))
        assert "its queue is detached (TUNSETQUEUE), so it has no frames" in refused(fd)

    def test_a_tap_is_no_macvtap_and_a_macvtap_no_tap(self, world: Any) -> None:
        fd = world.open_tap()
        assert refused(fd, "macvtap") == f" (tap0): it is a tap; write tap:fd={fd}"
        world.make_parent()
        world.make_macvtap()
        fd = world.open_macvtap()
        assert refused(fd) == f" (lan0): it is a macvtap; write macvtap:fd={fd}"

    def test_a_macvtaps_frames_have_a_header_whatever_its_owner_had_set(self, world: Any) -> None:
        world.make_parent()
        world.make_macvtap()
        world.netns.up("lan0")
        fd, wire = world.open_macvtap(), world.wire("end")
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", b"lan0", IFF_TAP | IFF_NO_PI))
        nic = world.nic(f"macvtap:fd={fd}")
        assert nic.link.send(Burst.of([FRAME])) == 1
        assert wire.recv_frames(1) == [FRAME]
        wire.send(b"\xff" * 6 + FRAME[6:])
        nic.run_until(lambda: nic.room.frames == [b"\xff" * 6 + FRAME[6:]])

    def test_a_macvtap_has_frames_for_one_address(
        self, world: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.make_parent()
        world.make_macvtap("lan0", "address", "02:00:00:00:00:07")
        fd = world.open_macvtap()
        text = refused(fd, "macvtap", mac="02:00:00:00:00:08")
        assert text == (
            " (lan0): mac=02:00:00:00:00:08: it has frames for 02:00:00:00:00:07 alone; "
            "give the guest that address: mac=02:00:00:00:00:07"
        )
        world.nic(f"macvtap:fd={fd}", mac="02:00:00:00:00:07")
        assert caplog.messages == []
        world.nic(f"macvtap:fd={fd}")
        (said,) = caplog.messages
        assert said == (
            f"macvtap:fd={fd} (lan0): it has frames for 02:00:00:00:00:07 and for no other guest; "
            "give the guest that address: mac=02:00:00:00:00:07"
        )

    @pytest.mark.parametrize("kind", ["tap", "macvtap"])
    def test_who_is_nobody_can_use_it(self, world: Any, kind: str) -> None:
        if kind == "tap":
            fd, interface = world.open_tap(), "tap0"
        else:
            world.make_parent()
            world.make_macvtap()
            fd, interface = world.open_macvtap(), "end"
            world.netns.up("lan0")
        world.netns.up(interface)
        wire = world.wire(interface)
        with subprocess.Popen(
            [sys.executable, "-c", AS_NOBODY, kind, str(fd)],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                assert child.stdout.readline() == "sent 1\n"
                assert wire.recv_frames(1) == [FRAME]
                wire.send(b"\xff" * 6 + FRAME[6:])
                assert child.stdout.readline() == "received 60 bytes\n"
                child.stdin.close()
                assert child.wait(10) == 0
            finally:
                child.kill()


NOT_ATTACHED = (
    ": it is attached to no interface; attach it (TUNSETIFF) before it is passed, "
    "or, if its interface was deleted, pass a new one"
)

AS_NOBODY = """
import os, sys
from vnic.burst import Burst
from vnic.features import NONE
from vnic.link import Link
from vnic.loop import Loop
from vnic.pool_kernel import Pool
from vnic.burst import Room
from vnic_tap import Macvtap, Tap

os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)

kind, fd = sys.argv[1:]
plugin = Tap if kind == "tap" else Macvtap
loop = Loop()
link = Link("nic0", loop)
link.open([(plugin(), f"{kind}:fd={fd}", plugin.Options())])
frame = bytes.fromhex("02aabbccdd01 02aabbccdd02 88b5") + bytes(46)
print("sent", link.send(Burst.of([frame])), flush=True)

pool = Pool(int(NONE))
room = Room(pool.capsule, pool)

def receive():
    room.open()
    link.recv(room)
    room.close()
    if len(pool.burst):
        print("received", len(pool.burst[0]), "bytes", flush=True)
        loop.stop()

link.on_readable = receive
link.recv_enable()
loop.run()
link.close()
loop.close()
sys.stdin.read()
"""
