"""Guest memory: what is mapped is found, nothing else is, and nothing goes while looked at."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic.errors import PeerError
from vnic.memory import Memory

TOP = 2**64
PAGE = mmap.PAGESIZE


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * PAGE)
    yield fd
    os.close(fd)


def mapped(name: str = "memfd:guest") -> int:
    return Path("/proc/self/maps").read_text().count(name)


# ---- against a twin ------------------------------------------------------------------------------


@attrs.define
class Twin:
    """The same as a list of (gpa, size, writable)."""

    regions: list[tuple[int, int, bool]] = attrs.Factory(list)

    def takes(self, gpa: int, size: int) -> bool:
        return (
            size > 0
            and gpa >= 0
            and gpa + size < TOP
            and all(gpa + size <= at or at + n <= gpa for at, n, _ in self.regions)
        )

    def covers(self, gpa: int, n: int, write: bool) -> bool:
        return any(
            at <= gpa < at + size and gpa + n <= at + size and (writable or not write)
            for at, size, writable in self.regions
        )


EDGES = st.sampled_from([0, 1, 2**32 - 16, 2**32, 2**63 - 8, 2**63, TOP - 64, TOP - 17, TOP - 1])
address = st.one_of(st.integers(0, 100), EDGES, st.builds(lambda a, b: (a + b) % TOP, EDGES, EDGES))
size = st.one_of(st.integers(0, 64), st.sampled_from([2**32 - 1, 2**63, TOP - 1]))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 3), address, size, st.booleans()), max_size=12),
    st.lists(st.tuples(address, size, st.booleans()), min_size=1, max_size=8),
)
def test_regions_come_and_go_as_in_a_list(
    steps: list[tuple[int, int, int, bool]], queries: list[tuple[int, int, bool]]
) -> None:
    memory, twin = Memory(), Twin()
    for kind, gpa, n, writable in steps:
        if kind == 0 and twin.regions:
            at, size, _ = twin.regions.pop(gpa % len(twin.regions))
            memory.remove(at, size)
        elif twin.takes(gpa, n) and n <= 64:
            memory.add(gpa, n, buffer=bytearray(64), writable=writable)
            twin.regions.append((gpa, n, writable))
        else:
            with pytest.raises(PeerError, match=f"guest memory at {gpa:#x}"):
                memory.add(gpa, n, buffer=bytearray(64), writable=writable)
        for at, n, write in queries:
            assert memory.covers(at, n, write) == twin.covers(at, n, write)
            if twin.covers(at, n, False):
                assert len(memory.view(at, n)) == n
            elif n:
                with pytest.raises(PeerError):
                    memory.view(at, n)
        assert [(r.gpa, r.size, r.writable) for r in memory.regions] == sorted(twin.regions)


def test_adjacent_regions_are_two(fd: int) -> None:
    memory = Memory()
    memory.add(PAGE, PAGE, fd=fd, offset=PAGE)
    memory.add(0, PAGE, fd=fd)
    assert memory.covers(0, PAGE)
    assert memory.covers(PAGE, PAGE)
    assert not memory.covers(PAGE - 1, 2)
    assert not memory.covers(2 * PAGE, 1)
    assert not memory.covers(2 * PAGE - 1, TOP - 1)


@pytest.mark.parametrize(
    ("gpa", "n"), [(0, 0), (0, -1), (-1, 5), (TOP - 4, 5), (TOP, 1), (0, TOP), (1, TOP - 1)]
)
def test_a_region_that_is_empty_or_wraps_is_refused(gpa: int, n: int) -> None:
    with pytest.raises(PeerError, match="is empty or wraps around"):
        Memory().add(gpa, n, buffer=bytearray(64))


@pytest.mark.parametrize("offset", [-1, 2**62, 2**64, 3 * PAGE + 1])
def test_an_offset_beyond_the_file_is_refused(fd: int, offset: int) -> None:
    with pytest.raises(PeerError, match=r"is too far|what is behind it"):
        Memory().add(0, PAGE, offset=offset, fd=fd)
    with pytest.raises(PeerError, match=r"is too far|what is behind it"):
        Memory().add(0, PAGE, offset=offset, buffer=bytearray(4 * PAGE))


def test_more_regions_than_a_vmm_can_have_are_refused() -> None:
    memory = Memory()
    page = bytearray(PAGE)
    for i in range(512):
        memory.add(i * PAGE, PAGE, buffer=page)
    with pytest.raises(PeerError, match="more than 512 regions"):
        memory.add(512 * PAGE, PAGE, buffer=page)
    assert all(memory.covers(i * PAGE, PAGE, True) for i in range(512))
    assert not memory.covers(512 * PAGE, 1)


def test_only_the_very_region_is_removed(fd: int) -> None:
    memory = Memory()
    memory.add(0, PAGE, fd=fd)
    for gpa, n in ((0, PAGE - 1), (1, PAGE), (0, 2 * PAGE), (PAGE, PAGE)):
        with pytest.raises(PeerError, match="no region of"):
            memory.remove(gpa, n)
    memory.remove(0, PAGE)
    assert not memory.covers(0, 1)


# ---- mappings ------------------------------------------------------------------------------------


def test_an_offset_within_a_page_is_mapped(fd: int) -> None:
    os.pwrite(fd, b"here", 100)
    memory = Memory()
    memory.add(5, 1000, fd=fd, offset=100)
    assert bytes(memory.view(5, 4)) == b"here"
    memory.view(6, 1)[:] = b"E"
    assert os.pread(fd, 4, 100) == b"hEre"


def test_a_view_keeps_its_mapping_alive(fd: int) -> None:
    memory = Memory()
    memory.add(0, PAGE, fd=fd)
    view = memory.view(8, 4)
    memory.clear()
    del memory
    gc.collect()
    assert mapped() == 1
    view[:] = b"kept"
    assert os.pread(fd, 4, 8) == b"kept"
    del view
    gc.collect()
    assert mapped() == 0


def test_a_region_that_was_refused_leaves_no_mapping(fd: int) -> None:
    memory = Memory()
    memory.add(0, PAGE, fd=fd)
    for gpa, n, offset in ((0, PAGE, 0), (PAGE, 5 * PAGE, 0), (TOP - PAGE, PAGE, 0)):
        with pytest.raises(PeerError):
            memory.add(gpa, n, fd=fd, offset=offset)
    assert mapped() == 1


def test_mappings_are_reused_for_ever(fd: int) -> None:
    memory = Memory()
    for _ in range(5000):  # more than may be watched at a time
        memory.add(0, PAGE, fd=fd)
        memory.remove(0, PAGE)
    assert mapped() == 0


def test_read_only_memory_is_read_only(fd: int) -> None:
    memory = Memory()
    memory.add(0, PAGE, fd=fd, writable=False)
    assert memory.view(0, 8).readonly
    assert memory.covers(0, PAGE)
    assert not memory.covers(0, 1, write=True)


def test_memory_needs_one_thing_behind_it(fd: int) -> None:
    with pytest.raises(TypeError, match="one of them"):
        Memory().add(0, 1)
    with pytest.raises(TypeError, match="one of them"):
        Memory().add(0, 1, fd=fd, buffer=b"x")


# ---- a file that is cut short --------------------------------------------------------------------


def run(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )


CUT = """
import os, faulthandler
faulthandler.enable()
from vnic.memory import Memory
fd = os.memfd_create("guest")
os.ftruncate(fd, 16384)
other = os.memfd_create("other")
os.ftruncate(other, 16384)
cut, kept = Memory(), Memory()
cut.add(0, 16384, fd=fd)
kept.add(0, 16384, fd=other)
kept.view(9000, 4)[:] = b"kept"
view = cut.view(8192, 4)
view[:] = b"here"
os.ftruncate(fd, 0)
assert bytes(view) == bytes(4)
view[:] = b"then"
assert bytes(cut.view(8192, 4)) == b"then"
assert cut.truncated and cut.regions[0].truncated
assert not kept.truncated and bytes(kept.view(9000, 4)) == b"kept"
cut.clear()
assert not cut.truncated
"""


def test_a_file_that_is_cut_short_reads_as_zeroes_and_is_told() -> None:
    done = run(CUT)
    assert done.returncode == 0, done.stderr


def test_a_fault_that_is_not_the_guests_still_ends_the_process() -> None:
    done = run(
        "import mmap, os\n"
        "from vnic.memory import Memory\n"
        "fd = os.memfd_create('guest'); os.ftruncate(fd, 4096)\n"
        "memory = Memory(); memory.add(0, 4096, fd=fd)\n"
        "mine = os.memfd_create('mine'); os.ftruncate(mine, 4096)\n"
        "pages = mmap.mmap(mine, 4096); os.ftruncate(mine, 0)\n"
        "pages[0]\n"
    )
    assert done.returncode < 0


def test_a_sealed_file_is_not_watched(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    memory = Memory()
    memory.add(0, PAGE, fd=fd)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(fd, 0)
    assert not memory.truncated
