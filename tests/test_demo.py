"""``vnic demo``: it runs for anybody, and it can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vnic.burst import Burst
from vnic.cli.demo import network, pair, scenario
from vnic.cli.demo.kernel import UnavailableError, own_namespace
from vnic.cli.demo.stream import ShortfallError, Stream
from vnic.registry import Registry

MAIN = "from vnic.cli import main; main()"
WITHOUT_RIGHTS = """
import ctypes, os, sys
prctl, PR_CAPBSET_DROP = ctypes.CDLL(None).prctl, 24
for capability in range(64):
    prctl(PR_CAPBSET_DROP, capability)
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""
"""Runs Python with these arguments as a user without rights, even if we are root.  To become
another user wouldn't do: this checkout or its Python may be in somebody's home."""

GUEST_PAIRS = [["guest1", "guest2"], ["guest1", "guest3"], ["guest2", "guest3"]]
KERNEL_PAIRS = [["guest1", "kernel"], ["guest2", "kernel"], ["guest3", "kernel"]]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root: no network namespace")


def run_demo(*args: str, rights: bool) -> subprocess.CompletedProcess[str]:
    code = [MAIN] if rights else [WITHOUT_RIGHTS, MAIN]
    command = [sys.executable, "-c", *code, "demo", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def check_figures(report: dict[str, Any], pairs: list[list[str]]) -> None:
    assert report["ok"]
    assert report["failures"] == []
    assert [row["pair"] for row in report["rows"]] == pairs
    for row in report["rows"]:
        assert 0 < row["round_trip_us"] < 1e6
        assert row["frames_per_s"] > 1000
        assert row["gbit_per_s"] > 0.01
        assert row["compared_bytes"] > 8e6
        assert row["drops"] >= 0


# ---- as a command


def test_anybody_can_run_it_and_is_told_why_there_is_no_tap() -> None:
    done = run_demo("--json", "--seconds", "0.2", rights=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    check_figures(report, GUEST_PAIRS)
    assert report["skipped"] == {
        "tap": "cannot make a network namespace: operation not permitted; run as root"
    }


@pytest.mark.root
@as_root
def test_root_sees_the_kernel_answer_every_guest() -> None:
    with_tap()
    done = run_demo("--json", "--seconds", "0.2", rights=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    check_figures(report, GUEST_PAIRS + KERNEL_PAIRS)
    assert report["skipped"] == {}


def test_the_table_has_a_line_for_each_pair_and_nothing_but_it_is_printed() -> None:
    done = run_demo("--seconds", "0.2", rights=False)
    assert done.returncode == 0, done.stderr
    first, second, *lines = done.stdout.splitlines()
    assert first.split() == ["round", "trip", "frames/s", "Gbit/s", "compared", "drops"]
    assert second.split() == ["pair", "µs", "64", "B", "1514", "B", "MB"]
    assert [line.split()[:3:2] for line in lines[:3]] == GUEST_PAIRS
    assert lines[3].split() == ["guest1", "virtio-net,", "guest2", "virtio-net,", "guest3", "e1000"]
    assert lines[4].startswith("skipped: tap: ")
    assert len(lines) == 5
    assert done.stderr == ""


# ---- the namespace


def with_tap() -> None:
    try:
        with own_namespace():
            pass
    except UnavailableError as error:
        pytest.skip(str(error))
    if not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("no /dev/net/tun")


def namespace() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


@pytest.mark.root
@as_root
def test_the_namespace_is_left_whatever_happens_inside() -> None:
    with_tap()
    before = namespace()
    inside = []

    def interrupted() -> None:
        with own_namespace():
            inside.append(namespace())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert inside != [before]
    assert namespace() == before


# ---- it can fail


@given(st.integers(0, 8 * 1514 - 1))
def test_a_flipped_bit_is_found_wherever_it_is(bit: int) -> None:
    stream = Stream("left to right", b"\x02" * 14, 1514)
    for frame in stream.frames(0, 3):
        stream.check(frame)
    spoiled = bytearray(stream.frame(3))
    spoiled[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ShortfallError) as caught:
        stream.check(bytes(spoiled))
    at = bit // 8
    assert str(caught.value) == (
        f"left to right: frame 3: byte {at} is {spoiled[at]:#04x}, "
        f"and was sent as {stream.frame(3)[at]:#04x}"
    )


def test_a_frame_that_is_cut_is_found() -> None:
    stream = Stream("left to right", b"", 1472)
    with pytest.raises(ShortfallError, match="it has 1471 bytes, and was sent with 1472"):
        stream.check(stream.frame(0)[:-1])


def test_a_frame_that_comes_twice_is_found() -> None:
    stream = Stream("left to right", b"", 64)
    stream.check(stream.frame(0))
    with pytest.raises(ShortfallError, match="frame 0 came late or twice, after 0"):
        stream.check(stream.frame(0))


def test_frames_that_are_left_out_are_counted() -> None:
    stream = Stream("left to right", b"", 64)
    for number in (0, 1, 5, 6, 9):
        stream.check(stream.frame(number))
    assert (stream.next, stream.n_missing) == (10, 5)


Spoil = Callable[[list[bytes], list[bytes]], tuple[list[bytes], list[bytes]]]


def run_with(spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the demo on a switch that does this to the frames of each burst; what fell short?"""
    from vnic_netmap.switch import Port, Switch

    original = Switch.forward

    def forward(self: Switch, sender: Port, burst: Burst) -> int:
        frames = [bytes(frame) for frame in burst]
        headers = [burst.header(i) for i in range(len(burst))]
        frames, headers = spoil(frames, headers)
        if frames:
            original(self, sender, Burst.of(frames, headers))
        return len(burst)

    monkeypatch.setattr(Switch, "forward", forward)
    monkeypatch.setattr(pair, "IDLE_S", 0.05)
    # Rings that are never full here: what the switch does not take would be lost above.
    monkeypatch.setattr(network, "FRONTENDS", ("virtio-net",) * 3)
    monkeypatch.setattr(network, "ANSWER_S", 0.3)
    registry = Registry([entry for entry in Registry().entries() if entry.prefix != "tap"])
    report = scenario.run(0.1, lambda what, done, total: None, registry)
    assert report.as_dict()["ok"] is False
    return report.failures


def test_a_byte_that_the_switch_spoils_fails_the_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    n_long = 0

    def spoil(frames: list[bytes], headers: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        nonlocal n_long
        for i, frame in enumerate(frames):
            n_long += len(frame) == 1514 and frame[12:14] == b"\x88\xb5"
            if n_long == 1000:
                frames[i] = frame[:-1] + bytes([frame[-1] ^ 0x10])
                n_long += 1
        return frames, headers

    (failure,) = run_with(spoil, monkeypatch)
    assert failure.startswith("guest1 - guest2: guest1 to guest2: frame 999: byte 1513 is 0x")


def test_a_frame_that_nobody_counted_as_lost_fails_the_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_long = 0

    def spoil(frames: list[bytes], headers: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        nonlocal n_long
        n_long += len(frames[0]) == 1514 and frames[0][12:14] == b"\x88\xb5"
        if n_long == 5:
            n_long += 1
            return frames[1:], headers[1:]
        return frames, headers

    (failure,) = run_with(spoil, monkeypatch)
    assert failure == (
        "guest1 - guest2: guest1 to guest2: of 22,162 frames 1 were lost, 0 were counted"
    )


def test_a_guest_that_does_not_answer_fails_its_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(frames: list[bytes], headers: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        to_all = [i for i, frame in enumerate(frames) if frame[:6] == b"\xff" * 6]
        return [frames[i] for i in to_all], [headers[i] for i in to_all]

    failures = run_with(spoil, monkeypatch)
    assert [failure.partition(": ")[0].split(" - ") for failure in failures] == GUEST_PAIRS
    assert failures[0].endswith(
        "guest1's ping of guest2 (10.0.0.2) was not answered with its own bytes within 0.3 s"
    )


def test_what_falls_short_ends_the_command_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner
    from vnic.cli import main

    report = scenario.Report(failures=["guest1 - guest2: no answer"])
    monkeypatch.setattr(scenario, "run", lambda *args: report)
    done = CliRunner().invoke(main, ["demo"])
    assert done.exit_code == 1
    assert "vnic: fell short: guest1 - guest2: no answer\n" in done.stderr
