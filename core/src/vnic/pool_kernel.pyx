# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""A ring of buffers of our own, for who reads frames and is no guest: a patch.

It gives a room the three verbs of ``struct vnic_rx_ring``; what the room has filled is a burst.

Preconditions: none from outside; all memory here is the pool's own.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from vnic_abi cimport (
    VNIC_BURST_CAPSULE, VNIC_FRAME_MAX, VNIC_GUEST_CSUM, VNIC_RX_RING_CAPSULE, vnic_burst,
    vnic_frame, vnic_rx_ring,
)

from vnic.burst_kernel import Burst

cdef enum:
    BUFFERS = 256  # a burst of the largest frames; pages that no frame reached are never there


cdef struct PoolRing:
    char *memory
    vnic_burst *filled
    uint32_t n_max
    bint summed  # no frame may say anything of its checksum
    uint32_t reserved  # buffers behind the filled ones that the room holds


cdef class Pool:
    """Buffers that a `Room` fills; the frames in them are `burst`, until `drop`."""

    cdef vnic_rx_ring verbs
    cdef PoolRing ring
    cdef readonly object burst
    cdef readonly object capsule

    def __cinit__(self, uint64_t offloads, uint32_t n_max=BUFFERS):
        """``offloads``: GUEST_* feature bits of frames that may stay as they are.

        ``n_max``: how many frames there is room for, at most 256.
        """
        if not 0 < n_max <= BUFFERS:
            raise ValueError(f"a pool has 1 to {BUFFERS} buffers, not {n_max}")
        self.ring.memory = <char *>malloc(<size_t>BUFFERS * VNIC_FRAME_MAX)
        if self.ring.memory == NULL:
            raise MemoryError
        self.burst = Burst()
        self.ring.filled = <vnic_burst *>PyCapsule_GetPointer(
            self.burst.capsule, VNIC_BURST_CAPSULE
        )
        self.verbs.ring = &self.ring
        self.verbs.reserve = reserve
        self.verbs.commit = commit
        self.verbs.rollback = rollback
        self.verbs.accept = NULL
        self.verbs.offloads = offloads
        self.verbs.n_max = self.ring.n_max = n_max
        self.ring.summed = not offloads & VNIC_GUEST_CSUM
        self.verbs.header_len = 0
        self.verbs.mergeable = 0
        self.capsule = PyCapsule_New(&self.verbs, VNIC_RX_RING_CAPSULE, NULL)

    def __dealloc__(self):
        free(self.ring.memory)

    def drop(self, uint32_t n):
        """Forget the first n frames; the others move up and keep their bytes."""
        cdef vnic_burst *b = self.ring.filled
        cdef uint32_t i
        cdef char *buffer
        if n == 0:
            return
        if n > b.n:
            n = b.n
        for i in range(b.n - n):
            # Buffers change places with their frames, so that none is used twice.
            buffer = self.ring.memory + <size_t>i * VNIC_FRAME_MAX
            memcpy(buffer, b.iov[n + i].iov_base, b.frames[n + i].len)
            b.frames[i] = b.frames[n + i]
            b.frames[i].first = i
            b.iov[i].iov_base = buffer
            b.iov[i].iov_len = b.frames[i].len
        b.n -= n
        b.n_iov = b.n


cdef uint32_t reserve(void *ring, vnic_burst *buffers, uint32_t n) noexcept nogil:
    cdef PoolRing *pool = <PoolRing *>ring
    cdef uint32_t i, at
    cdef vnic_frame *buffer
    for i in range(n):
        at = pool.filled.n + pool.reserved
        if at >= pool.n_max or buffers.n >= buffers.n_max or buffers.n_iov >= buffers.n_iov_max:
            return i
        buffer = &buffers.frames[buffers.n]
        buffer.first = buffers.n_iov
        buffer.count = 1
        buffer.len = VNIC_FRAME_MAX
        buffer.token = at
        buffer.flags = 0
        buffers.iov[buffers.n_iov].iov_base = pool.memory + <size_t>at * VNIC_FRAME_MAX
        buffers.iov[buffers.n_iov].iov_len = VNIC_FRAME_MAX
        buffers.n += 1
        buffers.n_iov += 1
        pool.reserved += 1
    return n


cdef void commit(void *ring, const vnic_frame *buffers, uint32_t n) noexcept nogil:
    cdef PoolRing *pool = <PoolRing *>ring
    cdef vnic_burst *b = pool.filled
    cdef uint32_t i
    for i in range(n):
        b.frames[b.n] = buffers[i]
        b.frames[b.n].first = b.n
        b.frames[b.n].hdr[10] = b.frames[b.n].hdr[11] = 0
        if pool.summed:
            memset(b.frames[b.n].hdr, 0, 12)
        b.iov[b.n].iov_base = pool.memory + <size_t>buffers[i].token * VNIC_FRAME_MAX
        b.iov[b.n].iov_len = buffers[i].len
        b.n += 1
        b.n_iov += 1
    pool.reserved -= n


cdef void rollback(void *ring) noexcept nogil:
    (<PoolRing *>ring).reserved = 0
