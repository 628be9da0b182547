"""A port whose guest has no room: who waits, for how long, and who does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.fakes import PassingFilter
from kit.lan import ALL, LOTS, Lan, Machine
from vnic.burst import Burst
from vnic.config import structure
from vnic.errors import ConfigError
from vnic.hookspecs import hookimpl
from vnic_netmap import Vale
from vnic_netmap.embedded import switches

MS = 0.001


@pytest.fixture
def lan() -> Iterator[Lan]:
    lan = Lan()
    yield lan
    lan.close()
    assert not any(timer.callback for _, _, timer in lan.loop._timers)


def drops(*machines: Machine) -> int:
    return sum(
        n for machine in machines for k, n in machine.link.counters().items() if "_drop_" in k
    )


def test_a_unicast_frame_for_a_full_port_stays_with_its_sender_until_there_is_room(
    lan: Lan,
) -> None:
    a, b = lan.acquainted("ab", [LOTS, 3])
    assert a.send_to(b, 5) == 3
    assert a.send_to(b, 2, first=3) == 0
    assert a.guest.n_writable == 0
    b.room(10)
    assert a.guest.n_writable == 1
    assert a.send_to(b, 2, first=3) == 2
    assert b.heard(a) == [3, 4]
    assert drops(a, b) == 0


def test_it_waits_10_ms_and_then_frames_are_dropped_and_counted_until_there_is_room(
    lan: Lan,
) -> None:
    a, b = lan.acquainted("ab", [LOTS, 0])
    assert a.send_to(b, 5) == 0
    lan.run(9.9 * MS)
    assert a.guest.n_writable == 0
    lan.run(0.2 * MS)
    assert a.guest.n_writable == 1
    for n in (5, 3):
        assert a.send_to(b, n) == n
    assert b.count("vale_drop_full") == 8
    b.room(2)
    assert a.send_to(b, 3) == 2
    assert b.heard(a) == [0, 1]
    assert b.count("vale_drop_full") == 8
    lan.run(5 * MS)
    assert a.send_to(b, 1) == 0  # it waits anew


def test_frames_go_on_waiting_while_room_comes_drop_by_drop(lan: Lan) -> None:
    a, b = lan.acquainted("ab", [LOTS, 0])
    sent = 0
    for _ in range(20):
        sent += a.send_to(b, 5, first=sent)
        lan.run(8 * MS)
        b.room(1)
    sent += a.send_to(b, 5, first=sent)
    assert sent == 20
    assert drops(a, b) == 0


def test_a_guest_that_only_claims_to_have_room_holds_its_senders_no_longer(lan: Lan) -> None:
    a, b = lan.acquainted("ab", [LOTS, 0])
    for _ in range(12):
        if a.send_to(b, 1) == 1:
            break
        lan.run(1 * MS)
        b.room(0)  # kicks, and posts nothing
    assert b.count("vale_drop_full") == 1


def test_a_port_that_is_dropped_for_is_offered_frames_again_once_it_is_enabled(lan: Lan) -> None:
    a, b = lan.acquainted("ab", [LOTS, 0])
    a.send_to(b)
    lan.run(20 * MS)
    b.guest.room.n_max = 5
    b.link.recv_enable()  # and asks for nothing
    assert a.send_to(b, 2) == 2
    assert b.heard(a) == [0, 1]


def test_a_guest_that_took_nothing_once_gets_the_next_frames(lan: Lan) -> None:
    a, b = lan.acquainted("ab")
    take, b.link.on_readable = b.link.on_readable, lambda: None
    assert a.send_to(b) == 0
    lan.run(20 * MS)
    assert a.guest.n_writable == 1
    assert a.send_to(b) == 1
    assert b.count("vale_drop_full") == 1
    b.link.on_readable = take
    assert a.send_to(b, first=7) == 1
    assert b.heard(a) == [7]


def test_frames_to_several_ports_never_wait(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 1, LOTS])
    assert a.send_to(ALL, 3) == 3
    assert (b.heard(a), c.heard(a)) == ([0], [0, 1, 2])
    assert b.count("vale_drop_flood") == 2
    assert a.send_to(ALL, 2) == 2
    assert b.count("vale_drop_flood") == 4


def test_a_burst_is_cut_before_the_first_frame_for_a_port_that_is_full(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 0, LOTS])
    a.send_to(b)
    frames = [a.frame(c, 0), a.frame(ALL, 1), a.frame(a, 2), a.frame(b, 3), a.frame(c, 4)]
    assert a.send(*frames) == 3
    assert c.heard(a) == [0, 1]
    assert (a.count("vale_to_all"), a.count("vale_drop_nowhere")) == (1, 1)
    b.room(5)
    assert a.send(*frames[3:]) == 2
    assert (b.heard(a), c.heard(a)) == ([3], [4])
    assert (a.count("vale_to_all"), a.count("vale_drop_nowhere")) == (1, 1)


def test_a_port_that_fills_on_the_way_has_the_rest_of_a_burst_queued_in_order(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 2, LOTS])
    frames = [a.frame(b if i % 2 else c, i) for i in range(10)]
    assert a.send(*frames) == 10
    assert b.heard(a) == [1, 3]
    assert a.send_to(b, first=11) == 0  # not past those that are queued
    b.room(2)
    assert b.heard(a) == [5, 7]
    assert a.send_to(b, first=11) == 0
    b.room(LOTS)
    assert a.send_to(b, first=11) == 1
    assert b.heard(a) == [9, 11]
    assert c.heard(a) == [0, 2, 4, 6, 8]
    assert drops(a, b, c) == 0


def test_the_queue_is_bounded_by_a_burst_however_many_send(lan: Lan) -> None:
    a, b, c, d = lan.acquainted("abcd", [LOTS, 0, LOTS, LOTS])
    burst = [*(a.frame(b, i) for i in range(255)), a.frame(ALL, 255)]
    assert a.send(*burst) == 256
    for sender in (a, c, d):
        assert sender.send(sender.frame(b), sender.frame(ALL)) == 0
    b.room(LOTS)
    assert b.heard(a) == list(range(255))
    assert b.count("vale_drop_flood") == 1


def test_queued_headers_stay_with_their_frames(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 0, LOTS])
    headers: list[bytes | None] = []
    b.guest.room.put_frame = (  # type: ignore[method-assign]
        lambda frame, header=None: not headers.append(header)
    )
    b.guest.room.put = lambda burst, start=0: 0  # type: ignore[method-assign]
    needs_csum = bytes([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0])
    a.link.send(Burst.of([a.frame(b), a.frame(c), a.frame(b)], [needs_csum, None, None]))
    b.guest.receive()
    assert headers == [needs_csum, bytes(12)]


def test_senders_that_wait_for_one_port_take_turns(lan: Lan) -> None:
    *senders, b = lan.acquainted("vwxyb", [LOTS] * 4 + [0])
    n_got = dict.fromkeys((s.mac for s in senders), 0)
    for sender in senders:
        sender.link.on_writable = lambda s=sender: lan.loop.schedule(lambda: s.send_to(b, 8))
        sender.send_to(b, 8)
    for _ in range(20):
        b.room(4)  # the first to come takes it all
        lan.run()
        for mac, _ in b.got():
            n_got[mac] += 1
    assert set(n_got.values()) == {20}


def test_other_ports_of_a_waiting_sender_are_served_after_10_ms(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 0, LOTS])
    a.send_to(b)
    frames = [a.frame(b, 0), a.frame(c, 1)]
    assert a.send(*frames) == 0
    lan.run(10 * MS)
    assert a.send(*frames) == 2
    assert c.heard(a) == [1]


def test_who_waits_for_a_port_that_leaves_is_let_go(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 0, LOTS])
    a.send_to(b)
    b.link.close()
    assert a.guest.n_writable == 1
    assert a.send_to(b) == 1
    assert c.heard(a) == [0]  # nobody knows it any more


def test_what_is_queued_for_a_port_that_leaves_is_counted(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 0, LOTS])
    a.send(a.frame(b), a.frame(c), a.frame(b))
    b.link.close()
    assert b.count("vale_drop_left") == 2


def test_a_sender_that_leaves_while_it_waits_is_forgotten(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 0, LOTS])
    a.send_to(b)
    a.link.close()
    b.room(5)
    lan.run(20 * MS)
    assert a.guest.n_writable == 0
    assert c.send_to(b) == 1


def test_without_a_receiver_frames_are_discarded_and_nobody_waits(lan: Lan) -> None:
    a, b = lan.acquainted("ab", [LOTS, 0])
    a.send_to(b)
    b.link.recv_discard()
    assert a.guest.n_writable == 1
    assert a.send_to(b, 5) == 5
    assert b.count("rx_discarded") == 5
    b.guest.room.n_max = LOTS
    b.link.recv_enable()
    a.send_to(b, first=9)
    assert b.heard(a) == [9]


def test_what_was_queued_is_discarded_with_its_receiver(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 1, LOTS])
    a.send(*(a.frame(to, i) for i, to in enumerate((b, c, b, c, b))))
    assert b.heard(a) == [0]
    b.link.recv_discard()
    assert b.count("rx_discarded") == 2
    b.room(LOTS)
    assert b.got() == []


def test_a_link_that_is_down_discards(lan: Lan) -> None:
    a, b = lan.acquainted("ab")
    b.link._layers[-1].joint.down("unplugged")
    assert a.send_to(b, 3) == 3
    assert b.count("rx_discarded") == 3


def test_who_is_let_go_is_told_from_the_loop_while_frames_are_delivered(lan: Lan) -> None:
    class SendsAtOnce(PassingFilter):
        """A filter may: it holds frames, and hears that there is room."""

        @hookimpl
        def send(self, burst: Burst) -> int:
            self.held = Burst.of([bytes(frame) for frame in burst])
            self.link.beneath_writable = self.flush
            self.beneath.send(self.held)
            return len(burst)

        def flush(self) -> None:
            self.calls.append("writable")
            self.beneath.send(self.held)

    holder = SendsAtOnce()
    h = lan.add("h", holder)
    a, b = lan.acquainted("ab", [LOTS, 0])
    h.send_to(b)
    b.guest.room.n_max = LOTS
    b.link._receiving = type(b.link.receiving).ON  # its room comes back just as a sends
    port = next(port for port in switches["vale0"].ports.values() if port.name == "b")
    port._paused = False
    assert a.send_to(b) == 1
    assert holder.calls == []
    lan.run()
    assert holder.calls == ["writable"]
    assert [mac for mac, _ in b.got()] == [a.mac, h.mac]
    assert h.count("vale_drop_loop") == 0


# ---- full=drop -----------------------------------------------------------------------------------


def test_with_full_drop_what_finds_a_port_full_is_dropped_and_counted_at_once(lan: Lan) -> None:
    a, b = lan.acquainted("ab", [LOTS, 3], full="drop")
    assert a.send_to(b, 5) == 5
    assert a.send_to(b, 2, first=5) == 2
    assert b.heard(a) == [0, 1, 2]
    assert (b.count("vale_drop_full"), b.count("vale_waits")) == (4, 0)


def test_with_full_drop_nobody_waits_for_a_guest_that_never_had_room(lan: Lan) -> None:
    a, b = lan.add("a"), lan.add("b", room=0, full="drop")
    b.send_to(ALL)
    assert a.heard(b) == [0]
    assert a.send_to(b, 5) == 5
    assert (b.count("vale_drop_full"), b.count("vale_waits")) == (5, 0)


def test_with_full_drop_frames_arrive_as_soon_as_there_is_room_and_only_then(lan: Lan) -> None:
    a, b = lan.acquainted("ab", [LOTS, 1], full="drop")
    for first in range(0, 20, 4):
        assert a.send_to(b, 4, first) == 4
        assert b.heard(a) == [first]
        b.room(1)
    assert b.count("vale_drop_full") == 15


def test_with_full_drop_a_mixed_burst_is_neither_cut_nor_queued(lan: Lan) -> None:
    a, b, c = lan.acquainted("abc", [LOTS, 1, LOTS], full="drop")
    frames = [a.frame(to, i) for i, to in enumerate((b, c, b, ALL, c))]
    for _ in range(2):
        assert a.send(*frames) == 5
        assert c.heard(a) == [1, 3, 4]
    assert b.heard(a) == [0]
    assert b.count("vale_drop_full") == 5
    b.room(LOTS)
    assert b.got() == []


def test_it_is_the_receivers_option_that_counts(lan: Lan) -> None:
    a, b = lan.add("a", full="drop"), lan.add("b", room=0)
    b.send_to(ALL)
    assert a.heard(b) == [0]
    assert a.send_to(b) == 0
    assert b.count("vale_drop_full") == 0


@pytest.mark.parametrize("full", ["wait", "drop"])
def test_what_a_full_port_does_is_said_with_its_name(full: str) -> None:
    (options,) = structure({"full": full}, "vale0:1", Vale.Options)
    assert options.full == full


def test_another_way_to_be_full_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"vale0:1: full=wiat: not a choice; give wait or drop; "):
        structure({"full": "wiat"}, "vale0:1", Vale.Options)
