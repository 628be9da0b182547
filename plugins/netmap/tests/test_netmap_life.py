"""Opened, closed, closed again: at any time, and whoever still looks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from vnic.burst import Burst
from vnic.errors import BackendError
from vnic.hookspecs import hookimpl
from vnic.link import Link
from vnic.loop import Loop
from vnic.testing.bench import Guest, from_guest, to_guest
from vnic_netmap import Netmap

Open = Callable[..., Any]
Run = Callable[[], None]

PIPE = ("netmap:p{1", "netmap:p}1")


def test_closed_is_closed_and_nothing_is_left(module: Any, side: Open) -> None:
    for name in ("netmap:vale0:1", *PIPE):
        one = side(name)
        one.link.close()
        one.link.close()
        one.backend.cleanup()
        assert not module.left_open


def test_a_closed_port_answers_every_call(side: Open) -> None:
    one = side("netmap:p{1")
    one.backend.cleanup()
    assert one.backend.send(Burst.of(from_guest(3))) == 3
    assert one.backend.recv_discard() == 0
    assert one.guest.receive() == 0


def test_cleanup_with_views_alive_raises_nothing_and_the_port_goes_with_the_last_of_them(
    module: Any, side: Open, caplog: pytest.LogCaptureFixture
) -> None:
    one = side("netmap:p{1")
    view = memoryview(one.backend._port._mapping)
    one.backend.cleanup()
    one.backend.cleanup()
    assert "somebody still has a view of its memory" in caplog.text
    assert module.left_open == ["mapping of p{1"]
    assert view[0] is not None  # it is still there to be read
    view.release()
    gc.collect()
    assert not module.left_open


def test_the_burst_that_a_backend_offered_is_empty_after_cleanup(side: Open, run: Run) -> None:
    # Who keeps it breaks the contract; it must not lead to memory that is gone.
    a, b = (side(name) for name in PIPE)
    b.link.recv_disable()
    a.guest.send(from_guest(3))
    kept = b.backend._port.rings.burst
    b.guest.start()
    b.backend.cleanup()
    assert len(kept) == 0


class ClosesInRecv:
    """A filter that closes the link while the backend's frames are before it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.seen: list[bytes] = []

    @hookimpl
    def init(self, name: str, options: Any, link: Any) -> None:
        self._beneath = link.beneath

    @hookimpl
    def cleanup(self) -> None: ...

    @hookimpl
    def send(self, burst: Burst) -> int:
        return len(burst)

    @hookimpl
    def recv(self, room: Any) -> int:
        return int(self._beneath.recv(self))

    # ---- as a room

    full = False

    def put(self, burst: Burst, start: int = 0) -> int:
        self._link.close()
        self.seen += [bytes(frame) for frame in burst]
        return len(burst)


def test_cleanup_in_the_middle_of_a_recv_waits_until_its_frames_were_taken(
    module: Any, side: Open, loop: Loop
) -> None:
    sender = side(PIPE[0])
    link = Link("closing", loop)
    closing = ClosesInRecv(link)
    link.open([(closing, "filter", None), (Netmap(), PIPE[1], Netmap.Options())])
    guest = Guest(link)
    sender.guest.send(from_guest(3))
    guest.start()
    assert closing.seen == from_guest(3)
    assert module.left_open == ["descriptor of p{1"]
    sender.link.close()
    assert not module.left_open


def test_a_port_is_opened_again_and_again(module: Any, side: Open, run: Run) -> None:
    other = side("netmap:vale0:2")
    for i in range(20):
        one = side("netmap:vale0:1")
        one.guest.send(from_guest(2, first=i))
        run()
        assert other.guest.frames == from_guest(2, first=i)
        other.guest.frames.clear()
        one.link.close()


def test_what_is_in_a_pipe_stays_for_who_opens_its_end(side: Open, run: Run) -> None:
    a, b = (side(name) for name in PIPE)
    b.link.close()
    a.guest.send(from_guest(3))
    again = side(PIPE[1])
    a.guest.send(from_guest(2, first=3))
    run()
    assert again.guest.frames == from_guest(5)


def test_an_init_that_fails_late_leaves_nothing(
    module: Any, side: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vnic.link import Joint

    def watch(*_: Any, **__: Any) -> None:
        raise BackendError("no more descriptors to watch")

    monkeypatch.setattr(Joint, "watch", watch)
    with pytest.raises(BackendError, match="no more"):
        side("netmap:p{1")
    assert not module.left_open


def test_frames_go_on_after_a_neighbour_has_left(side: Open, run: Run) -> None:
    a, b, c = (side(f"netmap:vale0:{i}") for i in range(3))
    b.link.close()
    a.guest.send(from_guest(3))
    c.guest.send(to_guest(3))
    run()
    assert c.guest.frames == from_guest(3)
    assert a.guest.frames == to_guest(3)
