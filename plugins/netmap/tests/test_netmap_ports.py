"""Ports of all kinds are opened, with the rings and the header that was asked for."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from vnic.errors import BackendError, ConfigError
from vnic.features import NONE, OFFLOADS, Features
from vnic.testing.bench import from_guest, to_guest
from vnic_netmap import Netmap, Vale, system
from vnic_netmap.abi import NIOCCTRL, NIOCREGIF, NetmapReq, NrFlag
from vnic_netmap.control import get_header_len, register, set_header_len
from vnic_netmap.names import parse
from vnic_netmap.testing import StandIn

Open = Callable[..., Any]
Run = Callable[[], None]


def held(module: StandIn, name: str) -> int:
    """Register a port as another program would; return the descriptor."""
    fd = module.open()
    register(module, fd, parse(name), NrFlag.ACCEPT_VNET_HDR)
    return fd


# ---- names ------------------------------------------------------------------------------------


def test_a_nics_rings_see_its_wire(module: StandIn, side: Open, run: Run) -> None:
    nic = module.add_nic("eth0", rings=2)
    one = side("netmap:eth0")
    for i, frame in enumerate(to_guest(4)):
        nic.from_wire(frame, i % 2)
    one.guest.send(from_guest(3))
    run()
    assert sorted(one.guest.frames) == sorted(to_guest(4))
    assert list(nic.to_wire) == from_guest(3)
    assert not nic.to_host


def test_one_ring_leaves_the_others_to_others(module: StandIn, side: Open, run: Run) -> None:
    nic = module.add_nic("eth0", rings=2)
    first, second = side("netmap:eth0-0"), side("netmap:eth0-1")
    for i, frame in enumerate(to_guest(4)):
        nic.from_wire(frame, i % 2)
    first.guest.send(from_guest(1))
    second.guest.send(from_guest(1, first=1))
    run()
    assert first.guest.frames == to_guest(4)[::2]
    assert second.guest.frames == to_guest(4)[1::2]
    assert list(nic.to_wire) == from_guest(2)


def test_the_hosts_rings_are_its_network_stack(module: StandIn, side: Open, run: Run) -> None:
    nic = module.add_nic("eth0")
    stack = side("netmap:eth0^")
    nic.from_host(to_guest(1)[0])
    stack.guest.send(from_guest(2))
    run()
    assert stack.guest.frames == to_guest(1)
    assert list(nic.to_host) == from_guest(2)


def test_a_star_is_the_nic_and_its_host(module: StandIn, side: Open, run: Run) -> None:
    nic = module.add_nic("eth0")
    both = side("netmap:eth0*")
    nic.from_host(to_guest(2)[0])
    nic.from_wire(to_guest(2)[1])
    run()
    assert sorted(both.guest.frames) == sorted(to_guest(2))


def test_one_host_ring_of_several_can_be_had(module: StandIn, side: Open, run: Run) -> None:
    nic = module.add_nic("eth0", host_rings=2)
    stack = side("netmap:eth0^1")
    stack.guest.send(from_guest(2))
    run()
    assert list(nic.to_host) == from_guest(2)


def test_pipes_join_their_ends_and_no_others(side: Open, run: Run) -> None:
    ends = [side(f"netmap:{name}") for name in ("p{1", "p}1", "p{2", "p}2")]
    ends[0].guest.send(from_guest(5))
    run()
    assert [len(end.guest.frames) for end in ends] == [0, 5, 0, 0]


def test_a_switchs_ports_reach_each_other_and_pipes_on_a_port_too(side: Open, run: Run) -> None:
    a, b = side("netmap:vale0:a"), side("netmap:vale0:b")
    left, right = side("netmap:vale0:a{1"), side("netmap:vale0:a}1")
    a.guest.send(from_guest(3))
    left.guest.send(from_guest(2))
    run()
    assert b.guest.frames == from_guest(3)
    assert right.guest.frames == from_guest(2)


def test_an_exclusive_port_is_to_be_had_once(module: StandIn, side: Open) -> None:
    module.add_nic("eth0")
    side("netmap:eth0/x")
    with pytest.raises(BackendError, match="another program has it"):
        side("netmap:eth0")


def test_receive_rings_alone_count_what_is_sent(module: StandIn, side: Open, run: Run) -> None:
    nic = module.add_nic("eth0")
    one = side("netmap:eth0/R")
    nic.from_wire(to_guest(1)[0])
    one.guest.send(from_guest(3))
    run()
    assert one.guest.frames == to_guest(1)
    assert not nic.to_wire
    assert one.dropped() == {"netmap_drop_no_tx": 3}


def test_transmit_rings_alone_hear_nothing(module: StandIn, side: Open, run: Run) -> None:
    nic = module.add_nic("eth0")
    one = side("netmap:eth0/T")
    nic.from_wire(to_guest(1)[0])
    one.guest.send(from_guest(3))
    run()
    assert list(nic.to_wire) == from_guest(3)
    assert not one.guest.frames


def test_memory_is_shared_with_the_port_whose_id_is_given(module: StandIn, side: Open) -> None:
    module.add_nic("eth0")
    side("netmap:eth0@1")
    with pytest.raises(BackendError, match="refuses"):
        side("netmap:vale0:1@4711")


def test_rings_and_slots_are_as_many_as_asked_for(side: Open, run: Run) -> None:
    big, small = side("netmap:vale0:1", rings=4, slots=128), side("netmap:vale0:2", slots=16)
    rings = big.backend._port.rings
    assert (rings.n_tx, rings.n_rx) == (4, 4)
    big.guest.send(from_guest(15))
    run()
    assert small.guest.frames == from_guest(15)


# ---- modules of old ---------------------------------------------------------------------------


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> Any:
    with StandIn(control=False) as stand_in:
        monkeypatch.setattr(system, "current", stand_in)
        yield stand_in


def test_a_module_without_niocctrl_is_asked_the_old_way(
    old: StandIn, side: Open, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "current", old)  # after `side`'s
    nic = old.add_nic("eth0", rings=2)
    one, stack = side("netmap:eth0-1"), side("netmap:eth0^")
    a, b = side("netmap:vale0:1"), side("netmap:vale0:2")
    left, right = side("netmap:p{3"), side("netmap:p}3")
    nic.from_wire(to_guest(1)[0], 1)
    nic.from_host(to_guest(1)[0])
    for sender in (one, stack, a, left):
        sender.guest.send(from_guest(2, 3000 if sender is left else 1000))
    run()
    assert one.guest.frames == stack.guest.frames == to_guest(1)
    assert list(nic.to_wire) == list(nic.to_host) == b.guest.frames == from_guest(2, 1000)
    assert right.guest.frames == from_guest(2, 3000)
    assert a.backend._port.header_len == 12
    for each in (one, stack, a, b, left, right):
        each.link.close()


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENXIO])
def test_only_what_is_said_to_an_unknown_request_means_an_old_module(
    module: StandIn, side: Open, answer: int
) -> None:
    module.add_nic("eth0")
    module.fail(NIOCCTRL, answer)
    assert side("netmap:eth0").link.is_up
    module.fail(NIOCCTRL, errno.EBUSY)
    with pytest.raises(BackendError, match="another program"):
        side("netmap:eth0")


@pytest.mark.parametrize("name", ["netmap:vale0:123456789012345", "netmap:p{name"])
def test_a_name_that_the_old_way_would_cut_is_not_asked_for_in_it(
    module: StandIn, side: Open, name: str
) -> None:
    module.fail(NIOCCTRL, errno.EINVAL)
    module.fail(NIOCREGIF, errno.EIO)  # were it asked
    with pytest.raises(BackendError, match="a ring that it has not"):
        side(name)


# ---- the virtio-net header ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "header_len"),
    [
        ("netmap:vale0:1", {}, 12),
        ("netmap:vale0:1", {"header": 12}, 12),
        ("netmap:vale0:1", {"header": 10}, 10),
        ("netmap:vale0:1", {"header": 0}, 0),
        ("netmap:vale0:1{2", {}, 0),
        ("netmap:eth0", {}, 0),
        ("netmap:eth0", {"header": 0}, 0),
    ],
)
def test_a_port_of_a_switch_has_a_header_unless_told_otherwise(
    module: StandIn, side: Open, name: str, options: dict[str, int], header_len: int
) -> None:
    module.add_nic("eth0")
    one = side(name, **options)
    assert one.backend._port.header_len == header_len
    offloads = one.link.capabilities
    assert offloads == (OFFLOADS & ~(Features.HOST_USO | Features.HOST_ECN) if header_len else NONE)


def test_a_header_that_the_port_has_is_kept(module: StandIn, side: Open) -> None:
    fd = held(module, "vale0:1")
    set_header_len(module, fd, parse("vale0:1"), False, 10)
    assert side("netmap:vale0:1").backend._port.header_len == 10
    module.close(fd)


def test_a_header_is_never_taken_away(module: StandIn, side: Open) -> None:
    # Fault of the module: 12 and then 0 leaves the size of segments wrong.
    fd = held(module, "vale0:1")
    set_header_len(module, fd, parse("vale0:1"), False, 12)
    with pytest.raises(ConfigError, match="header=0: the port has one of 12 bytes already"):
        side("netmap:vale0:1", header=0)
    assert get_header_len(module, fd, parse("vale0:1"), False) == 12
    module.close(fd)


def test_a_header_is_not_set_by_way_of_trial(module: StandIn, side: Open) -> None:
    module.add_nic("eth0")
    module.fail(NetmapReq.PORT_HDR_SET, errno.EIO, times=9)
    for name in ("netmap:eth0", "netmap:eth0^", "netmap:p{1"):
        side(name)
    side("netmap:vale0:1", header=0)


def test_a_port_closed_with_its_header_opens_again_with_it_or_without(side: Open) -> None:
    for header in (12, 0, 10, None):
        one = side("netmap:vale0:1", header=header)
        assert one.backend._port.header_len == (12 if header is None else header)
        one.link.close()


def test_only_ports_of_a_switch_can_have_a_header(module: StandIn, side: Open) -> None:
    module.add_nic("eth0")
    for name in ("netmap:eth0", "netmap:p{1"):
        with pytest.raises(ConfigError, match="header=12: only ports of a VALE switch"):
            side(name, header=12)


def test_a_header_that_the_module_refuses_is_an_error_with_a_way_out(
    module: StandIn, side: Open
) -> None:
    module.fail(NetmapReq.PORT_HDR_SET, errno.EINVAL)
    with pytest.raises(BackendError, match="give header=0"):
        side("netmap:vale0:1")


def test_frames_that_came_before_the_header_was_set_are_not_misread(
    module: StandIn, side: Open, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = side("netmap:vale0:2", header=0)
    ioctl = module.ioctl

    def send_first(fd: int, request: int, argument: Any = None) -> None:
        if request == NIOCCTRL and argument.nr_reqtype == NetmapReq.PORT_HDR_SET:
            early.guest.send(from_guest(3))
        ioctl(fd, request, argument)

    monkeypatch.setattr(module, "ioctl", send_first)
    late = side("netmap:vale0:1")
    early.guest.send(from_guest(2, first=3))
    run()
    assert late.guest.frames == from_guest(2, first=3)
    assert late.dropped() == {}


# ---- what can't be opened -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errno.ENOENT, "modprobe netmap"),
        (errno.EACCES, "chmod 0660 /dev/netmap"),
        (errno.EMFILE, "free what this process"),
    ],
)
def test_without_the_device_the_error_says_what_to_do(
    module: StandIn, side: Open, error: int, says: str
) -> None:
    module.fail("open", error)
    with pytest.raises(BackendError, match="netmap:eth0: cannot open /dev/netmap: ") as raised:
        side("netmap:eth0")
    assert says in str(raised.value)


def test_a_port_of_vale_for_which_there_is_no_memory_is_told_who_takes_slots(
    module: StandIn, side: Open
) -> None:
    module.fail(NetmapReq.REGISTER, errno.ENOMEM)
    with pytest.raises(BackendError, match="give fewer, as in netmap:vale0:1,slots=256; or end"):
        side("vale0:1", backend=Vale)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errno.ENXIO, "is there an interface eth0?"),
        (errno.EBUSY, "another program has it"),
        (errno.ENOMEM, "slots=256"),
        (errno.EOPNOTSUPP, "built without this kind of port"),
        (errno.EPERM, "run as root"),
        (errno.EIO, "dmesg"),
    ],
)
def test_a_port_that_is_refused_says_what_to_do(
    module: StandIn, side: Open, error: int, says: str
) -> None:
    module.add_nic("eth0")
    module.fail(NetmapReq.REGISTER, error)
    module.fail(NIOCREGIF, error)
    with pytest.raises(BackendError, match="netmap:eth0: the module refuses this port") as raised:
        side("netmap:eth0")
    assert says in str(raised.value)


def test_a_ninth_switch_is_refused_with_the_limits(side: Open) -> None:
    for i in range(8):
        side(f"netmap:vale{i}:1", slots=8)
    with pytest.raises(
        BackendError, match="8 switches at the most, each with 254 ports, and a port"
    ):
        side("netmap:vale8:1", slots=8)


def test_a_nic_whose_frames_are_longer_than_buffers_is_refused_with_the_remedy(
    module: StandIn, side: Open
) -> None:
    module.add_nic("eth0", mtu=9000)
    with pytest.raises(BackendError, match="ip link set dev eth0 mtu 1500"):
        side("netmap:eth0")


def test_memory_that_cannot_be_mapped_is_an_error_and_leaves_nothing(
    module: StandIn, side: Open
) -> None:
    module.fail("mmap", errno.ENOMEM)
    with pytest.raises(BackendError, match="its memory of 0x"):
        side("netmap:vale0:1")


def test_memory_that_makes_no_sense_is_an_error_and_leaves_nothing(
    module: StandIn, side: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    mmap = module.mmap

    def scribbled(fd: int, length: int) -> Any:
        module.scribble(fd)
        return mmap(fd, length)

    monkeypatch.setattr(module, "mmap", scribbled)
    with pytest.raises(BackendError, match="of no use"):
        side("netmap:vale0:1")


@pytest.mark.parametrize(
    "options",
    [
        {"header": 11},
        {"header": "x"},
        {"slots": 4097},
        {"slots": 1},
        {"rings": 0},
        {"fragments": 2},
    ],
)
def test_options_that_can_not_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="; "):
        Netmap.Options(**options)
