"""A macvtap: made or found, whose frames it has, and how its end is noticed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.descriptors import n_open
from vnic import BackendError, ConfigError
from vnic.burst import Burst
from vnic.config import default_mac
from vnic.loop import Loop
from vnic.nic import open_spec
from vnic.testing import SoftwareHost
from vnic.testing.bench import Clock

pytestmark = pytest.mark.root

GUEST = bytes.fromhex("020000000007")
OTHER = bytes.fromhex("020000000008")
MAC = GUEST.hex(":")
GONE = (
    "macvtap:lan0: the interface was deleted while in use; add it again, then open this NIC again"
)


def frame(dst: bytes, n: int = 60) -> bytes:
    return (dst + OTHER + b"\x88\xb5").ljust(n, b".")


@pytest.fixture
def parent(world: Any) -> None:
    world.make_parent()


@pytest.fixture
def refused(world: Any, parent: None) -> Callable[..., str]:
    """Open what can't be; return the error's text, and see that nothing is left of it."""

    def refused(name: str = "macvtap:lan0", by: Any = None, **options: Any) -> str:
        world.nic("macvtap:warmup", parent="up0", mac="02:00:00:00:00:99").link.close()
        interfaces, n_before = world.netns.interfaces(), n_open()
        with pytest.raises((ConfigError, BackendError)) as caught:
            world.nic(name, by=by, **options).link.close()
        assert world.netns.interfaces() == interfaces
        assert n_open() <= n_before + 3  # the loop's own, which are closed with the world
        return str(caught.value)

    return refused


@pytest.fixture
def stepping(world: Any) -> Iterator[Callable[..., Any]]:
    """Open a NIC whose clock goes on as it is waited for, by a second at a time."""
    clock = Clock()

    def open_nic(*arguments: Any, **options: Any) -> Any:
        nic = world.nic(*arguments, clock=clock, **options)

        def pass_time(seconds: int) -> None:
            for _ in range(seconds):
                clock.now_s += 1
                nic.settle()

        nic.pass_time = pass_time
        return nic

    return open_nic


# ---- making and finding --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "bridge", "vepa", "private", "passthru"])
def test_one_is_made_up_with_address_and_mtu_and_goes_in_the_end(
    world: Any, parent: None, mode: str | None
) -> None:
    nic = world.nic("macvtap:lan0", parent="up0", mac=MAC, mtu=1400, mode=mode)
    shown = world.ip("-d", "link", "show", "lan0")
    for said in (f"ether {MAC}", "mtu 1400", "LOWER_UP", f"macvtap mode {mode or 'bridge'}"):
        assert said in shown
    nic.link.close()
    assert world.netns.interfaces().keys() == {"lo", "up0", "end"}


def test_one_that_is_there_is_attached_to_and_stays(world: Any, parent: None) -> None:
    world.make_macvtap()
    for _ in range(2):
        nic = world.nic("macvtap:lan0", mac=MAC)
        assert f"ether {MAC}" in world.ip("link", "show", "lan0")
        nic.link.close()
    assert "lan0" in world.netns.interfaces()


def test_persist_says_whether_it_stays(world: Any, parent: None) -> None:
    world.nic("macvtap:lan0", parent="up0", mac=MAC, persist=True).link.close()
    assert "lan0" in world.netns.interfaces()
    world.nic("macvtap:lan0", mac=MAC, persist=False).link.close()
    assert "lan0" not in world.netns.interfaces()


def test_in_another_namespace_its_parent_is_there_as_well(world: Any, parent: None) -> None:
    nic = world.nic("macvtap:lan0", parent="up0", mac=MAC, netns=world.netns.path, inside=False)
    wire = world.wire("end")
    assert nic.link.send(Burst.of([frame(OTHER)])) == 1
    assert wire.recv_frames(1) == [frame(OTHER)]
    nic.link.close()
    assert "lan0" not in world.netns.interfaces()


def test_its_device_file_is_no_other_namespaces(world: Any, parent: None) -> None:
    nics = [world.nic("macvtap:lan0", parent="up0", mac=MAC)]
    with type(world.netns)() as other:
        other.add_veth("up0", "end")
        nics.append(
            world.nic("macvtap:lan0", parent="up0", mac=MAC, netns=other.path, inside=False)
        )
        indices = {world.netns.interfaces()["lan0"], other.interfaces()["lan0"]}
        assert len(indices) == 2
        assert all(Path(f"/dev/tap{index}").exists() for index in indices)
        for nic in nics:
            nic.link.close()


# ---- whose frames it has -------------------------------------------------------------------------


def test_it_has_the_guests_frames_and_those_for_all_and_for_any_group(
    world: Any, parent: None
) -> None:
    nic = world.nic("macvtap:lan0", parent="up0", mac=MAC)
    wire = world.wire("end")
    group = bytes.fromhex("3333ff123456")  # as IPv6 asks for a neighbour
    expected = [frame(GUEST), frame(b"\xff" * 6), frame(group)]
    for data in (frame(OTHER), *expected):
        wire.send(data)
    nic.run_until(lambda: len(nic.room.frames) == 3)
    nic.settle()
    assert sorted(nic.room.frames) == sorted(expected)


def test_without_an_address_it_is_the_one_made_from_the_nics_name_and_said(
    world: Any, parent: None, caplog: pytest.LogCaptureFixture
) -> None:
    world.nic("macvtap:lan0", parent="up0")
    mac = default_mac("nic0").hex(":")
    assert f"ether {mac}" in world.ip("link", "show", "lan0")
    (said,) = caplog.messages
    assert said == (
        f"lan0: it has frames for {mac} and for no other guest; give the guest that address: "
        f"mac={mac}"
    )


def test_one_that_is_there_keeps_its_address_when_none_is_given(
    world: Any, parent: None, caplog: pytest.LogCaptureFixture
) -> None:
    world.make_macvtap("lan0", "address", MAC)
    world.nic("macvtap:lan0")
    assert f"ether {MAC}" in world.ip("link", "show", "lan0")
    assert f"give the guest that address: mac={MAC}" in caplog.text


@pytest.mark.parametrize("frontend", ["virtio-net", "e1000"])
def test_one_option_is_the_guests_address_and_the_interfaces(
    world: Any, parent: None, frontend: str
) -> None:
    pytest.importorskip(f"vnic_{frontend.replace('-', '_')}")
    loop = Loop()
    host = SoftwareHost(loop)
    nic = world.netns.call(open_spec, f"{frontend},macvtap:lan0,parent=up0,mac={MAC}", host)
    try:
        assert nic.frontend.mac == GUEST
        assert f"ether {MAC}" in world.ip("link", "show", "lan0")
    finally:
        nic.close()
        loop.close()


# ---- how its end is noticed ----------------------------------------------------------------------


@pytest.mark.parametrize("deleted", ["lan0", "up0"])
def test_deleted_while_in_use_takes_the_link_down_within_a_second(
    world: Any, parent: None, stepping: Any, deleted: str
) -> None:  # F5
    nic = stepping("macvtap:lan0", parent="up0", mac=MAC)
    nic.pass_time(3)
    assert nic.link.is_up
    world.netns.delete(deleted)
    nic.pass_time(1)
    assert nic.link.reason == GONE
    assert nic.ups == [False]
    assert nic.loop._watches == {}
    assert nic.link.send(Burst.of([frame(OTHER)])) == 1
    assert nic.link.counters()["tx_drop_link_down"] == 1


def test_deleted_under_a_paused_guest_takes_the_link_down_too(
    world: Any, parent: None, stepping: Any
) -> None:  # F5
    nic = stepping("macvtap:lan0", parent="up0", mac=MAC)
    nic.link.recv_disable()
    world.netns.delete("lan0")
    nic.pass_time(1)
    assert nic.link.reason == GONE


def test_moved_to_another_namespace_it_goes_on_and_its_end_there_is_noticed(
    world: Any, parent: None, stepping: Any
) -> None:
    world.make_macvtap()
    nic = stepping("macvtap:lan0", mac=MAC)
    wire = world.wire("end")
    with type(world.netns)() as other:
        world.move("lan0", other)
        other.up("lan0")
        nic.pass_time(2)
        assert nic.link.is_up
        assert nic.link.send(Burst.of([frame(OTHER)])) == 1
        assert wire.recv_frames(1) == [frame(OTHER)]
    nic.run_until(lambda: nic.pass_time(1) or not nic.link.is_up)
    assert nic.link.reason == GONE


# ---- errors --------------------------------------------------------------------------------------


def test_one_that_is_not_there_says_how_to_make_it(refused: Any) -> None:
    assert refused() == (
        "lan0: there is no such interface; say parent=INTERFACE to have it made there, or make it:"
        "\n  ip link add link INTERFACE name lan0 type macvtap mode bridge"
    )


def test_a_parent_that_is_not_there_is_named(refused: Any) -> None:
    assert refused(parent="eth7") == (
        "lan0: parent=eth7: there is no such interface; see those that are: ip link"
    )


def test_a_parent_that_cannot_be_one_is_the_hosts_error(refused: Any) -> None:
    assert refused(parent="lo", mac=MAC).startswith(
        "lan0: cannot make it on lo: invalid argument; have it made beforehand:\n"
        "  ip link add link lo name lan0 type macvtap mode bridge"
    )


def test_two_on_one_parent_need_an_address_each(world: Any, refused: Any) -> None:
    world.nic("macvtap:lan1", parent="up0", mac=MAC)
    assert refused(parent="up0", mac=MAC) == (
        "lan0: cannot bring it up: another interface on its parent has the same address; "
        "give this NIC one of its own: mac=..."
    )


def test_making_one_takes_a_privilege(refused: Any, bare: Any) -> None:
    assert refused(parent="up0", by=bare) == (
        "lan0: cannot make it on up0: operation not permitted; "
        "run with CAP_NET_ADMIN, or have it made beforehand:\n"
        "  ip link add link up0 name lan0 type macvtap mode bridge"
    )


def test_what_is_wrong_once_it_is_made_leaves_none_behind(refused: Any) -> None:
    assert refused(parent="up0", mtu=9000) == (
        "lan0: mtu=9000: this interface can't have it; give 68 to 1500"
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"mode": "vepa"}, "lan0: mode=vepa: it was made with mode bridge; leave the option out,"),
        ({"parent": "end"}, "lan0: parent=end: it is on another one; leave the option out, or"),
    ],
)
def test_one_that_is_there_must_be_the_one_described(
    world: Any, refused: Any, option: dict[str, str], said: str
) -> None:
    world.make_macvtap()
    assert refused(mac=MAC, **option).startswith(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("macvtap:up0", "up0: this interface is of kind veth, not a macvtap; choose another name"),
        ("macvtap:tap0", "tap0: this interface is a tap, not a macvtap; write tap:tap0"),
        ("tap:lan0", "lan0: cannot attach: it is a macvtap, not a tap; write macvtap:lan0"),
    ],
)
def test_an_interface_of_another_kind_says_what_it_is(
    world: Any, refused: Any, name: str, said: str
) -> None:
    world.make_tap()
    world.make_macvtap()
    assert refused(name) == said


def test_one_that_another_vnic_has_is_refused(world: Any, refused: Any) -> None:
    world.make_macvtap()
    first = world.nic("macvtap:lan0", mac=MAC)
    assert refused(mac=MAC) == ("lan0: another vnic has it open; end that, or choose another name")
    first.link.close()
    assert world.nic("macvtap:lan0", mac=MAC).link.is_up


def test_a_device_file_of_another_namespace_is_not_taken_for_its_own(
    world: Any, refused: Any
) -> None:
    world.make_macvtap("lan0", "address", MAC)
    index = str(world.netns.interfaces()["lan0"])
    with type(world.netns)() as other:
        other.add_veth("up0", "end")
        what = ("name", "lan0", "index", index, "address", OTHER.hex(":"), "type", "macvtap")
        other.run(["ip", "link", "add", "link", "up0", *what])
        with pytest.raises(BackendError) as caught:
            world.nic("macvtap:lan0", netns=other.path, inside=False)
        assert str(caught.value).startswith(
            f"lan0: /dev/tap{index} belongs to another interface (lan0), which has the same index "
            "in another network namespace; make this one with an index of its own: "
        )
        assert world.nic("macvtap:lan0", mac=MAC).link.is_up


def test_a_device_file_that_is_not_this_users_says_whose_it_has_to_be(
    world: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_macvtap("lan0", "address", MAC)
    world.netns.up("lan0")
    path = Path(f"/dev/tap{world.netns.interfaces()['lan0']}")
    real = os.open

    def denied(what: object, *arguments: Any) -> int:
        if what == path:
            raise PermissionError(13, os.strerror(13))
        return real(what, *arguments)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", denied)
    assert refused(mac=MAC) == (
        f"lan0: cannot open {path}: permission denied; give it to this user: chown root {path}"
    )


def test_a_device_file_that_is_not_there_says_what_else_there_is(
    world: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_macvtap("lan0", "address", MAC)
    path = Path(f"/dev/tap{world.netns.interfaces()['lan0']}")
    path.unlink()
    assert refused(mac=MAC) == (
        f"lan0: cannot open {path}: no such file or directory; this /dev hasn't got it: run where "
        "/dev is the kernel's (devtmpfs), or have the descriptor passed: macvtap:fd=N"
    )


def test_one_prepared_for_this_user_takes_no_privilege(
    world: Any, parent: None, bare: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.make_macvtap("lan0", "address", MAC)
    world.ip("link", "set", "lan0", "allmulticast", "on", "up")
    assert world.nic("macvtap:lan0", mac=MAC, by=bare).link.is_up
    assert caplog.messages == []


def test_without_the_privilege_for_groups_it_is_said_what_the_guest_misses(
    world: Any, parent: None, bare: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.make_macvtap("lan0", "address", MAC)
    world.netns.up("lan0")
    assert world.nic("macvtap:lan0", mac=MAC, by=bare).link.is_up
    (said,) = caplog.messages
    assert said == (
        "lan0: cannot have it take all multicast frames, which IPv6 needs: "
        "operation not permitted; run with CAP_NET_ADMIN, or have it done beforehand:\n"
        "  ip link set lan0 allmulticast on"
    )
