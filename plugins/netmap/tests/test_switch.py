"""The embedded switch: who gets which frame, and who is behind which port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.fakes import PassingFilter
from kit.lan import ALL, Lan
from vnic.burst import Burst
from vnic.errors import ConfigError
from vnic.hookspecs import hookimpl
from vnic.link import Joint, Link
from vnic.loop import Loop
from vnic_netmap import Vale
from vnic_netmap.switch_kernel import MIXED, Forwarding


@pytest.fixture
def lan() -> Iterator[Lan]:
    lan = Lan()
    yield lan
    lan.close()


# ---- learning ------------------------------------------------------------------------------------


def test_a_frame_for_an_unknown_address_goes_to_all_others(lan: Lan) -> None:
    a, b, c = (lan.add(name) for name in "abc")
    assert a.send_to(c) == 1
    assert (a.got(), b.heard(a), c.heard(a)) == ([], [0], [0])
    assert a.count("vale_to_all") == 1


def test_who_has_sent_is_known_and_gets_its_frames_alone(lan: Lan) -> None:
    a, b, c = (lan.add(name) for name in "abc")
    a.send_to(ALL)
    c.send_to(a, first=1)
    assert a.heard(c) == [1]
    assert b.heard(a) == [0]


def test_group_addresses_and_zero_are_never_learnt(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc")
    for source in (ALL, bytes.fromhex("0180c2000000"), bytes(6)):
        b.send(a.mac + source + bytes(48))
        a.got()
        a.send(a.frame(source))
        assert len(b.got()) == len(c.got()) == 1


@pytest.mark.parametrize("mac", ["ffffffffffff", "01005e000001", "333300000001"])
def test_frames_to_a_group_go_to_all_but_their_sender(lan: Lan, mac: str) -> None:
    a, b, c = lan.acquainted("abc")
    a.send_to(bytes.fromhex(mac))
    assert (a.got(), b.heard(a), c.heard(a)) == ([], [0], [0])


def test_an_address_that_moves_is_followed(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc")
    c.send(c.frame(a)[:6] + b.mac + bytes(48))
    a.got()
    a.send_to(b)
    assert (b.got(), c.heard(a)) == ([], [0])


def test_an_address_not_heard_of_for_300_seconds_is_forgotten(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc")
    lan.run(300)
    a.send_to(b)
    assert (b.heard(a), c.got()) == ([0], [])
    lan.run(1)
    a.send_to(b)
    assert (b.heard(a), c.heard(a)) == ([0], [0])


def test_an_address_that_goes_on_sending_is_remembered(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc")
    for _ in range(4):
        lan.run(200)
        b.send_to(a)
        c.got()
    a.send_to(b)
    assert (b.heard(a), c.got()) == ([0], [])


def test_a_port_that_leaves_is_forgotten_and_its_place_is_given_again(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc")
    b.link.close()
    again = lan.add("b")
    a.send(a.frame(b.mac))
    assert len(again.got()) == len(c.got()) == 1


def test_a_frame_for_the_port_it_came_from_is_dropped_and_counted(lan: Lan) -> None:
    a, b = lan.acquainted("ab")
    assert a.send(a.frame(a), a.frame(b, 1), a.frame(a)) == 3
    assert (a.got(), b.heard(a)) == ([], [1])
    assert a.count("vale_drop_nowhere") == 2
    assert a.send(a.frame(a)) == 1
    assert a.count("vale_drop_nowhere") == 3


def test_a_frame_alone_on_the_switch_goes_nowhere(lan: Lan) -> None:
    a = lan.add("a")
    assert a.send_to(ALL, 3) == 3
    assert a.count("vale_to_all") == 3


def test_runts_and_addresses_in_pieces_are_read_no_further_than_they_go(lan: Lan) -> None:
    a, b = lan.acquainted("ab")
    assert a.send(b"x", b.mac, b.mac + a.mac) == 3
    assert len(b.guest.frames) == 3


def test_more_addresses_than_the_table_holds_are_flooded_and_hurt_nobody(lan: Lan) -> None:
    a, b, _ = lan.acquainted("abc")
    for i in range(0, 20_000, 200):
        sources = [bytes([6, *(i + k).to_bytes(5, "big")]) for k in range(200)]
        assert a.send(*(b.mac + source + bytes(48) for source in sources)) == 200
        b.got()
        b.send_to(a)  # keeps its place
        a.got()
    assert a.send_to(b) == 1
    assert b.heard(a) == [0]


addresses = st.integers(0, 40).map(lambda n: bytes([n % 3 and 2, 0, 0, 0, n // 8, n]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 253),
            st.integers(0, 200),
            st.lists(st.tuples(addresses, addresses), min_size=1, max_size=20),
        ),
        max_size=20,
    )
)
def test_the_table_finds_what_a_dictionary_does(
    bursts: list[tuple[int, int, list[tuple[bytes, bytes]]]],
) -> None:
    forwarding, twin, now_s = Forwarding(), dict[bytes, tuple[int, int]](), 0
    for port, later_s, pairs in bursts:
        now_s += later_s
        frames = [dst + src + bytes(48) for dst, src in pairs]
        expected: list[int | str] = []
        for dst, src in pairs:
            if not src[0] & 1 and any(src):
                twin[src] = (port, now_s)
            to, seen_s = twin.get(dst, (-1, 0))
            if dst[0] & 1 or to < 0 or now_s - seen_s > 300:
                expected.append("all")
            else:
                expected.append("nowhere" if to == port else to)
        burst, lane = Burst.of(frames), Burst()
        found = forwarding.route(burst, port, now_s)
        unicast = [to for to in expected if isinstance(to, int)]
        if len(set(unicast)) == 1 and len(unicast) == len(frames):
            assert found == unicast[0]
            continue
        assert found == MIXED
        firsts = {to: expected.index(to) for to in unicast}
        assert dict(forwarding.destinations()) == firsts
        for limit in (0, len(frames) // 2, len(frames)):
            upto = expected[:limit]
            assert forwarding.tally(limit) == (upto.count("all"), upto.count("nowhere"))
            for to in set(unicast):
                forwarding.select(burst, lane, to, limit, True)
                mine = [f for f, e in zip(frames, upto, strict=False) if e in (to, "all")]
                assert [bytes(frame) for frame in lane] == mine


# ---- ports ---------------------------------------------------------------------------------------


def test_254_ports_are_served_and_the_255th_is_refused(lan: Lan) -> None:
    machines = [lan.add(f"p{i}") for i in range(254)]
    with pytest.raises(ConfigError, match="vale0:p254: all 254 ports are in use"):
        lan.add("p254")
    first, *others = machines
    assert first.send_to(ALL) == 1
    assert all(len(machine.guest.frames) == 1 for machine in others)
    others[7].link.close()
    lan.add("p254")


def test_two_nics_may_not_share_a_port(lan: Lan) -> None:
    lan.add("a")
    with pytest.raises(ConfigError, match="vale0:a: this port is in use; give each NIC its own"):
        lan.add("a")
    lan.add("a", switch="vale1")


def test_all_ports_of_a_switch_live_on_one_loop(lan: Lan) -> None:
    lan.add("a")
    other = Loop()
    with pytest.raises(ConfigError, match="vale0:b: all ports of an embedded switch live on one"):
        Link("b", other).open([(Vale(), "vale0:b", Vale.Options())])
    other.close()


def test_a_switch_goes_with_its_last_port_and_may_come_again_on_another_loop(lan: Lan) -> None:
    lan.add("a").link.close()
    other = Loop()
    link = Link("a", other)
    link.open([(Vale(), "vale0:a", Vale.Options())])
    link.close()
    other.close()


@pytest.mark.parametrize("name", ["vale0", "vale0:", "vale0:a b", "vale:0:1", "x0:1"])
def test_a_name_that_is_no_port_says_how_one_is_written(name: str) -> None:
    loop = Loop()
    with pytest.raises(ConfigError, match='not a port of a switch; write "vale0:1", SWITCH:PORT'):
        Link("nic0", loop).open([(Vale(), name, Vale.Options())])
    loop.close()


@pytest.mark.parametrize("name", ["vale0:a/x", "vale0:a@5", "vale0:a{7"])
def test_a_name_as_netmaps_ports_have_says_whose_it_is(name: str) -> None:
    loop = Loop()
    with pytest.raises(ConfigError, match=f'write "netmap:{name}" for a port of the kernel\'s'):
        Link("nic0", loop).open([(Vale(), name, Vale.Options())])
    loop.close()


# ---- one inside the other ------------------------------------------------------------------------


class Echo(PassingFilter):
    """Sends back what arrives, from within the delivery, as nobody may."""

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        super().init(name, options, link)
        link.beneath_readable = self.echo

    def echo(self) -> None:
        self.calls.append("readable")
        self.beneath.send(Burst.of([bytes(60)]))
        self.link.readable()


def test_what_comes_back_while_it_delivers_is_dropped_and_counted(lan: Lan) -> None:
    a = lan.add("a")
    b = lan.add("b", Echo())
    assert a.send_to(ALL) == 1
    assert b.heard(a) == [0]
    assert b.count("vale_drop_loop") == 1
    assert a.got() == []


def test_a_port_may_leave_while_frames_are_delivered_to_it(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc")
    b.link.on_readable = b.link.close
    assert a.send(a.frame(b), a.frame(c, 1), a.frame(b)) == 3
    assert c.heard(a) == [1]
    assert b.count("vale_drop_full") == 2
    lan.run()
    a.send_to(b)
    assert c.heard(a) == [0]


def test_a_sender_may_leave_while_its_frames_are_delivered(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc")
    b.link.on_readable = lambda: (b.guest.readable(), a.link.close())
    assert a.send(a.frame(b), a.frame(c, 1)) == 2
    assert (b.heard(a), c.heard(a)) == ([0], [1])


def test_a_guest_that_fails_takes_its_own_link_down_and_not_the_senders(lan: Lan) -> None:  # F7
    a, b, c = lan.acquainted("abc")

    def fail() -> None:
        raise RuntimeError("on purpose")

    b.link.on_readable = fail
    assert a.send(a.frame(b), a.frame(c, 1)) == 2
    assert a.link.is_up
    assert not b.link.is_up
    assert c.heard(a) == [1]
    lan.run()
    assert a.send_to(b, 3) == 3
    assert b.count("rx_discarded") == 4
