"""How a peer is written, and what is said of what can't be meant."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from vnic.config import structure
from vnic.errors import BackendError, ConfigError
from vnic_stream import Dgram, Stream
from vnic_stream.addresses import Passed, parse

FORMS = (
    "write a path with a slash in it, or unix:PATH, or an IP address and a port, as in "
    "127.0.0.1:5000 or [::1]:5000"
)
NEITHER = f"neither a path nor an address; {FORMS}"
NO_IP = f"is no IP address, and names are not looked up; {FORMS}"
NO_NUMBER = "no number of a descriptor; write it in decimal, as in fd=7"
GROUP = "a group of hosts can't be the peer; give the address of one"
NOT_PASSED = "have whoever starts it pass one on, and give its number"


@pytest.mark.parametrize(
    ("written", "family", "shown"),
    [
        ("/run/passt.sock", socket.AF_UNIX, "/run/passt.sock"),
        ("./a.sock", socket.AF_UNIX, "a.sock"),
        ("unix:a.sock", socket.AF_UNIX, "a.sock"),
        ("unix:127.0.0.1:5000", socket.AF_UNIX, "127.0.0.1:5000"),
        ("~/a.sock", socket.AF_UNIX, str(Path("~/a.sock").expanduser())),
        ("/run/a:5000", socket.AF_UNIX, "/run/a:5000"),
        ("127.0.0.1:5000", socket.AF_INET, "127.0.0.1:5000"),
        ("[::1]:5000", socket.AF_INET6, "[::1]:5000"),
        ("[2001:db8::1]:65535", socket.AF_INET6, "[2001:db8::1]:65535"),
    ],
)
def test_addresses_are_read(written: str, family: socket.AddressFamily, shown: str) -> None:
    address = parse(written)
    assert not isinstance(address, Passed)
    assert (address.family, str(address)) == (family, shown)


def test_a_descriptor_is_read() -> None:
    assert parse("fd=7") == Passed(7)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stream", NEITHER),
        ("stream:", NEITHER),
        ("stream:passt.sock", NEITHER),
        ("stream:unix:", f"no path; {FORMS}"),
        (f"stream:/{'x' * 107}", "a socket's path has at most 107 bytes; choose a shorter one"),
        ("stream:localhost:5000", f'"localhost" {NO_IP}'),
        ("stream::5000", f'"" {NO_IP}'),
        ("stream:[127.0.0.1]:5000", f'"127.0.0.1" {NO_IP}'),
        ("stream:127.0.0.1:0", "0 is no port; give one from 1 to 65535"),
        ("stream:127.0.0.1:99999", "99999 is no port; give one from 1 to 65535"),
        ("stream:::1:5000", "put an IPv6 address in brackets, as in [::1]:5000"),
        ("stream:fd=", NO_NUMBER),
        ("stream:fd=-1", NO_NUMBER),
        ("stream:fd=999999", f"this process has no descriptor 999999; {NOT_PASSED}"),
    ],
)
def test_a_name_that_means_nothing_is_one_clear_error(world: Any, name: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        world.line(Stream, name)
    assert str(error.value) == f"{name}: {text}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"listen": "maybe"}, "listen=maybe: neither on nor off; write on or off"),
        ({"reconnect": "soon"}, "reconnect=soon: not a number of seconds; write one, as in 0.5"),
        ({"reconnect": 0}, "reconnect=0: not a time to wait; give more than 0 seconds"),
        ({"reconnect": "5..1"}, "reconnect=5..1: the longest wait comes second; write 1..5"),
        (
            {"listen": "on", "reconnect": 1},
            "listen=on waits to be called, and reconnect is for who calls; keep one",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_one_clear_error(
    options: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError) as error:
        structure(options, "nic", Stream.Options)
    assert str(error.value) == f"nic: {text}"


def test_waits_are_read_as_the_shortest_and_the_longest() -> None:
    def read(value: object) -> object:
        return structure({"reconnect": value}, "nic", Stream.Options)[0].reconnect

    assert read("0.5..3") == (0.5, 3.0)
    assert read(2) == (2.0, 30.0)
    assert read("60") == (60.0, 60.0)


@pytest.mark.parametrize("options", [{"listen": "on"}, {"reconnect": "1"}])
def test_a_passed_socket_takes_no_option_of_who_calls(world: Any, options: dict[str, str]) -> None:
    ours, _ = world.bench.pair()
    name = f"stream:fd={ours.fileno()}"
    with pytest.raises(ConfigError) as error:
        world.line(Stream, name, **options)
    assert (
        str(error.value) == f"{name}: a passed socket has its peer; leave out listen and reconnect"
    )


def test_what_was_passed_must_be_a_connected_socket_of_the_right_kind(world: Any) -> None:
    with socket.socket(socket.AF_UNIX) as alone, Path("/dev/null").open() as file:
        for fd, plugin, name, text in (
            (file.fileno(), Stream, "stream", "descriptor {} is no socket; pass one"),
            (
                alone.fileno(),
                Stream,
                "stream",
                "this socket has no peer; connect it before it is passed",
            ),
            (
                alone.fileno(),
                Dgram,
                "dgram",
                "descriptor {} is a SOCK_STREAM socket; pass a SOCK_DGRAM one",
            ),
        ):
            with pytest.raises(ConfigError) as error:
                world.line(plugin, f"{name}:fd={fd}")
            assert str(error.value) == f"{name}:fd={fd}: {text.format(fd)}"
            os.fstat(fd)  # it is its owner's still


def test_where_one_cannot_listen_is_told_with_the_remedy(world: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    busy = world.listener(str(tmp_path / "busy.sock"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for name, kind, text in (
            (f"stream:{tmp_path}/file", ConfigError, "exists and is not a socket; choose another"),
            (f"stream:{tmp_path}/no/a", ConfigError, f"create it: mkdir -p {tmp_path}/no"),
            (f"stream:{busy.getsockname()}", BackendError, "another process listens on it"),
            (f"stream:127.0.0.1:{port}", BackendError, "stop the process that listens there"),
            ("stream:192.0.2.1:5000", BackendError, "give an address that this host has"),
        ):
            with pytest.raises(kind, match=text):
                world.line(Stream, name, listen="on")
    assert (tmp_path / "file").exists()
    assert (tmp_path / "busy.sock").exists()


# ---- datagrams -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("dgram:/a", {}, "dgram:/a: whom to send to isn't said; add peer=ADDRESS"),
        (
            "dgram:/a",
            {"peer": "127.0.0.1:5000"},
            "dgram:/a: 127.0.0.1:5000 is an address of another kind; give two of a kind",
        ),
        ("dgram:/a", {"peer": "b"}, f"dgram:/a: peer=b: {NEITHER}"),
        (
            "dgram:/a",
            {"peer": "fd=7"},
            "dgram:/a: peer=fd=7: a passed socket has its peer already; leave this out",
        ),
        (
            "dgram:127.0.0.1:5000",
            {"peer": "239.0.0.1:5000"},
            f"dgram:127.0.0.1:5000: peer=239.0.0.1:5000: {GROUP}",
        ),
        (
            "dgram:239.0.0.1:5000",
            {"peer": "127.0.0.1:5000"},
            "dgram:239.0.0.1:5000: a group of hosts; give an address of this one",
        ),
    ],
)
def test_datagrams_to_nowhere_are_one_clear_error(
    world: Any, name: str, options: dict[str, str], text: str
) -> None:
    with pytest.raises(ConfigError) as error:
        world.line(Dgram, name, **options)
    assert str(error.value) == text


def test_a_passed_datagram_socket_takes_no_peer(world: Any) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        name = f"dgram:fd={ours.fileno()}"
        with pytest.raises(ConfigError) as error:
            world.line(Dgram, name, peer="/a")
    assert str(error.value) == f"{name}: a passed socket has its peer; leave peer out"
