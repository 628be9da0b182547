"""What can keep a tap from being opened: one clear error each, and nothing left open."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from kit.descriptors import n_open
from vnic import BackendError, ConfigError
from vnic.config import structure
from vnic.link import Link
from vnic.loop import Loop
from vnic_tap import Tap, tap


@pytest.fixture
def refused() -> Any:
    """Open what can't be, in a world if one is given; return the error's text."""

    def open_here(name: str, **options: Any) -> None:
        loop = Loop()
        try:
            Link("nic0", loop).open([(Tap(), name, Tap.Options(**options))])
        finally:
            loop.close()

    def refused(
        kind: type[Exception], name: str, world: Any = None, by: Any = None, **options: Any
    ) -> str:
        if world is not None:
            world.nic("warmup").link.close()  # what netlink imports and opens once is there now
            world.close()
        before = n_open()
        with pytest.raises(kind) as caught:
            open_here(name, **options) if world is None else world.nic(name, by=by, **options)
        if world is not None:
            world.close()
        assert n_open() == before
        return str(caught.value)

    return refused


# ---- without root --------------------------------------------------------------------------------


def test_no_dev_net_tun_says_how_to_get_it(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap, "TUN_PATH", tmp_path / "tun")
    assert refused(BackendError, "tap0") == (
        f"tap0: cannot open {tmp_path}/tun: no such file or directory; "
        "load the kernel's module (modprobe tun), or give this container the device"
    )


def test_dev_net_tun_that_may_not_be_opened_says_what_to_do(
    refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def denied(path: object, *arguments: Any) -> int:
        if path == tap.TUN_PATH:
            raise PermissionError(13, os.strerror(13))
        return real(path, *arguments)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", denied)
    assert refused(BackendError, "tap0") == (
        "tap0: cannot open /dev/net/tun: permission denied; "
        "let everybody open it, since each tap has an owner: chmod 0666 /dev/net/tun"
    )


@pytest.mark.parametrize(
    ("key", "value"), [("mtu", "67"), ("mtu", "big"), ("sndbuf", "100"), ("offload", "maybe")]
)
def test_an_option_that_makes_no_sense_names_key_and_value(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^nic0: {key}={value}: .*(write|give) "):
        structure({key: value}, "nic0", Tap.Options)


def test_options_are_read_from_text() -> None:
    (options,) = structure(
        {"mtu": "9000", "offload": "off", "sndbuf": "0x10000"}, "nic0", Tap.Options
    )
    assert options == Tap.Options(mtu=9000, offload=False, sndbuf=65536)
    assert Tap.Options() == Tap.Options(mtu=None, offload=True, sndbuf=None)


# ---- in a namespace ------------------------------------------------------------------------------


@pytest.mark.root
class TestRealTap:
    def test_without_permission_to_make_one_says_how_to_pre_create_it(
        self, world: Any, refused: Any, bare: Any
    ) -> None:
        assert refused(BackendError, "tap0", world, bare) == (
            "tap0: cannot attach: operation not permitted; "
            "run with CAP_NET_ADMIN, or pre-create it for this user:\n"
            "  ip tuntap add tap0 mode tap user root"
        )

    def test_a_tap_of_another_user_says_whose_it_is(
        self, world: Any, refused: Any, bare: Any
    ) -> None:
        world.make_tap("tap0", "user", "nobody")
        assert refused(BackendError, "tap0", world, bare) == (
            "tap0: cannot attach: operation not permitted, it belongs to user nobody; "
            "run with CAP_NET_ADMIN, or make it this user's:\n"
            "  ip tuntap del tap0 mode tap && ip tuntap add tap0 mode tap user root"
        )

    def test_a_tap_of_another_group_says_whose_it_is(
        self, world: Any, refused: Any, bare: Any
    ) -> None:
        world.make_tap("tap0", "group", "54321")
        text = refused(BackendError, "tap0", world, bare)
        assert "operation not permitted, it belongs to group 54321; run with" in text

    def test_a_tap_that_is_in_use_says_so(self, world: Any, refused: Any) -> None:
        fd = world.netns.open_tap("tap0")
        try:
            text = refused(BackendError, "tap0", world)
        finally:
            os.close(fd)
        assert text == (
            "tap0: cannot attach: device or resource busy: another program has it open; "
            "end that, or choose another name"
        )

    def test_a_tun_is_no_tap(self, world: Any, refused: Any) -> None:
        world.make_tap("tap0", mode="tun")
        assert refused(ConfigError, "tap0", world) == (
            "tap0: cannot attach: it is a tun, which carries IP packets and no Ethernet frames; "
            "choose another name, or make it a tap:\n"
            "  ip tuntap del tap0 mode tun && ip tuntap add tap0 mode tap user root"
        )

    def test_a_multi_queue_tap_is_refused_with_the_way_out(self, world: Any, refused: Any) -> None:
        world.make_tap("tap0", "multi_queue")
        text = refused(ConfigError, "tap0", world)
        assert text == (
            "tap0: cannot attach: it was made with multi_queue, and only one queue is used here; "
            "make it without:\n"
            "  ip tuntap del tap0 mode tap multi_queue && ip tuntap add tap0 mode tap user root"
        )

    def test_the_way_out_of_multi_queue_works_as_printed(self, world: Any, refused: Any) -> None:
        world.make_tap("tap0", "multi_queue")
        command = refused(ConfigError, "tap0", world).splitlines()[1]
        world.netns.run(["sh", "-c", command])
        assert world.nic().link.is_up

    @pytest.mark.parametrize(
        ("name", "what"), [("tap0", "of kind veth"), ("lo", "hardware or loopback")]
    )
    def test_an_interface_that_is_no_tap_says_what_it_is(
        self, world: Any, refused: Any, name: str, what: str
    ) -> None:
        world.netns.add_veth("tap0", "end")
        assert refused(ConfigError, name, world) == (
            f"{name}: cannot attach: this interface is {what}, not a tap; choose another name"
        )

    def test_an_mtu_that_no_tap_can_have_gives_the_range(self, world: Any, refused: Any) -> None:
        text = refused(ConfigError, "tap0", world, mtu=65535)
        assert re.fullmatch(r"tap0: mtu=65535: this interface can't have it; give 68 to \d+", text)
        assert world.netns.interfaces().keys() == {"lo"}

    def test_an_mtu_that_may_not_be_set_says_how_to_set_it(
        self, world: Any, refused: Any, bare: Any
    ) -> None:
        world.make_tap("tap0", "user", "root")
        world.netns.up("tap0")
        assert refused(BackendError, "tap0", world, bare, mtu=9000) == (
            "tap0: cannot set its MTU to 9000 (it is 1500): operation not permitted; "
            "run with CAP_NET_ADMIN, or have it done beforehand:\n"
            "  ip link set tap0 mtu 9000"
        )

    def test_an_interface_that_may_not_be_brought_up_says_how(
        self, world: Any, refused: Any, bare: Any
    ) -> None:
        world.make_tap("tap0", "user", "root")
        assert refused(BackendError, "tap0", world, bare) == (
            "tap0: cannot bring it up: operation not permitted; "
            "run with CAP_NET_ADMIN, or have it done beforehand:\n"
            "  ip link set tap0 up"
        )

    def test_a_tap_prepared_for_this_user_needs_no_permission(self, world: Any, bare: Any) -> None:
        world.make_tap("tap0", "user", "root")
        world.netns.up("tap0", mtu=9000)
        assert world.nic(by=bare).link.is_up

    def test_what_is_as_asked_for_is_not_set_again(self, world: Any, bare: Any) -> None:
        world.make_tap("tap0", "user", "root")
        world.netns.up("tap0", mtu=9000)
        assert world.nic(by=bare, mtu=9000).link.is_up
