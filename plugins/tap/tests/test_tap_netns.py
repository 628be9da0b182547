"""A tap in a network namespace that this process is not in."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from kit.descriptors import n_open
from vnic import BackendError, ConfigError
from vnic.burst import Burst
from vnic_tap import namespace
from vnic_tap.namespace import Namespace

FRAME = bytes.fromhex("02aabbccdd01 02aabbccdd02 88b5") + bytes(46)


def refused(where: str) -> str:
    with pytest.raises((ConfigError, BackendError)) as caught:
        Namespace("tap0", where)
    return str(caught.value)


# ---- without root --------------------------------------------------------------------------------


def test_a_name_that_ip_netns_has_not_says_how_to_make_it() -> None:
    assert refused("no-such-name") == (
        "tap0: netns=no-such-name: cannot open /run/netns/no-such-name: "
        "no such file or directory; ip netns lists those there are, ip netns add makes one"
    )


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/ns/mnt", "/", "."])
def test_what_is_no_network_namespace_is_refused(path: str) -> None:
    before = n_open()
    assert " is no network namespace; give a name that ip netns lists, or" in refused(path)
    assert n_open() == before


def test_a_pipe_of_that_name_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no network namespace" in refused(str(tmp_path / "pipe"))


def test_a_path_with_a_zero_byte_is_an_error_like_any_other() -> None:
    assert "invalid argument; give a name that ip netns lists" in refused("a\0b")


def test_where_we_are_takes_no_privilege() -> None:
    with Namespace("tap0", "/proc/self/ns/net") as here:
        assert here.call(os.stat, "/proc/thread-self/ns/net") == Path("/proc/self/ns/net").stat()


# ---- in a namespace ------------------------------------------------------------------------------


@pytest.mark.root
class TestAnother:
    def test_a_path_leads_there(self, world: Any) -> None:
        nic, wire = world.nic(netns=world.netns.path, inside=False, mtu=4000), world.wire()
        assert "mtu 4000" in world.ip("link", "show", "tap0")
        assert nic.link.send(Burst.of([FRAME])) == 1
        assert wire.recv_frames(1) == [FRAME]
        nic.link.close()
        assert world.netns.interfaces().keys() == {"lo"}

    def test_a_name_leads_there(
        self, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "blue").symlink_to(world.netns.path)
        monkeypatch.setattr(namespace, "NAMES", tmp_path)
        world.nic(netns="blue", inside=False)
        assert "tap0" in world.netns.interfaces()

    def test_an_existing_tap_there_is_attached_to(self, world: Any) -> None:
        world.make_tap("tap7")
        assert world.nic("tap7", netns=world.netns.path, inside=False).link.is_up

    def test_no_thread_of_ours_is_moved(self, world: Any) -> None:
        def where() -> set[str]:
            places = set()
            for task in Path("/proc/self/task").iterdir():
                with contextlib.suppress(OSError):  # it is just ending
                    places.add(f"{task.name} {(task / 'ns/net').readlink()}")
            return places

        before = where()
        nic = world.nic(netns=world.netns.path, inside=False)
        nic.run_until(lambda: where() == before)  # a thread that is joined ends a little later
        nic.link.close()
        assert where() == before

    def test_what_cannot_be_entered_says_what_it_takes(self, world: Any, bare: Any) -> None:
        fd = os.open(world.netns.path, os.O_RDONLY)
        before = n_open()
        with pytest.raises(BackendError) as caught:
            world.nic(netns=f"/proc/self/fd/{fd}", inside=False, by=bare)
        world.close()
        assert n_open() == before
        os.close(fd)
        assert str(caught.value) == (
            f"tap0: netns=/proc/self/fd/{fd}: cannot enter it: operation not permitted; run with "
            "CAP_SYS_ADMIN, or have somebody open the tap there and pass it: tap:fd=N"
        )

    def test_an_error_there_leaves_nothing_open(self, world: Any) -> None:
        world.nic(netns=world.netns.path, inside=False).link.close()
        world.close()
        before = n_open()
        with pytest.raises(ConfigError, match="tap0: mtu=65535: this interface can't have it"):
            world.nic(netns=world.netns.path, inside=False, mtu=65535)
        world.close()
        assert n_open() == before
        assert world.netns.interfaces().keys() == {"lo"}

    def test_a_namespace_that_ends_takes_the_link_down(self, world: Any) -> None:  # F5
        nic = world.nic()
        with type(world.netns)() as other:
            world.move("tap0", other)
            nic.settle()
            assert nic.link.is_up
        nic.run_until(lambda: not nic.link.is_up)
        assert "the interface was deleted while in use" in nic.link.reason
        assert nic.loop._watches == {}

    def test_a_namespace_lives_as_long_as_a_tap_that_was_opened_there(self, world: Any) -> None:
        other = type(world.netns)()
        nic = world.nic(netns=other.path, inside=False)
        inode = Path(other.path).stat().st_ino
        other.close()
        nic.settle()
        assert nic.link.is_up
        assert inode not in {Path("/proc/self/ns/net").stat().st_ino}
        assert nic.link.send(Burst.of([FRAME])) == 1
        assert "tx_drop_EIO" not in nic.link.counters()
