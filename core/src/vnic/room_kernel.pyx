# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The room: what a guest has posted, filled by whoever has frames for it.

A backend offers frames and never touches guest memory.  A frontend's ring gives its empty buffers
as three verbs (``struct vnic_rx_ring`` of vnic.h: reserve, commit, rollback) and knows nothing of
frames.  All between the two is here, once, for every frontend and every backend: filling one
buffer or several, offload for guests that lack it, reading from descriptors, and what to do with a
frame that does not fit.

Preconditions of the raw parts: segments of buffers were checked against guest memory by the ring
when it reserved them, in this very `open`..`close`; segments of frames by the burst's owner.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EAGAIN, EFAULT, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

from vnic.offload_kernel cimport (
    HEADERS_MAX, Offload, offload_checksum, offload_payload, offload_plan, offload_segment,
)
from vnic_abi cimport (
    VNIC_BURST_CAPSULE, VNIC_BURST_MAX, VNIC_ETH_HLEN, VNIC_FRAME_MAX, VNIC_GUEST_CSUM,
    VNIC_HDR_F_DATA_VALID, VNIC_HDR_F_NEEDS_CSUM, VNIC_IOV_MAX, VNIC_LAST, VNIC_LOOK, VNIC_NOTE,
    VNIC_RX_RING_CAPSULE, VNIC_STRIP_TAG, VNIC_TAIL_MAX, iovec, vnic_burst, vnic_copy,
    vnic_copy_segments, vnic_cursor, vnic_cursor_advance, vnic_frame, vnic_gather, vnic_hdr,
    vnic_hdr_check, vnic_hdr_is_plain, vnic_hdr_needs, vnic_rx_ring, vnic_scatter,
    vnic_touch_segments,
)

cdef extern from "<sys/uio.h>" nogil:
    ssize_t c_readv "readv" (int fd, const iovec *iov, int n)

cdef enum:
    BUFFERS = 1024      # reserved at a time: a 64 KiB frame in 64-byte buffers, or a long burst
    SEGMENTS = 8192
    BATCH = 32          # buffers whose lines are fetched ahead of the copying
    HEADER_LEN = 12
    ADDRESSES_LEN = 12  # of an Ethernet header
    TAG_LEN = 4         # of a VLAN tag, which follows them
    FCS_LEN = 4
    COVER_MIN = 1518    # what a readv covers with guest buffers until longer frames were seen: one
                        # of Linux's (1536 bytes) for a frame of the usual length with its tag
    RELEASE_GIL = 32    # frames; below, releasing the GIL costs more than it gives
    LEN_MAX = 1 << 30   # a buffer's length as we count it, which the guest may make of terabytes

cdef uint8_t[VNIC_TAIL_MAX] ZEROES  # never written to

cdef enum Outcome:
    PLACED
    DROPPED
    FULL


cdef class Room:
    """Room for frames in one guest's receive ring.

    The frontend owns it: ``open()`` before ``link.recv(room)``, ``close()`` after.  Backends use
    `put`, `put_frame` and `readv`, and look at `full`.  Made without a ring it keeps nothing and
    has room for everything: what a link uses to drain its backend.
    """

    cdef vnic_rx_ring *ring
    cdef object ring_capsule
    cdef object owner
    cdef vnic_burst buffers     # reserved, not committed: frames[next..n]
    cdef uint32_t next
    cdef uint32_t used          # of those, filled and not yet committed
    cdef uint32_t mark          # of those, filled with the frames before the one at hand
    cdef uint32_t note          # what the ring's filter noted of the frame at hand
    cdef uint8_t *spill         # a frame read from a descriptor, whole or the end of one
    cdef uint32_t spill_len     # the frame that waits there; 0: none
    cdef uint8_t spill_hdr[12]
    cdef uint32_t cover
    cdef uint32_t per_frame     # buffers that a frame took lately
    cdef readonly bint full
    """Whether the guest had no room for the frame that was offered last."""
    cdef readonly uint32_t delivered
    """Frames placed since `open`."""
    cdef uint64_t n_frames, n_bytes, n_too_long, n_bad_header, n_runt, n_filtered, n_discarded
    cdef uint64_t n_segmented, n_summed

    def __cinit__(self, ring=None, owner=None):
        """``ring`` is a capsule of a ``struct vnic_rx_ring``; ``owner`` is kept alive with it."""
        self.ring = NULL
        if ring is not None:
            self.ring = <vnic_rx_ring *>PyCapsule_GetPointer(ring, VNIC_RX_RING_CAPSULE)
            self.buffers.frames = <vnic_frame *>calloc(BUFFERS, sizeof(vnic_frame))
            self.buffers.iov = <iovec *>calloc(SEGMENTS, sizeof(iovec))
            if self.buffers.frames == NULL or self.buffers.iov == NULL:
                raise MemoryError
            self.buffers.n_max = BUFFERS
            self.buffers.n_iov_max = SEGMENTS
        self.spill = <uint8_t *>malloc(VNIC_FRAME_MAX + 1)
        if self.spill == NULL:
            raise MemoryError
        self.ring_capsule = ring
        self.owner = owner
        self.cover = COVER_MIN
        self.per_frame = 1

    def __dealloc__(self):
        free(self.buffers.frames)
        free(self.buffers.iov)
        free(self.spill)

    # ---- the frontend's side

    def open(self):
        """Begin: nothing is reserved, nothing delivered."""
        self.full = False
        self.delivered = 0

    def close(self):
        """End: return to the ring what was reserved and not filled.  No pointer into guest memory
        outlives it.  Returns the frames delivered since `open`.
        """
        if self.ring != NULL:
            self.ring.rollback(self.ring.ring)
            self.buffers.n = self.buffers.n_iov = self.next = self.used = 0
        return self.delivered

    def reset(self):
        """Forget a frame that waits for room; returns how many there were."""
        cdef uint32_t waiting = 1 if self.spill_len else 0
        self.spill_len = 0
        self.n_discarded += waiting
        return waiting

    @property
    def waiting(self) -> bool:
        """Whether a frame that was read from a descriptor waits for room."""
        return self.spill_len != 0

    # ---- the backend's side

    def put(self, burst, uint32_t start=0):
        """Deliver the burst's frames from ``start`` on; return how many were consumed.

        Consumed means delivered, or dropped and counted (filtered, malformed, or too long ever to
        fit).  Fewer than offered: the guest has no room now (`full`).
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        cdef uint32_t done
        if start >= b.n:
            return 0
        if self.ring == NULL:
            self.n_discarded += b.n - start
            return b.n - start
        if b.n - start < RELEASE_GIL:
            return put_frames(self, b, start)
        with nogil:
            done = put_frames(self, b, start)
        return done

    def put_frame(self, buffer, header=None):
        """Deliver one frame from a contiguous buffer; whether it was consumed, as in `put`.

        ``header`` is its virtio-net header of 12 bytes; None for a plain frame.
        """
        cdef Py_buffer view
        cdef vnic_burst burst
        cdef vnic_frame frame
        cdef iovec iov
        cdef const uint8_t[::1] hdr
        memset(&frame, 0, sizeof(frame))
        if header is not None:
            hdr = header
            if hdr.shape[0] != HEADER_LEN:
                raise ValueError(f"a virtio-net header has 12 bytes, not {hdr.shape[0]}")
            memcpy(frame.hdr, &hdr[0], HEADER_LEN)
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            if self.ring == NULL:
                self.n_discarded += 1
                return True
            iov.iov_base = view.buf
            iov.iov_len = view.len
            frame.count = 1
            frame.len = <uint32_t>view.len if view.len <= VNIC_FRAME_MAX else VNIC_FRAME_MAX + 1
            burst.n = burst.n_iov = burst.n_max = burst.n_iov_max = 1
            burst.frames = &frame
            burst.iov = &iov
            return put_frames(self, &burst, 0) == 1
        finally:
            PyBuffer_Release(&view)

    def readv(self, int fd, uint32_t limit=VNIC_BURST_MAX, bint header=True):
        """Read frames from a descriptor straight into the guest's buffers, one ``readv`` each.

        ``header``: each begins with a 12-byte virtio-net header, as a tap with IFF_VNET_HDR gives.
        Ends when the descriptor has no more, the guest no more room (`full`), or after ``limit``.
        A frame that turns out longer than the room now is kept here and delivered first next time.

        Returns ``(consumed, error)``: frames, and the errno of a failed read or 0.
        """
        cdef int error = 0
        cdef uint32_t n
        with nogil:
            if self.ring == NULL:
                n = discard_frames(self, fd, limit, &error)
            else:
                n = read_frames(self, fd, limit, header, &error)
        return n, error

    # ---- counters

    @property
    def counters(self) -> dict:
        """What became of the frames, by name (see `COUNTERS`)."""
        return {
            "rx_frames": self.n_frames,
            "rx_bytes": self.n_bytes,
            "rx_segmented": self.n_segmented,
            "rx_summed": self.n_summed,
            "rx_drop_too_long": self.n_too_long,
            "rx_drop_bad_header": self.n_bad_header,
            "rx_drop_runt": self.n_runt,
            "rx_drop_filtered": self.n_filtered,
            "rx_drop_discarded": self.n_discarded,
        }


COUNTERS = {
    "rx_frames": "frames delivered to the guest",
    "rx_bytes": "bytes of those, without virtio-net headers",
    "rx_segmented": "frames cut into segments in software, for a guest without that offload",
    "rx_summed": "checksums completed in software, for a guest without that offload",
    "rx_drop_too_long": "frames that could never fit the guest's buffers",
    "rx_drop_bad_header": "frames whose virtio-net header made no sense",
    "rx_drop_runt": "frames shorter than an Ethernet header",
    "rx_drop_filtered": "frames that the NIC's receive filter refused",
    "rx_drop_discarded": "frames thrown away because the receiver was off or was reset",
}


include "place_kernel.pxi"
include "deliver_kernel.pxi"
