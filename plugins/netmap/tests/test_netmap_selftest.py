"""The self-test for machines with the real module passes on the stand-in, and fails on worse."""

from __future__ import annotations

import errno
import importlib.util
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest
from vnic_netmap import netmap
from vnic_netmap.testing import Nic, StandIn, rings, vale

EXAMPLE = Path(__file__).parents[3] / "examples" / "netmap_selftest.py"

CROSSING = "frames_of_all_lengths_cross_a_switch"

Patch = pytest.MonkeyPatch
Lines = Callable[[], list[str]]


@pytest.fixture
def selftest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("netmap_selftest", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    return lambda: capsys.readouterr().out.splitlines()


@pytest.fixture
def impatient(selftest: ModuleType, monkeypatch: Patch) -> None:
    monkeypatch.setattr(selftest, "DEADLINE_S", 0.05)


class Cable(deque[bytes]):
    """What leaves a NIC arrives at another."""

    def __init__(self, to: Nic) -> None:
        super().__init__()
        self._to = to

    def __iadd__(self, frames: Iterable[bytes]) -> Self:
        for frame in frames:
            self._to.from_wire(frame)
        return self


class Stack:
    """The host's network stack at a NIC of the stand-in."""

    def __init__(self, nic: Nic) -> None:
        self.send = nic.from_host
        self.recv = lambda _: nic.to_host.popleft()

    def close(self) -> None: ...


def test_every_check_passes_on_the_stand_in(
    selftest: ModuleType, module: StandIn, monkeypatch: Patch, lines: Lines
) -> None:
    nics = {"nic0": module.add_nic("nic0"), "nic1": module.add_nic("nic1", rings=2)}
    nics["nic0"].to_wire, nics["nic1"].to_wire = Cable(nics["nic1"]), Cable(nics["nic0"])
    monkeypatch.setattr(selftest, "stack_at", lambda name: Stack(nics[name]))
    status = selftest.main(["--nic", "nic0", "--peer", "nic1"])
    said = lines()
    assert (said[-1], status) == (f"{len(selftest.CHECKS)} ok, 0 failed, 0 skipped", 0), said


def test_without_a_nic_its_checks_are_skipped_and_say_what_to_give(
    selftest: ModuleType, module: StandIn, monkeypatch: Patch, lines: Lines
) -> None:
    checks = ["a_nic_takes_frames", "frames_arrive_at_the_other_end_of_the_wire"]
    monkeypatch.setattr(selftest, "CHECKS", checks)
    assert selftest.main([]) == 0
    assert lines() == [
        "a nic takes frames: skipped: give --nic NAME",
        "frames arrive at the other end of the wire: skipped: give --nic NAME --peer NAME",
        "0 ok, 0 failed, 2 skipped",
    ]


def test_a_machine_without_the_module_gets_one_clear_line(
    selftest: ModuleType, module: StandIn, lines: Lines
) -> None:
    module.fail("open", errno.ENOENT)
    assert selftest.main([]) == 2
    (line,) = lines()
    assert "load the module (Linux: modprobe netmap" in line


# ---- what it finds out ---------------------------------------------------------------------------


def loses_a_frame(patch: Patch, module: StandIn) -> None:
    deliver, n = vale.ValePort.deliver, itertools.count()

    def deliver_most(self: Any, frames: Any, *args: Any) -> None:
        deliver(self, [frame for frame in frames if next(n) % 50 != 49], *args)

    patch.setattr(vale.ValePort, "deliver", deliver_most)


def swaps_frames(patch: Patch, module: StandIn) -> None:
    deliver = vale.ValePort.deliver
    patch.setattr(
        vale.ValePort, "deliver", lambda self, frames, *args: deliver(self, frames[::-1], *args)
    )


def delivers_twice(patch: Patch, module: StandIn) -> None:
    deliver = vale.ValePort.deliver
    patch.setattr(
        vale.ValePort, "deliver", lambda self, frames, *args: deliver(self, [*frames] * 2, *args)
    )


def changes_the_last_byte(patch: Patch, module: StandIn) -> None:
    fill, n = rings.Kring.fill, itertools.count()

    def fill_wrongly(self: Any, i: int, data: Any, flags: int) -> None:
        fill(self, i, bytes(data[:-1]) + bytes([data[-1] ^ (next(n) % 50 == 49)]), flags)

    patch.setattr(rings.Kring, "fill", fill_wrongly)


def sends_nothing(patch: Patch, module: StandIn) -> None:
    patch.setattr(netmap.Netmap, "send", lambda self, burst: len(burst))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (loses_a_frame, "never came"),
        (swaps_frames, "keep the order"),
        (delivers_twice, "6 frames of 3"),
        (changes_the_last_byte, "has changed: byte"),
        (sends_nothing, "0 frames of 3"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_fault_of_the_module_or_the_backend_is_found_out(
    selftest: ModuleType,
    module: StandIn,
    monkeypatch: Patch,
    lines: Lines,
    fault: Callable[[Patch, StandIn], None],
    says: str,
) -> None:
    monkeypatch.setattr(selftest, "CHECKS", [CROSSING])
    fault(monkeypatch, module)
    assert selftest.main([]) == 1
    (line, total) = lines()
    assert line.startswith("frames of all lengths cross a switch: FAILED")
    assert says in line
    assert total == "0 ok, 1 failed, 0 skipped"


@pytest.mark.usefixtures("impatient")
def test_every_check_that_moves_frames_fails_when_none_arrive(
    selftest: ModuleType, module: StandIn, monkeypatch: Patch, lines: Lines
) -> None:
    sends_nothing(monkeypatch, module)
    assert selftest.main([]) == 1
    assert [line for line in lines() if line.endswith(": ok")] == [
        "what can not be opened is an error in words: ok"
    ]


def test_what_is_left_open_is_found_out(
    selftest: ModuleType, module: StandIn, monkeypatch: Patch, lines: Lines
) -> None:
    left: list[int] = []
    monkeypatch.setattr(selftest, "CHECKS", [CROSSING])
    monkeypatch.setattr(selftest, "SIZES", (60,))
    with monkeypatch.context() as patch:
        patch.setattr(module, "close", left.append)
        assert selftest.main([]) == 1
    assert "descriptors are still open" in lines()[0]
    for fd in left:
        module.close(fd)
