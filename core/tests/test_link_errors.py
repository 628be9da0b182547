"""Plugins that raise: their link goes down and says why, and nobody else notices."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from kit.fakes import FakeBackend, FakeFrontend, OnSocket, PassingFilter, open_fake
from kit.loops import LoopBench
from vnic.burst import Burst
from vnic.errors import BackendError
from vnic.features import NONE
from vnic.link import Link


@pytest.fixture
def bench() -> Iterator[LoopBench]:
    bench = LoopBench()
    yield bench
    bench.close()


def frames(n: int, first: int = 0) -> list[bytes]:
    return [i.to_bytes(4, "big").rjust(60, b"f") for i in range(first, first + n)]


def do(hook: str, link: Link, frontend: FakeFrontend, backend: FakeBackend) -> None:
    """What has the link call a hook."""
    match hook:
        case "send":
            assert link.send(Burst.of(frames(3))) == 3
        case "recv":
            backend.deliver(*frames(1))
        case "recv_discard":
            link.recv_discard()
        case "recv_disable":
            link.recv_disable()
        case "recv_enable":
            link.recv_disable()
            link.recv_enable()
        case "get_capabilities":
            assert link.capabilities == NONE
        case "set_capabilities":
            link.set_features(NONE)


HOOKS = [
    "send",
    "recv",
    "recv_discard",
    "recv_enable",
    "recv_disable",
    "get_capabilities",
    "set_capabilities",
]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_backend_that_raises_takes_its_link_down_and_the_nic_lives(
    bench: LoopBench, hook: str, caplog: pytest.LogCaptureFixture
) -> None:  # F7
    backend = OnSocket(bench)
    link, frontend, _ = open_fake(bench.loop, backend=backend)
    backend.raises = {hook}
    backend.theirs.send(frames(1)[0])
    do(hook, link, frontend, backend)
    bench.settle()
    assert not link.is_up
    assert link.reason == f"{hook}: {hook} on purpose"
    assert frontend.ups == [False]
    (record,) = (r for r in caplog.records if r.levelno == logging.ERROR)
    assert record.exc_info
    for _ in range(3):
        for again in HOOKS:
            do(again, link, frontend, backend)
    bench.settle()
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    link.close()


@pytest.mark.parametrize(
    "name", ["EIO", "EINVAL", "ENOBUFS", "ENOMEM", "EPIPE", "ENETDOWN", "EBADF", "EAGAIN"]
)
@pytest.mark.parametrize("hook", ["send", "recv"])
def test_any_errno_that_a_backend_raises_is_the_reason_and_its_neighbour_goes_on(
    bench: LoopBench, hook: str, name: str
) -> None:  # F4, F7
    link, frontend, backend = open_fake(bench.loop)
    _, beside, other = open_fake(bench.loop)
    number = getattr(errno, name)
    backend.raises, backend.fault = {hook}, OSError(number, os.strerror(number))
    do(hook, link, frontend, backend)
    bench.settle()
    assert (link.is_up, frontend.ups) == (False, [False])
    assert link.reason.startswith(f"{hook}: [Errno {number}]")
    assert link.send(Burst.of(frames(2))) == 2
    backend.deliver(*frames(2))
    assert link.counters()["tx_drop_link_down"] == 2
    other.deliver(*frames(2))
    assert beside.frames == frames(2)
    assert beside.link.send(Burst.of(frames(2))) == 2
    assert other.sent == frames(2)


def test_frames_of_a_send_that_raised_count_as_dropped(bench: LoopBench) -> None:
    link, _, backend = open_fake(bench.loop)
    backend.raises = {"send"}
    assert link.send(Burst.of(frames(3))) == 3
    assert link.send(Burst.of(frames(2))) == 2
    assert link.counters() == {"tx_drop_error": 3, "tx_drop_link_down": 2}


@pytest.mark.parametrize("n", [-1, 4, None, "3"])
def test_a_send_that_returns_what_it_may_not_counts_as_raised(bench: LoopBench, n: Any) -> None:
    link, _, _ = open_fake(bench.loop)
    link._send = lambda _: n
    assert link.send(Burst.of(frames(3))) == 3
    assert not link.is_up
    assert link.counters() == {"tx_drop_error": 3}


def test_a_backends_own_error_is_the_reason_and_no_traceback(
    bench: LoopBench, caplog: pytest.LogCaptureFixture
) -> None:
    link, _, backend = open_fake(bench.loop)

    def gone() -> None:
        raise BackendError("fake0: the card was taken out; put it back")

    backend.on_recv = gone
    backend.link.readable()
    assert link.reason == "recv: fake0: the card was taken out; put it back"
    assert not any(record.exc_info for record in caplog.records)


def test_a_link_that_broke_stays_down_whatever_its_backend_says(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop)
    backend.raises = {"send"}
    link.send(Burst.of(frames(1)))
    backend.link.up()
    bench.settle()
    assert not link.is_up
    assert frontend.ups == [False]


def test_a_broken_link_that_is_opened_again_is_up(bench: LoopBench) -> None:
    link, _, backend = open_fake(bench.loop)
    backend.raises = {"send"}
    link.send(Burst.of(frames(1)))
    link.close()
    backend.raises = set()
    link.open([(backend, "fake0", None)])
    assert link.is_up
    assert link.send(Burst.of(frames(1))) == 1
    assert backend.sent == frames(1)


def test_a_cleanup_that_raises_closes_the_rest(bench: LoopBench) -> None:
    above = PassingFilter()
    link, _, backend = open_fake(bench.loop, above)
    backend.raises = {"cleanup"}
    link.close()
    assert above.calls == backend.calls == ["cleanup"]


@pytest.mark.parametrize("callback", ["on_readable", "on_writable"])
def test_a_frontend_that_raises_takes_its_own_link_down_and_hurts_nobody_who_called(
    bench: LoopBench, callback: str
) -> None:
    link, _, backend = open_fake(bench.loop)

    def fail() -> None:
        raise RuntimeError("on purpose")

    setattr(link, callback, fail)
    backend.link.readable()
    backend.link.writable()
    assert not link.is_up
    assert link.reason.endswith(": on purpose")


def test_a_socket_that_breaks_is_not_looked_at_again(bench: LoopBench) -> None:
    backend = OnSocket(bench)
    link, _, _ = open_fake(bench.loop, backend=backend)
    backend.raises = {"recv"}
    backend.theirs.send(frames(1)[0])
    bench.settle()
    assert not link.is_up
    assert bench.idle()
