"""What the module is asked for, whatever a user writes."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from vnic.errors import BackendError, ConfigError
from vnic.features import NONE
from vnic.testing.bench import from_guest, to_guest
from vnic_netmap import Vale
from vnic_netmap.abi import (
    NETMAP_API,
    NIOCCTRL,
    NetmapReq,
    Nmreq,
    NmreqHeader,
    NmreqRegister,
    NrFlag,
    NrMode,
    NrRingid,
)
from vnic_netmap.testing import StandIn

Open = Callable[..., Any]
Run = Callable[[], None]

OWN = NrFlag.ACCEPT_VNET_HDR | NrFlag.NO_TX_POLL
"""What each port is registered with."""


class Asked(list[tuple[NmreqHeader | None, ctypes.Structure]]):
    """The requests that went to the module: headers, and bodies as they were."""

    def __init__(self, module: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ioctl = module.ioctl
        monkeypatch.setattr(module, "ioctl", self._note)

    def _note(self, fd: int, request: int, argument: Any = None) -> None:
        if request == NIOCCTRL:
            kind = argument.nr_reqtype == NetmapReq.REGISTER and NmreqRegister
            body = kind.from_address(argument.nr_body) if kind else argument
            self.append((copy(argument), copy(body)))
        elif isinstance(argument, Nmreq):
            self.append((None, copy(argument)))
        self._ioctl(fd, request, argument)

    def registrations(self) -> list[NmreqRegister]:
        return [body for _, body in self if isinstance(body, NmreqRegister)]


def copy(struct: Any) -> Any:
    return type(struct).from_buffer_copy(struct)


@pytest.fixture
def asked(module: StandIn, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(module, monkeypatch)


def test_no_request_ever_has_options(module: StandIn, side: Open, asked: Asked) -> None:  # F1
    # CVE-2022-23084, -23085: the module copies options in, and trusts lengths that it reads twice.
    module.add_nic("eth0", rings=2)
    for name in (
        "eth0",
        "eth0-1",
        "eth0^",
        "eth0*/x",
        "eth0/ztr",
        "eth0@1",
        "vale0:1",
        "p{1",
        "no",
    ):
        for options in ({}, {"slots": 4096, "rings": 64}, {"header": 12}, {"header": 0}):
            with suppress(ConfigError, BackendError):
                side(f"netmap:{name}", **options).link.close()
    side("vale0:web", Vale).link.close()
    headers = [header for header, _ in asked if header is not None]
    assert {header.nr_reqtype for header in headers} == {
        NetmapReq.REGISTER,
        NetmapReq.PORT_HDR_GET,
        NetmapReq.PORT_HDR_SET,
    }
    for header in headers:
        assert (header.nr_options, header.nr_reserved, header.nr_version) == (0, 0, NETMAP_API)


@pytest.mark.parametrize(
    ("suffix", "mode", "ring", "mem_id", "flags"),
    [
        ("", NrMode.ALL_NIC, 0, 0, NrFlag(0)),
        ("-1", NrMode.ONE_NIC, 1, 0, NrFlag(0)),
        ("^", NrMode.SW, 0, 0, NrFlag(0)),
        ("^1", NrMode.ONE_SW, 1, 0, NrFlag(0)),
        ("*", NrMode.NIC_SW, 0, 0, NrFlag(0)),
        ("@1", NrMode.ALL_NIC, 0, 1, NrFlag(0)),
        ("/x", NrMode.ALL_NIC, 0, 0, NrFlag.EXCLUSIVE),
        ("/R", NrMode.ALL_NIC, 0, 0, NrFlag.RX_RINGS_ONLY),
        ("/T", NrMode.ALL_NIC, 0, 0, NrFlag.TX_RINGS_ONLY),
        ("-1@1/xR", NrMode.ONE_NIC, 1, 1, NrFlag.EXCLUSIVE | NrFlag.RX_RINGS_ONLY),
    ],
)
def test_each_suffix_of_a_name_is_in_the_request_and_not_in_its_name(
    module: StandIn,
    side: Open,
    asked: Asked,
    suffix: str,
    mode: NrMode,
    ring: int,
    mem_id: int,
    flags: NrFlag,
) -> None:
    module.add_nic("eth0", rings=2, host_rings=2)
    side(f"netmap:eth0{suffix}")
    header, _ = asked[0]
    (request,) = asked.registrations()
    assert header is not None
    assert header.nr_name == b"eth0"
    assert (request.nr_mode, request.nr_ringid, request.nr_mem_id) == (mode, ring, mem_id)
    assert request.nr_flags == OWN | flags


@pytest.mark.parametrize(
    ("name", "ringid", "mem_id", "flags"),
    [
        ("eth0", 0, 0, NrMode.ALL_NIC),
        ("eth0-1", 1, 0, NrMode.ONE_NIC),
        ("eth0^", 0, 0, NrMode.SW),
        ("eth0*/x", 0, 0, NrMode.NIC_SW | NrFlag.EXCLUSIVE),
        ("eth0@1", 0, 1, NrMode.ALL_NIC),
        ("eth0{3", 3, 0, NrMode.PIPE_MASTER),
        ("eth0}3", 3, 0, NrMode.PIPE_SLAVE),
    ],
)
def test_a_module_of_old_is_asked_for_the_same_in_its_words(
    module: StandIn,
    side: Open,
    asked: Asked,
    name: str,
    ringid: int,
    mem_id: int,
    flags: int,
) -> None:
    module.add_nic("eth0", rings=2)
    module.fail(NIOCCTRL, errno.EINVAL)
    side(f"netmap:{name}")
    (request,) = (body for _, body in asked if isinstance(body, Nmreq) and not body.nr_cmd)
    assert (request.nr_name, request.nr_version) == (b"eth0", NETMAP_API)
    assert request.nr_ringid == ringid | NrRingid.NO_TX_POLL
    assert request.nr_arg2 == mem_id
    assert request.nr_flags == NrFlag.ACCEPT_VNET_HDR | flags


@pytest.mark.parametrize(
    ("letters", "flags"),
    [
        ("t", NrFlag.MONITOR_TX),
        ("r", NrFlag.MONITOR_RX),
        ("zr", NrFlag.ZCOPY_MON | NrFlag.MONITOR_RX),
    ],
)
def test_a_module_without_monitors_says_so(
    module: StandIn, side: Open, asked: Asked, letters: str, flags: NrFlag
) -> None:
    module.add_nic("eth0")
    with pytest.raises(BackendError, match="it was built without this kind of port"):
        side(f"netmap:eth0/{letters}")
    assert asked.registrations()[0].nr_flags == OWN | flags


def pretend_monitors(module: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a monitor be the port itself, to a stand-in that knows none."""
    ioctl = module.ioctl

    def as_if_there_were_monitors(fd: int, request: int, argument: Any = None) -> None:
        if request == NIOCCTRL and argument.nr_reqtype == NetmapReq.REGISTER:
            NmreqRegister.from_address(argument.nr_body).nr_flags &= ~int(NrFlag.MONITOR_RX)
        ioctl(fd, request, argument)

    monkeypatch.setattr(module, "ioctl", as_if_there_were_monitors)


def test_a_monitor_leaves_the_header_of_the_port_that_it_listens_to_alone(
    module: StandIn, side: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    side("netmap:vale0:1", header=0)
    pretend_monitors(module, monkeypatch)
    asked = Asked(module, monkeypatch)
    assert side("netmap:vale0:1/r").backend.get_capabilities() == NONE
    kinds = [header.nr_reqtype for header, _ in asked if header is not None]
    assert NetmapReq.PORT_HDR_GET in kinds
    assert NetmapReq.PORT_HDR_SET not in kinds


def test_a_monitor_hears_and_sends_nothing(
    module: StandIn, side: Open, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    nic = module.add_nic("eth0")
    pretend_monitors(module, monkeypatch)
    one = side("netmap:eth0/r")
    for frame in to_guest(3):
        nic.from_wire(frame)
    assert not one.guest.send(from_guest(3))
    run()
    assert one.guest.frames == to_guest(3)
    assert one.dropped() == {"netmap_drop_no_tx": 3}
    assert not nic.to_wire
