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
from kit.wire import running


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
