"""The host that tests and benchmarks bring: memory in two places, and interrupts that count."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vnic.loop import Loop
from vnic.testing import SoftwareHost


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_its_memory_has_a_gap(loop: Loop) -> None:
    host = SoftwareHost(loop, 1 << 20)
    assert [(r.gpa, r.size) for r in host.memory.regions] == [(0, 1 << 19), (4 << 30, 1 << 19)]
    assert not host.memory.covers((1 << 19) - 1, 2)
    assert host.size == 1 << 20


def test_regions_can_be_chosen(loop: Loop) -> None:
    host = SoftwareHost(loop, regions=[(0x1000, 0x2000), (0x3000, 0x1000)], huge_pages=True)
    assert host.size == 0x3000
    assert host.memory.covers(0x1000, 0x2000, write=True)


def test_what_is_allocated_is_aligned_apart_and_in_memory(loop: Loop) -> None:
    host = SoftwareHost(loop, 1 << 20)
    taken: list[tuple[int, int]] = []
    for n, align in [(1, 1), (4096, 4096), (7, 2), (100, 64), (60000, 16)]:
        gpa = host.alloc(n, align)
        assert gpa % align == 0
        assert host.memory.covers(gpa, n, write=True)
        assert all(gpa + n <= start or end <= gpa for start, end in taken)
        taken.append((gpa, gpa + n))
    assert {gpa >= 4 << 30 for gpa, _ in taken} == {False, True}


def test_full_memory_says_how_much_is_left(loop: Loop) -> None:
    host = SoftwareHost(loop, 1 << 20)
    host.alloc(1 << 19)
    with pytest.raises(MemoryError, match=r"524289 bytes don't fit .* \(524288 in one piece\)"):
        host.alloc((1 << 19) + 1)


def test_memory_outlives_the_host_for_whoever_looks_at_it(loop: Loop) -> None:
    view = SoftwareHost(loop, 1 << 20).memory.view(0, 16)
    view[0] = 1
    assert view[0] == 1


def test_interrupts_are_counted_and_told(loop: Loop) -> None:
    host = SoftwareHost(loop, 1 << 20)
    told: list[int] = []
    host.on_interrupt = told.append
    host.interrupt(3)
    host.interrupt(3)
    for level in (True, True, False, True):
        host.set_irq(level)
    assert host.interrupts == {3: 2}
    assert (host.irq_level, host.irq_edges) == (True, 2)
    assert told == [3, 3, -1, -1]


def test_calls_are_scheduled_on_the_loop_and_failures_noted(loop: Loop) -> None:
    host = SoftwareHost(loop, 1 << 20)
    called: list[int] = []
    host.schedule(lambda: called.append(1))
    loop.dispatch()
    assert called == [1]
    host.failed("a ring went wrong")
    assert host.failures == ["a ring went wrong"]
