"""The contract suite: a right backend passes it, and each wrong one fails the right check."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from typing import Any

import pytest
from kit.memory_backend import BehindMemory, Memory
from vnic.burst import Burst, Room
from vnic.errors import ConfigError
from vnic.features import Features
from vnic.hookspecs import hookimpl
from vnic.link import Joint
from vnic.loop import Loop
from vnic.testing.contract import BackendContract, Outside


class TestMemory(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return BehindMemory()


class DropsInSilence(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        self.wire.from_guest += [bytes(f) for i, f in enumerate(burst) if i % 3 != 2]
        return len(burst)


class LosesArrivals(Memory):
    @hookimpl
    def recv(self, room: Room) -> int:
        if len(self.wire.to_guest) > 5:
            del self.wire.to_guest[5]
        return super().recv(room)


class SendsBackwards(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        self.wire.from_guest += [bytes(burst[i]) for i in reversed(range(len(burst)))]
        return len(burst)


class DeliversBackwards(Memory):
    @hookimpl
    def recv(self, room: Room) -> int:
        self.wire.to_guest = deque(reversed(self.wire.to_guest))
        return super().recv(room)


class Flips(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        for frame in burst:
            self.wire.from_guest.append(bytes(frame[:-1]) + bytes([frame[-1] ^ 1]))
        return len(burst)


class KeepsReferences(Memory):
    """What it has taken it looks at later."""

    @hookimpl
    def send(self, burst: Burst) -> int:
        self.wire.from_guest += [_Later(burst, i) for i in range(len(burst))]  # type: ignore[misc]
        return len(burst)


class _Later:
    def __init__(self, burst: Burst, i: int) -> None:
        self.burst, self.i = burst, i

    def __bytes__(self) -> bytes:
        return bytes(self.burst[self.i])


class TakesTheNewest(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        n = min(len(burst), self.wire.limit - len(self.wire.from_guest))
        self.wire.from_guest += [bytes(burst[i]) for i in range(len(burst) - n, len(burst))]
        return n


class NeverWritable(Memory):
    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        super().init(name, options, link)
        link.writable = lambda: None  # type: ignore[method-assign]


class WritableWhileFull(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        n = super().send(burst)
        if n < len(burst):
            self.link.loop.schedule(self.link.writable)
        return n


class BlocksWhenFull(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        if len(burst) + len(self.wire.from_guest) > self.wire.limit:
            threading.Event().wait()
        return super().send(burst)


class BlocksOnRecv(Memory):
    @hookimpl
    def recv(self, room: Room) -> int:
        if not self.wire.to_guest:
            threading.Event().wait()
        return super().recv(room)


class SaysSomethingCame(Memory):
    @hookimpl
    def recv(self, room: Room) -> int:
        return super().recv(room) or 1


class SaysNothing(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        super().send(burst)
        return None  # type: ignore[return-value]


class TakesMoreThanThereIs(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        return super().send(burst) + 1


class AnnouncesOnce(Memory):
    """Takes a few at a time, and counts on being asked again."""

    @hookimpl
    def recv(self, room: Room) -> int:
        n = 0
        while n < 64 and self.wire.to_guest and room.put_frame(self.wire.to_guest[0]):
            self.wire.to_guest.popleft()
            n += 1
        return n


class ReadableAfterDisable(Memory):
    """Watches a descriptor in a way of its own, which a disable doesn't reach."""

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        super().init(name, options, link)
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.watch = link.loop.watch(self.fd, lambda _: self.ready())

    def ready(self) -> None:
        self.link.readable()
        if not self.wire.to_guest:
            os.eventfd_read(self.fd)

    @hookimpl
    def recv_disable(self) -> None:
        os.eventfd_write(self.fd, 1)

    @hookimpl
    def cleanup(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.watch.close()
            os.close(self.fd)
            self.fd = -1
        super().cleanup()


class ForgetsWhatCameWhileDisabled(Memory):
    @hookimpl
    def recv_enable(self) -> None:
        self.wire.to_guest.clear()


class DropsWhatDoesNotFit(Memory):
    @hookimpl
    def recv(self, room: Room) -> int:
        n = super().recv(room)
        self.wire.to_guest.clear()
        return n


class DiscardsWithoutEnd(Memory):
    @hookimpl
    def recv_discard(self) -> int:
        n = len(self.wire.to_guest)
        self.wire.to_guest.clear()
        return n


class DiscardsUncounted(Memory):
    @hookimpl
    def recv_discard(self) -> int:
        self.wire.to_guest.clear()
        return 0


class LeavesDescriptor(Memory):
    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        super().init(name, options, link)
        self.fds = os.pipe()

    @hookimpl
    def cleanup(self) -> None:
        if hasattr(self, "fds"):
            os.close(self.fds[0])
            del self.fds
        super().cleanup()


class FailsWithDescriptor(Memory):
    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        fd = os.eventfd(0)
        super().init(name, options, link)
        os.close(fd)


class FailsInItsOwnWords(Memory):
    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        try:
            super().init(name, options, link)
        except ConfigError:
            raise OSError(2, "no such wire") from None


class CleansUpOnce(Memory):
    @hookimpl
    def cleanup(self) -> None:
        super().cleanup()
        del self.wire


class CleansUpOnlyAfterInit(Memory):
    @hookimpl
    def cleanup(self) -> None:
        self.wire.plugin = None


class OpensOnce(Memory):
    opened: set[str]

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        super().init(name, options, link)
        wire: Any = self.wire
        if getattr(wire, "used", False):
            raise ConfigError(f"{name}: in use")
        wire.used = True


class TalksAfterCleanup(Memory):
    @hookimpl
    def cleanup(self) -> None:
        """The wire keeps it, and calls it."""


class OffersRingFeatures(Memory):
    @hookimpl
    def get_capabilities(self) -> Features:
        return Features.MRG_RXBUF | Features.CSUM


class OffersTsoAlone(Memory):
    @hookimpl
    def get_capabilities(self) -> Features:
        return Features.HOST_TSO4


class RefusesFewerCapabilities(Memory):
    @hookimpl
    def set_capabilities(self, features: Features) -> None:
        if features not in (Features(0), self.get_capabilities()):
            raise ValueError("all or nothing")


class Spins(Memory):
    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        super().init(name, options, link)
        self.link.loop.schedule(self._again)

    def _again(self) -> None:
        if self.wire.plugin is self:
            self.link.loop.schedule(self._again)


class RaisesWhenRefused(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        if self.wire.refuses:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().send(burst)


class TakesRefusalForFull(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        return 0 if self.wire.refuses else super().send(burst)


class RefusedUncounted(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        return len(burst) if self.wire.refuses else super().send(burst)


class StaysUpWhenAlone(Memory):
    def gone(self) -> None:
        """The cut end says nothing."""


class SpinsWhenAlone(Memory):
    def gone(self) -> None:
        super().gone()
        self._poll()

    def _poll(self) -> None:
        if self.wire.plugin is self:
            self.link.loop.schedule(self._poll)


class AnnouncesLater(Memory):
    """Goes round its link to the guest, from the loop."""

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        super().init(name, options, link)
        say, guest = link.readable, link._link
        link.readable = lambda: (  # type: ignore[method-assign]
            link.loop.schedule(lambda: guest.on_readable()) if self.wire.to_guest else say()
        )


class DropsJumbo(Memory):
    @hookimpl
    def send(self, burst: Burst) -> int:
        self.wire.from_guest += [bytes(frame) for frame in burst if len(frame) < 9000]
        return len(burst)


class CutsJumbo(Memory):
    @hookimpl
    def recv(self, room: Room) -> int:
        self.wire.to_guest = deque(frame[:4096] for frame in self.wire.to_guest)
        return super().recv(room)


WRONG = [
    (DropsInSilence, "frames_from_the_guest_leave_whole_and_in_order", "frame 2 never came"),
    (LosesArrivals, "frames_for_the_guest_arrive_whole_and_in_order", "frame 5 never came"),
    (SendsBackwards, "frames_from_the_guest_leave_whole_and_in_order", "keep the order"),
    (DeliversBackwards, "frames_for_the_guest_arrive_whole_and_in_order", "keep the order"),
    (Flips, "frames_from_the_guest_leave_whole_and_in_order", "frame 0 has changed: byte 59"),
    (KeepsReferences, "send_keeps_no_reference_to_the_burst", "frame 0 has changed"),
    (TakesTheNewest, "a_short_send_means_full_and_writable_follows", "frame 0 never came"),
    (NeverWritable, "a_short_send_means_full_and_writable_follows", "never came"),
    (WritableWhileFull, "a_short_send_means_full_and_writable_follows", "it spins"),
    (BlocksWhenFull, "a_short_send_means_full_and_writable_follows", "send blocks"),
    (BlocksOnRecv, "recv_with_nothing_pending_returns_0_at_once", "recv blocks"),
    (SaysSomethingCame, "recv_with_nothing_pending_returns_0_at_once", "returned 1"),
    (SaysNothing, "frames_from_the_guest_leave_whole_and_in_order", "send returned None"),
    (TakesMoreThanThereIs, "frames_from_the_guest_leave_whole_and_in_order", "from 0 to 50"),
    (AnnouncesOnce, "readiness_is_a_level", "left behind"),
    (ReadableAfterDisable, "after_recv_disable_nothing_is_heard_until_recv_enable", r"\d\d times"),
    (
        ForgetsWhatCameWhileDisabled,
        "after_recv_disable_nothing_is_heard_until_recv_enable",
        "did not arrive",
    ),
    (DropsWhatDoesNotFit, "a_guest_short_of_room_gets_the_rest_later_in_order", "got no more"),
    (
        DiscardsWithoutEnd,
        "without_a_receiver_frames_are_thrown_away_bounded_and_counted",
        "threw away 3000 frames: bound it",
    ),
    (
        DiscardsUncounted,
        "without_a_receiver_frames_are_thrown_away_bounded_and_counted",
        "not all thrown away and counted",
    ),
    (LeavesDescriptor, "cleanup_leaves_no_descriptor_open", "left 1 descriptors"),
    (
        FailsWithDescriptor,
        "what_cannot_be_opened_is_an_error_of_operator_or_host_and_leaves_nothing",
        "memory9: a failed init left 1 descriptors",
    ),
    (
        FailsInItsOwnWords,
        "what_cannot_be_opened_is_an_error_of_operator_or_host_and_leaves_nothing",
        "FileNotFoundError",
    ),
    (CleansUpOnce, "cleanup_may_be_called_twice", "cleanup, called twice, raised"),
    (CleansUpOnlyAfterInit, "cleanup_may_come_before_init", "called before init, raised"),
    (OpensOnce, "after_cleanup_it_can_be_opened_again", "in use"),
    (TalksAfterCleanup, "cleanup_may_come_while_frames_flow", "after cleanup it still said"),
    (OffersRingFeatures, "capabilities_are_virtio_nets_offload_bits", "MRG_RXBUF"),
    (OffersTsoAlone, "capabilities_are_virtio_nets_offload_bits", "HOST_TSO4: without"),
    (RefusesFewerCapabilities, "any_set_of_its_capabilities_may_be_in_force", "all or nothing"),
    (Spins, "it_rests_when_there_is_nothing_to_do", "it spins"),
    (
        RaisesWhenRefused,
        "what_the_host_refuses_is_dropped_and_counted_and_the_rest_leaves",
        "Input/output error",
    ),
    (
        TakesRefusalForFull,
        "what_the_host_refuses_is_dropped_and_counted_and_the_rest_leaves",
        "wait as if it were full",
    ),
    (
        RefusedUncounted,
        "what_the_host_refuses_is_dropped_and_counted_and_the_rest_leaves",
        "of 3 frames that were refused 0 are counted",
    ),
    (
        StaysUpWhenAlone,
        "a_network_that_is_gone_takes_the_link_down_and_it_rests",
        "the link still up",
    ),
    (SpinsWhenAlone, "a_network_that_is_gone_takes_the_link_down_and_it_rests", "it spins"),
    (AnnouncesLater, "recv_disable_stops_what_is_on_its_way", "the guest heard"),
    (DropsJumbo, "frames_of_every_size_leave", "0 frames of 2"),
    (CutsJumbo, "frames_of_every_size_arrive", "4096 bytes instead of 9014"),
]


@pytest.mark.parametrize(
    ("plugin", "check", "text"), WRONG, ids=[plugin.__name__ for plugin, _, _ in WRONG]
)
def test_a_wrong_backend_fails_the_check_that_is_named_for_it(
    plugin: type, check: str, text: str
) -> None:
    class Behind(BehindMemory):
        pass

    Behind.plugin = plugin

    class Contract(BackendContract):
        AT_ONCE_S = DEADLINE_S = 0.2  # only what is wrong takes so long

        def make(self, loop: Loop) -> Outside:
            return Behind()

    contract = Contract()
    try:
        with pytest.raises((AssertionError, ConfigError), match=text):
            getattr(contract, f"test_{check}")()
    finally:
        contract.teardown_method()


def test_all_that_is_wrong_can_be_listed_without_pytest() -> None:
    class Behind(BehindMemory):
        plugin = OffersTsoAlone

    class Contract(BackendContract):
        def make(self, loop: Loop) -> Outside:
            return Behind()

    failures = Contract.failures()
    assert list(failures) == ["test_capabilities_are_virtio_nets_offload_bits"]


def test_a_right_backend_has_no_failures() -> None:
    assert TestMemory.failures() == {}
