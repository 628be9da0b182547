# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Guest memory: mappings, the table that kernels translate with, and the fault that a VMM can cause.

Preconditions of the raw parts: a table changes only under the lock of the loop whose NICs use it,
between bursts (`vnic.loop`); a mapping is unmapped by its Region alone, when the last view died.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.pycapsule cimport PyCapsule_New
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memmove

from vnic_abi cimport (
    VNIC_MEMORY_CAPSULE, VNIC_READ, VNIC_REGIONS_MAX, VNIC_WRITE, vnic_memory, vnic_region,
    vnic_translate,
)

import os

from vnic.errors import PeerError

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_FIXED
        MAP_NORESERVE
    void *MAP_FAILED

cdef extern from "<signal.h>" nogil:
    ctypedef struct siginfo_t:
        void *si_addr
    ctypedef struct sigset_t:
        pass
    struct sigaction_s "sigaction":
        void (*sa_sigaction)(int, siginfo_t *, void *) noexcept nogil
        sigset_t sa_mask
        int sa_flags
    int sigaction(int signum, const sigaction_s *act, sigaction_s *oldact)
    int sigemptyset(sigset_t *set)
    enum:
        SIGBUS
        SA_SIGINFO
        SA_ONSTACK
        SA_NODEFER

# ---- SIGBUS ----------------------------------------------------------------------------------
#
# Threat: guest memory is a file of the VMM's; a VMM that cuts it short makes our next access
# raise SIGBUS.  Consequence: the whole process, with the NICs of other guests, would die.  What we
# do: put anonymous zeroes where the file was, so that the access goes on harmlessly, and set a flag
# that ends the session.  A sealed memfd can't be cut, and is not watched.

cdef enum:
    MAPPINGS_MAX = 4096

cdef struct Mapping:
    uintptr_t base
    size_t len
    int truncated

cdef Mapping mappings[MAPPINGS_MAX]
cdef sigaction_s previous_sigbus
cdef bint sigbus_installed = False


cdef void on_sigbus(int signum, siginfo_t *info, void *context) noexcept nogil:
    """Only async-signal-safe calls here; mmap is one in practice on Linux and FreeBSD."""
    cdef uintptr_t at = <uintptr_t>info.si_addr
    cdef int i
    for i in range(MAPPINGS_MAX):
        if mappings[i].len != 0 and mappings[i].base <= at < mappings[i].base + mappings[i].len:
            if mmap(<void *>mappings[i].base, mappings[i].len, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED:
                break
            mappings[i].truncated = 1
            return
    # Not ours: put back what was there, and let the access fault again.
    sigaction(SIGBUS, &previous_sigbus, NULL)


cdef int watch_mapping(void *base, size_t size) except -1:
    global sigbus_installed
    cdef sigaction_s action
    cdef int i
    if not sigbus_installed:
        action.sa_sigaction = on_sigbus
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER
        sigemptyset(&action.sa_mask)
        if sigaction(SIGBUS, &action, &previous_sigbus) != 0:
            raise OSError(errno, os.strerror(errno))
        sigbus_installed = True
    for i in range(MAPPINGS_MAX):
        if mappings[i].len == 0:
            mappings[i].base = <uintptr_t>base
            mappings[i].truncated = 0
            mappings[i].len = size
            return i
    raise PeerError(f"guest memory: more than {MAPPINGS_MAX} mappings in this process")


# ---- regions ---------------------------------------------------------------------------------

cdef class Region:
    """One stretch of guest memory: a mapping of a VMM's file, or a buffer of the application's.

    Exports its bytes (``memoryview(region)``).  The mapping lives as long as any view of it.
    """

    cdef readonly uint64_t gpa
    cdef readonly uint64_t size
    cdef readonly bint writable
    cdef char *hva
    cdef void *map_base
    cdef size_t map_len
    cdef int mapping
    cdef Py_buffer buffer
    cdef bint has_buffer

    def __cinit__(self):
        self.map_base = NULL
        self.mapping = -1
        self.has_buffer = False

    def __init__(self, uint64_t gpa, uint64_t size, bint writable, fd, uint64_t offset, buffer):
        cdef void *base
        self.gpa = gpa
        self.size = size
        self.writable = writable
        if fd is not None:
            # From the file's start: an offset that is not a page's (or a huge page's) then needs
            # no arithmetic that depends on the page size behind the descriptor.
            base = mmap(NULL, offset + size, PROT_READ | PROT_WRITE if writable else PROT_READ,
                        MAP_SHARED | MAP_NORESERVE, <int>fd, 0)
            if base == MAP_FAILED:
                raise PeerError(
                    f"guest memory at {gpa:#x}: can't map {offset + size:#x} bytes of its "
                    f"descriptor: {os.strerror(errno)}"
                )
            self.map_base = base
            self.map_len = offset + size
            self.hva = <char *>base + offset
            if not is_sealed(fd):
                self.mapping = watch_mapping(base, self.map_len)
        else:
            PyObject_GetBuffer(buffer, &self.buffer, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
            self.has_buffer = True
            self.hva = <char *>self.buffer.buf

    def __dealloc__(self):
        if self.mapping >= 0:
            mappings[self.mapping].len = 0
        if self.map_base != NULL:
            munmap(self.map_base, self.map_len)
        if self.has_buffer:
            PyBuffer_Release(&self.buffer)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.hva, self.size, not self.writable, flags)

    def __len__(self):
        return self.size

    @property
    def truncated(self) -> bool:
        """Whether the file was cut short by its owner; zeroes stand in its place since."""
        return self.mapping >= 0 and mappings[self.mapping].truncated != 0

    def __repr__(self):
        return f"Region({self.gpa:#x}, {self.size:#x})"


cdef bint is_sealed(fd):
    """Whether nobody can cut the file short (F_SEAL_SHRINK on a memfd)."""
    import fcntl
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except (OSError, AttributeError):
        return False


cdef class Memory:
    """A guest's memory, as regions that come and go.

    Guest-physical addresses are translated with start *and* length checked, against regions that
    are there now.  One loop's NICs use it; change it between their bursts, with the loop's lock.
    """

    cdef vnic_memory *table
    cdef dict regions_by_gpa
    cdef readonly object capsule
    """For kernels: ``struct vnic_memory`` of vnic.h.  Valid as long as this object."""

    def __cinit__(self):
        self.table = <vnic_memory *>calloc(1, sizeof(vnic_memory))
        if self.table == NULL:
            raise MemoryError
        self.regions_by_gpa = {}
        self.capsule = PyCapsule_New(self.table, VNIC_MEMORY_CAPSULE, NULL)

    def __dealloc__(self):
        free(self.table)

    @property
    def regions(self):
        """The regions, by address."""
        return tuple(self.regions_by_gpa[gpa] for gpa in sorted(self.regions_by_gpa))

    @property
    def truncated(self) -> bool:
        """Whether a file of it was cut short by its owner.  The session should end."""
        return any(region.truncated for region in self.regions_by_gpa.values())

    def add(self, gpa, size, *, fd=None, offset=0, buffer=None, writable=True):
        """Add ``size`` bytes at ``gpa``: of a descriptor from ``offset``, or of a buffer.

        The descriptor is mapped and stays the caller's to close; the buffer is referenced.
        Returns the region.

        Raises: PeerError, for a region that is empty, wraps around, overlaps another, or reaches
        beyond its file or buffer.
        """
        if (fd is None) == (buffer is None):
            raise TypeError("Memory.add takes fd or buffer: one of them")
        if size <= 0 or gpa < 0 or gpa + size >= 1 << 64:
            raise PeerError(f"guest memory at {gpa:#x}: size {size:#x} is empty or wraps around")
        if offset < 0 or offset + size > 1 << 62:
            raise PeerError(f"guest memory at {gpa:#x}: offset {offset:#x} + {size:#x} is too far")
        for other in self.regions_by_gpa.values():
            if gpa < other.gpa + other.size and other.gpa < gpa + size:
                raise PeerError(
                    f"guest memory at {gpa:#x}, {size:#x} bytes: overlaps the region at "
                    f"{other.gpa:#x}, {other.size:#x} bytes"
                )
        if self.table.n >= VNIC_REGIONS_MAX:
            raise PeerError(f"guest memory: more than {VNIC_REGIONS_MAX} regions")
        if fd is not None:
            has = os.fstat(fd).st_size
        else:
            has = memoryview(buffer).nbytes
        if has < offset + size:
            raise PeerError(
                f"guest memory at {gpa:#x}: needs {offset + size:#x} bytes, what is behind it "
                f"has {has:#x}"
            )
        cdef Region region = Region(gpa, size, writable, fd, offset, buffer)
        if fd is None:
            region.hva += <uint64_t>offset
        self.regions_by_gpa[gpa] = region
        self._insert(region)
        return region

    cdef void _insert(self, Region region):
        cdef uint32_t at = 0
        cdef vnic_memory *t = self.table
        while at < t.n and t.regions[at].gpa < region.gpa:
            at += 1
        memmove(&t.regions[at + 1], &t.regions[at], (t.n - at) * sizeof(vnic_region))
        t.regions[at].gpa = region.gpa
        t.regions[at].end = region.gpa + region.size
        t.regions[at].delta = <uint64_t><uintptr_t>region.hva - region.gpa
        t.regions[at].access = VNIC_READ | VNIC_WRITE if region.writable else VNIC_READ
        t.n += 1
        t.last = 0

    def remove(self, gpa, size):
        """Remove a region that was added with these values.

        Raises: PeerError, if there is none such.
        """
        region = self.regions_by_gpa.get(gpa)
        if region is None or region.size != size:
            raise PeerError(f"guest memory: no region of {size:#x} bytes at {gpa:#x} to remove")
        del self.regions_by_gpa[gpa]
        cdef vnic_memory *t = self.table
        cdef uint32_t at = 0
        cdef uint64_t start = gpa
        while t.regions[at].gpa != start:
            at += 1
        memmove(&t.regions[at], &t.regions[at + 1], (t.n - at - 1) * sizeof(vnic_region))
        t.n -= 1
        t.last = 0

    def clear(self):
        """Remove all regions."""
        self.table.n = 0
        self.table.last = 0
        self.regions_by_gpa.clear()

    def view(self, gpa, n):
        """Return ``n`` bytes at ``gpa`` as a view, writable where the region is.

        They must lie in one region.  The view keeps the mapping alive.

        Raises: PeerError, where they don't.
        """
        for region in self.regions_by_gpa.values():
            if region.gpa <= gpa and gpa + n <= region.gpa + region.size:
                return memoryview(region)[gpa - region.gpa : gpa - region.gpa + n]
        raise PeerError(f"guest memory: {n:#x} bytes at {gpa:#x} lie in no region")

    def covers(self, uint64_t gpa, uint64_t n, bint write=False) -> bool:
        """Whether ``n`` bytes at ``gpa`` lie in one region (writable, if asked)."""
        return vnic_translate(self.table, gpa, n, VNIC_WRITE if write else VNIC_READ) != NULL
