"""``vale``: on the kernel's switch or on one in the process, as was asked for or as there is."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

import pytest
from vnic.errors import BackendError, ConfigError
from vnic.testing.bench import from_guest
from vnic_netmap import Vale
from vnic_netmap.embedded import switches

Open = Callable[..., Any]
Run = Callable[[], None]


def engine(side: Any) -> str:
    return "kernel" if hasattr(side.backend._port, "open") else "embedded"


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vnic.netmap")


def test_the_kernels_switch_is_taken_where_the_device_opens(
    module: Any, side: Open, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = (side(f"vale0:{i}", Vale) for i in range(2))
    assert (engine(a), engine(b)) == ("kernel", "kernel")
    assert "vale0:0: on the kernel's switch" in caplog.text
    assert not switches
    a.guest.send(from_guest(3, 9000))
    run()
    assert b.guest.frames == from_guest(3, 9000)


@pytest.mark.parametrize(
    ("error", "says"), [(errno.ENOENT, "load the module"), (errno.EACCES, "chmod 0660")]
)
def test_else_the_embedded_one_and_the_log_says_why(
    module: Any, side: Open, run: Run, caplog: pytest.LogCaptureFixture, error: int, says: str
) -> None:
    module.fail("open", error, times=2)
    a, b = (side(f"vale0:{i}", Vale) for i in range(2))
    assert (engine(a), engine(b)) == ("embedded", "embedded")
    assert says in caplog.text
    assert "so it is on an embedded switch" in caplog.text
    a.guest.send(from_guest(3, 9000))
    run()
    assert b.guest.frames == from_guest(3, 9000)


def test_the_embedded_one_is_taken_if_it_is_asked_for(
    module: Any, side: Open, caplog: pytest.LogCaptureFixture
) -> None:
    assert engine(side("vale0:1", Vale, engine="embedded")) == "embedded"
    assert "vale0:1: on an embedded switch, as asked for" in caplog.text
    assert not module.n_calls


@pytest.mark.parametrize("full", ["wait", "drop"])
def test_what_only_the_embedded_one_can_do_asks_for_it(module: Any, side: Open, full: str) -> None:
    assert engine(side("vale0:1", Vale, full=full)) == "embedded"
    with pytest.raises(ConfigError, match=f"full={full}: only an embedded switch"):
        side("vale0:2", Vale, engine="kernel", full=full)


def test_the_kernels_is_not_replaced_if_it_is_asked_for(module: Any, side: Open) -> None:
    module.fail("open", errno.ENOENT)
    with pytest.raises(BackendError, match=r"modprobe netmap.*engine=embedded"):
        side("vale0:1", Vale, engine="kernel")


def test_a_port_of_the_kernels_switch_is_one_nics_alone(module: Any, side: Open) -> None:
    first = side("vale0:1", Vale)
    with pytest.raises(BackendError, match="another program has it"):
        side("vale0:1", Vale)
    first.link.close()
    assert side("vale0:1", Vale).link.is_up


def test_an_engine_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="give auto or kernel or embedded"):
        Vale.Options(engine="kernal")


def test_a_guest_without_room_does_not_spin_the_loop(module: Any, side: Open, run: Run) -> None:
    a, b = side("vale0:1", Vale), side("vale0:2", Vale, n_buffers=3)
    b.guest.holds = True
    a.guest.send(from_guest(50))
    run()
    b.guest.release()
    run()
    assert b.guest.frames == from_guest(50)
