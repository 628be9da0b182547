"""Whatever a guest and its VMM do: nothing raises or spins, no byte beyond theirs is touched."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import kit
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.rampage import Rampage, host_of
from kit.stage import staged
from kit.wire import running
from vnic.features import Features
from vnic_virtio_net.testing import Driver, Shape


@settings(deadline=None, max_examples=40)
@given(st.randoms(use_true_random=True), st.integers(1, 300))
def test_any_guest_is_served_or_stopped_and_every_frame_is_counted(
    rng: random.Random, steps: int
) -> None:
    with running() as loop:
        host, guards = host_of(loop)
        rampage = Rampage(rng, host)
        try:
            for _ in range(steps):
                rampage.step()
            rampage.settle()
        finally:
            rampage.close()
        guards.check()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 1600), min_size=1, max_size=120),
    st.lists(st.sampled_from([0, 1, 7, None]), max_size=20),
    st.sampled_from([(1612,), (12, 1600), (1, 3, 9, 700, 1000), (30, 40, 1542)]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([8, 32, 128]),
)
def test_frames_of_a_sound_driver_are_sent_once_in_order_or_counted(
    lengths: list[int],
    moods: list[int | None],
    cuts: tuple[int, ...],
    choices: tuple[bool, bool, bool],
    size: int,
) -> None:
    """The wire is full now and then; frames shorter than an Ethernet header are runts."""
    event_idx, in_order, indirect = choices
    features = Features.VERSION_1 | Features.INDIRECT_DESC
    features |= Features.EVENT_IDX if event_idx else Features(0)
    features |= Features.IN_ORDER if in_order else Features(0)
    with staged() as stage:
        shape = Shape(size, cuts=cuts, indirect=indirect)
        driver = Driver(stage.nic, stage.host, features=features, rx=Shape(1), tx=shape)
        frames = [bytes([i]) * n for i, n in enumerate(lengths)]
        at = 0
        while at < len(frames) or driver.n_outstanding:
            stage.wire.takes = moods.pop() if moods else None
            at += driver.send(frames[at:])
            stage.settle()
            stage.wire.link.writable()
            stage.settle()
        driver.check()
        assert [frame for frame, _ in stage.wire.sent] == [f for f in frames if len(f) >= 14]
        assert stage.counter("tx_drop_runt") == sum(len(frame) < 14 for frame in frames)


def run(*args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", *args],
        cwd=Path(kit.__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_guest_makes_the_device_read_or_write_beyond_its_memory() -> None:
    """Each region has pages on both sides that end the process when they are touched."""
    run("kit.rampage", "0", "60")


def test_a_guest_that_changes_its_rings_at_any_moment_gains_nothing() -> None:  # B2, B3
    run("kit.race", "1.5", "1")
