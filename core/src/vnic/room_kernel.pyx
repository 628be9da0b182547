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
    HEADERS_MAX, Offload, offload_checksum, offload_plan, offload_segment,
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
    COVER_MIN = 2048    # what a readv covers with guest buffers until longer frames were seen
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


# ---- reserving buffers -------------------------------------------------------------------------

cdef uint32_t top_up(Room r, uint32_t want) noexcept nogil:
    """Have ``want`` buffers reserved behind the used ones, if the ring has them; how many are."""
    cdef vnic_burst *b = &r.buffers
    cdef uint32_t have = b.n - r.next - r.used
    cdef uint32_t shift_iov
    cdef uint32_t i
    if have >= want:
        return have
    if r.next == b.n:
        b.n = b.n_iov = r.next = 0
    elif b.n + want - have > b.n_max or b.n_iov + want > b.n_iov_max // 2:
        # Move what is reserved to the front of both arrays.
        shift_iov = b.frames[r.next].first
        memmove(b.frames, b.frames + r.next, (b.n - r.next) * sizeof(vnic_frame))
        memmove(b.iov, b.iov + shift_iov, (b.n_iov - shift_iov) * sizeof(iovec))
        b.n -= r.next
        b.n_iov -= shift_iov
        for i in range(b.n):
            b.frames[i].first -= shift_iov
        r.next = 0
    if want - have > b.n_max - b.n:
        want = have + b.n_max - b.n
    if want > have:
        r.ring.reserve(r.ring.ring, b, want - have)
    return b.n - r.next - r.used


cdef inline void commit(Room r) noexcept nogil:
    """Give the ring what was filled."""
    if r.used:
        r.ring.commit(r.ring.ring, r.buffers.frames + r.next, r.used)
        r.next += r.used
        r.used = 0


# ---- placing one frame -------------------------------------------------------------------------

cdef inline uint32_t tail_of(const vnic_rx_ring *ring, uint32_t length) noexcept nogil:
    """How many zeroes go behind a frame."""
    if length < ring.frame_min:
        return ring.frame_min - length + ring.trailer_len
    return ring.trailer_len


cdef inline void understate(const vnic_rx_ring *ring, uint8_t *hdr) noexcept nogil:
    """Say no more in a header than the guest may hear: without GUEST_CSUM, not even "valid"."""
    cdef uint8_t flags = hdr[0]
    if not ring.offloads & VNIC_GUEST_CSUM:
        memset(hdr, 0, HEADER_LEN)
        if ring.header_len == 0:
            hdr[0] = flags & <uint8_t>VNIC_HDR_F_DATA_VALID


cdef inline void put_header(void *at, const uint8_t *hdr) noexcept nogil:
    """Write 12 bytes of header, unless they stand there already.

    A driver that keeps header and data on lines of their own, as DPDK's does, uses a buffer over
    and over: a header that says the same then stays in both cores' caches.
    """
    cdef uint64_t was, now
    cdef uint32_t was_end, now_end
    memcpy(&was, at, 8)
    memcpy(&was_end, <uint8_t *>at + 8, 4)
    memcpy(&now, hdr, 8)
    memcpy(&now_end, hdr + 8, 4)
    if was != now or was_end != now_end:
        memcpy(at, hdr, HEADER_LEN)


cdef Outcome fill(Room r, const uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                  uint32_t length) noexcept nogil:
    """Put one frame, as it is, into the next buffer or buffers."""
    cdef vnic_burst *b = &r.buffers
    cdef uint32_t header_len = r.ring.header_len, tail = tail_of(r.ring, length), left = length
    cdef uint64_t need = <uint64_t>header_len + length + tail, fits = 0
    cdef uint32_t have, k = 0, at = r.next + r.used, i, wrote, run
    cdef vnic_frame *first
    cdef vnic_cursor src, dst
    cdef uint8_t out[12]

    have = top_up(r, 1)
    if have == 0:
        return out_of_buffers(r, 0)
    at = r.next + r.used
    first = &b.frames[at]
    memcpy(out, hdr, HEADER_LEN)
    out[10] = 1
    out[11] = 0

    if n_iov == 1 and first.count == 1 and need <= first.len:
        # The usual case: one segment to one segment.
        dst.iov = b.iov + first.first
        if header_len == HEADER_LEN:
            put_header(dst.iov.iov_base, out)
        else:
            memcpy(dst.iov.iov_base, out, header_len)
        vnic_copy(<char *>dst.iov.iov_base + header_len, iov.iov_base, length)
        if tail != 0:
            memset(<char *>dst.iov.iov_base + header_len + length, 0, tail)
        first.len = <uint32_t>need
        first.flags = VNIC_LAST | r.note
        memcpy(first.hdr, out, HEADER_LEN)
        r.used += 1
        return PLACED

    while True:
        fits += b.frames[at + k].len
        k += 1
        if fits >= need:
            break
        if not r.ring.mergeable:
            r.n_too_long += 1
            return DROPPED
        if k == have:
            have = top_up(r, have + 1 + <uint32_t>((need - fits) * k // (fits + 1)))
            at = r.next + r.used  # the arrays may have moved
            if k == have:
                return out_of_buffers(r, have)

    src.iov = iov
    src.left = n_iov
    src.off = 0
    out[10] = <uint8_t>k
    out[11] = <uint8_t>(k >> 8)
    for i in range(k):
        first = &b.frames[at + i]
        dst.iov = b.iov + first.first
        dst.left = first.count
        dst.off = 0
        wrote = 0
        if i == 0:
            wrote = <uint32_t>vnic_scatter(&dst, out, header_len)
            memcpy(first.hdr, out, HEADER_LEN)
        run = (<uint32_t>need if need < first.len else first.len) - wrote
        if run <= left:
            left -= run
            wrote += <uint32_t>vnic_copy_segments(&dst, &src, run)
        else:
            wrote += <uint32_t>vnic_copy_segments(&dst, &src, left)
            wrote += <uint32_t>vnic_scatter(&dst, ZEROES, run - left)
            left = 0
        need -= wrote
        first.len = wrote
        first.flags = (VNIC_LAST if i == k - 1 else 0) | r.note
    r.used += k
    return PLACED


cdef Outcome out_of_buffers(Room r, uint32_t have) noexcept nogil:
    """The frame at hand needs more than the ``have`` buffers that are left: now, or for ever?

    For ever, if it has the whole ring.  Not if some of that holds the frames before it: those leave
    (`commit`), and it is tried again.
    """
    if r.mark == 0 and (have + r.used >= r.ring.n_max or have + r.used >= BUFFERS):
        r.n_too_long += 1
        return DROPPED
    return FULL


cdef Outcome offload(Room r, const uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                     uint32_t length) noexcept nogil:
    """Put a frame whose offload the guest lacks: summed, or cut into segments, all or none."""
    cdef Offload o
    cdef vnic_hdr fields
    cdef uint8_t headers[HEADERS_MAX]
    cdef uint8_t plain[12]
    cdef iovec cut[VNIC_IOV_MAX]
    cdef vnic_cursor at
    cdef uint32_t i, n, offset = 0, left, k
    cdef uint16_t checksum
    cdef size_t run
    cdef Outcome outcome
    memset(plain, 0, HEADER_LEN)
    if r.ring.header_len == 0:
        plain[0] = VNIC_HDR_F_DATA_VALID  # for we have made it so
    memcpy(&fields, hdr, HEADER_LEN)
    if fields.gso_type == 0:
        # The two bytes are a segment of their own, between what is before and behind them.
        offload_checksum(iov, n_iov, length, fields.csum_start, &checksum)
        offset = <uint32_t>fields.csum_start + fields.csum_offset
        k = slice_segments(cut, VNIC_IOV_MAX, iov, n_iov, 0, offset)
        if k + 1 > VNIC_IOV_MAX or n_iov + 3 > VNIC_IOV_MAX:
            r.n_too_long += 1
            return DROPPED
        cut[k].iov_base = &checksum
        cut[k].iov_len = 2
        k += 1
        k += slice_segments(cut + k, VNIC_IOV_MAX - k, iov, n_iov, offset + 2, length - offset - 2)
        outcome = fill(r, plain, cut, k, length)
        if outcome == PLACED:
            r.n_summed += 1
        return outcome
    if offload_plan(&o, iov, n_iov, length, hdr) != 0 or n_iov + 2 > VNIC_IOV_MAX:
        r.n_bad_header += 1
        return DROPPED
    if o.n_segments > r.ring.n_max or o.n_segments > BUFFERS:
        r.n_too_long += 1
        return DROPPED
    for i in range(o.n_segments):
        n = offload_segment(&o, i, iov, n_iov, headers, &offset)
        cut[0].iov_base = headers
        cut[0].iov_len = o.headers_len
        k = 1 + slice_segments(cut + 1, VNIC_IOV_MAX - 1, iov, n_iov, offset, n)
        outcome = fill(r, plain, cut, k, o.headers_len + n)
        if outcome != PLACED:
            # All or none.  If it is the whole ring that is too small, fill has counted the drop.
            unfill(r)
            return outcome
    r.n_segmented += 1
    return PLACED


cdef void unfill(Room r) noexcept nogil:
    """Take back what was filled with the frame at hand: those buffers are as empty as before."""
    cdef uint32_t i, j
    cdef vnic_frame *buffer
    cdef size_t fits
    for i in range(r.next + r.mark, r.next + r.used):
        buffer = &r.buffers.frames[i]
        fits = 0
        for j in range(buffer.count):
            fits += r.buffers.iov[buffer.first + j].iov_len
        buffer.len = <uint32_t>fits if fits < LEN_MAX else LEN_MAX
    r.used = r.mark


cdef uint32_t slice_segments(iovec *out, uint32_t n_max, const iovec *iov, uint32_t n_iov,
                             uint32_t offset, uint32_t length) noexcept nogil:
    """Describe length bytes from offset on in ``out``; returns how many segments that took."""
    cdef vnic_cursor at
    cdef uint32_t k = 0
    cdef size_t run
    at.iov = iov
    at.left = n_iov
    at.off = 0
    vnic_cursor_advance(&at, offset)
    while length != 0 and at.left != 0 and k < n_max:
        run = at.iov.iov_len - at.off
        if run > length:
            run = length
        out[k].iov_base = <char *>at.iov.iov_base + at.off
        out[k].iov_len = run
        k += 1
        length -= <uint32_t>run
        vnic_cursor_advance(&at, run)
    return k


cdef uint32_t longest_piece(Room r, const uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                            uint32_t length) noexcept nogil:
    """The length of what is delivered of a frame at once."""
    cdef Offload o
    if vnic_hdr_needs(hdr) & ~r.ring.offloads & ~<uint64_t>VNIC_GUEST_CSUM == 0 \
            or offload_plan(&o, iov, n_iov, length, hdr) != 0:
        return length
    return o.headers_len + (o.mss if o.mss < o.payload_len else o.payload_len)


cdef uint32_t judge(Room r, const uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                    uint32_t length) noexcept nogil:
    """Ask the ring's filter about a frame; 0, VNIC_ACCEPT or VNIC_STRIP_TAG as well."""
    cdef uint8_t start[VNIC_LOOK]
    cdef vnic_cursor at
    cdef uint32_t n = length if length < VNIC_LOOK else VNIC_LOOK, verdict
    at.iov = iov
    at.left = n_iov
    at.off = 0
    n = <uint32_t>vnic_gather(&at, start, n)
    if not vnic_hdr_is_plain(hdr):
        length = longest_piece(r, hdr, iov, n_iov, length)
    verdict = r.ring.accept(r.ring.ring, start, n, length)
    r.note = verdict & VNIC_NOTE
    if verdict == 0:
        r.n_filtered += 1
    return verdict


cdef Outcome place_stripped(Room r, uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                            uint32_t length) noexcept nogil:
    """Put a frame without its VLAN tag."""
    cdef iovec cut[VNIC_IOV_MAX]
    cdef vnic_hdr fields
    cdef uint32_t k
    if length < VNIC_ETH_HLEN + TAG_LEN:
        r.n_runt += 1
        return DROPPED
    if n_iov + 2 > VNIC_IOV_MAX:
        r.n_too_long += 1
        return DROPPED
    k = slice_segments(cut, VNIC_IOV_MAX, iov, n_iov, 0, ADDRESSES_LEN)
    k += slice_segments(cut + k, VNIC_IOV_MAX - k, iov, n_iov, ADDRESSES_LEN + TAG_LEN,
                        length - ADDRESSES_LEN - TAG_LEN)
    memcpy(&fields, hdr, HEADER_LEN)
    if fields.flags & VNIC_HDR_F_NEEDS_CSUM:
        if fields.csum_start < VNIC_ETH_HLEN + TAG_LEN:
            r.n_bad_header += 1
            return DROPPED
        fields.csum_start -= TAG_LEN
        fields.hdr_len -= TAG_LEN if fields.hdr_len > TAG_LEN else 0
        memcpy(hdr, &fields, HEADER_LEN)
    return place_whole(r, hdr, cut, k, length - TAG_LEN)


cdef Outcome place(Room r, uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                   uint32_t length) noexcept nogil:
    """Put one frame from outside, whatever it is."""
    cdef uint32_t verdict
    if length < VNIC_ETH_HLEN:
        r.n_runt += 1
        return DROPPED
    if length > VNIC_FRAME_MAX:
        r.n_too_long += 1
        return DROPPED
    if not vnic_hdr_is_plain(hdr) and vnic_hdr_check(hdr, length) != 0:
        r.n_bad_header += 1
        return DROPPED
    if r.ring.accept != NULL:
        verdict = judge(r, hdr, iov, n_iov, length)
        if verdict == 0:
            return DROPPED
        if verdict & VNIC_STRIP_TAG:
            return place_stripped(r, hdr, iov, n_iov, length)
    return place_whole(r, hdr, iov, n_iov, length)


cdef inline Outcome place_whole(Room r, uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                                uint32_t length) noexcept nogil:
    """Put one frame that the guest wants, with a header that was checked."""
    cdef Outcome outcome
    r.mark = r.used
    if vnic_hdr_is_plain(hdr):
        outcome = fill(r, hdr, iov, n_iov, length)
    elif vnic_hdr_needs(hdr) & ~r.ring.offloads:
        outcome = offload(r, hdr, iov, n_iov, length)
    else:
        understate(r.ring, hdr)
        outcome = fill(r, hdr, iov, n_iov, length)
    if outcome == PLACED:
        r.delivered += 1
        r.n_frames += 1
        r.n_bytes += length
    return outcome


# ---- bursts and descriptors --------------------------------------------------------------------

cdef bint deliver_spill(Room r) noexcept nogil:
    """Deliver the frame that waits in the spill, if there is one; False where it still waits."""
    cdef iovec iov
    if r.spill_len == 0:
        return True
    commit(r)  # it may need the whole ring
    iov.iov_base = r.spill
    iov.iov_len = r.spill_len
    if place(r, r.spill_hdr, &iov, 1, r.spill_len) == FULL:
        r.full = True
        return False
    r.spill_len = 0
    return True


cdef uint32_t put_frames(Room r, vnic_burst *b, uint32_t start) noexcept nogil:
    cdef uint32_t i = start, batch, n
    cdef vnic_frame *frame
    cdef uint8_t hdr[12]
    if not deliver_spill(r):
        return 0
    while i < b.n:
        # Buffers are reserved a batch ahead, so that their lines are on their way while the frames
        # before them are copied.
        n = batch = b.n - i if b.n - i < BATCH else BATCH
        top_up(r, (b.n - i if b.n - i < 2 * BATCH else 2 * BATCH) * r.per_frame)
        while batch != 0:
            frame = &b.frames[i]
            memcpy(hdr, frame.hdr, HEADER_LEN)
            if place(r, hdr, b.iov + frame.first, frame.count, frame.len) == FULL:
                if r.used != 0:
                    commit(r)  # what the frames before it took may be all that was in its way
                    continue
                r.full = True
                return i - start
            i += 1
            batch -= 1
        r.per_frame = (r.used + n - 1) // n if r.used > n else 1
        commit(r)
    return i - start


cdef uint32_t discard_frames(Room r, int fd, uint32_t limit, int *error) noexcept nogil:
    cdef iovec iov
    cdef uint32_t i = 0
    iov.iov_base = r.spill
    iov.iov_len = VNIC_FRAME_MAX
    while i < limit:
        if c_readv(fd, &iov, 1) < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                error[0] = errno
            break
        i += 1
    r.n_discarded += i
    return i


cdef uint32_t read_frames(Room r, int fd, uint32_t limit, bint header, int *error) noexcept nogil:
    cdef uint32_t done = 0
    cdef int e
    if not deliver_spill(r):
        return 0
    while done < limit:
        if top_up(r, 1) == 0:
            if r.used != 0:
                commit(r)
                continue
            r.full = True
            break
        e = read_frame(r, fd, header)
        if e != 0:
            if e == EINTR:
                continue
            if e != EAGAIN:
                error[0] = e
            break
        done += 1
        if r.used >= BATCH:
            commit(r)
        if not deliver_spill(r):
            break
    commit(r)
    return done


cdef void spill(Room r, vnic_cursor *at, const uint8_t *hdr, uint32_t length,
                uint64_t fits) noexcept nogil:
    """A frame can't stay where it was read: make it whole in the spill, to be placed like any other.

    Its first ``fits`` bytes are at the cursor, the rest is at the spill's start.
    """
    if length > fits:
        memmove(r.spill + fits, r.spill, length - fits)
    vnic_gather(at, r.spill, fits if fits < length else length)
    memcpy(r.spill_hdr, hdr, HEADER_LEN)
    r.spill_len = length


cdef int read_frame(Room r, int fd, bint header) noexcept nogil:
    """One readv.  0, or an errno.  A frame that can't stay where it was read is in the spill."""
    cdef iovec iov[VNIC_IOV_MAX]
    cdef vnic_burst *b = &r.buffers
    cdef uint8_t hdr[12]
    cdef uint32_t n_iov = 0, k = 0, at, have, length, header_len = r.ring.header_len
    cdef uint32_t guest_first
    cdef uint64_t fits = 0
    cdef ssize_t got
    cdef vnic_frame *buffer
    cdef vnic_cursor c
    cdef uint32_t i, wrote, left, tail, verdict = 0

    memset(hdr, 0, HEADER_LEN)
    if header:
        iov[0].iov_base = hdr
        iov[0].iov_len = HEADER_LEN
        n_iov = 1
    guest_first = n_iov

    # Guest buffers, as many as the frame will probably need.
    have = top_up(r, 1 + (r.cover // 1024 if r.ring.mergeable else 0))
    at = r.next + r.used
    while k < have and fits < header_len + r.cover:
        buffer = &b.frames[at + k]
        if n_iov + buffer.count + 1 > VNIC_IOV_MAX:
            break
        memcpy(&iov[n_iov], b.iov + buffer.first, buffer.count * sizeof(iovec))
        n_iov += buffer.count
        fits += buffer.len
        k += 1
        if not r.ring.mergeable:
            break
    # Past the header, which is written when num_buffers is known.
    c.iov = &iov[guest_first]
    c.left = n_iov - guest_first
    c.off = 0
    if fits < header_len:
        fits = 0
        n_iov = guest_first
    else:
        vnic_cursor_advance(&c, header_len)
        i = <uint32_t>(c.iov - &iov[guest_first])
        if i != 0:
            memmove(&iov[guest_first], &iov[guest_first + i], c.left * sizeof(iovec))
            n_iov -= i
        if c.left != 0:
            iov[guest_first].iov_base = <char *>iov[guest_first].iov_base + c.off
            iov[guest_first].iov_len -= c.off
        fits -= header_len
    # And a segment of our own behind them: without it a longer frame would lose its end in silence.
    iov[n_iov].iov_base = r.spill
    iov[n_iov].iov_len = VNIC_FRAME_MAX + 1
    got = c_readv(fd, iov, n_iov + 1)
    if got < 0 and errno == EFAULT:
        vnic_touch_segments(iov, n_iov + 1)
        got = c_readv(fd, iov, n_iov + 1)
    if got < 0:
        return errno
    if got == 0 or (header and got < HEADER_LEN):
        r.n_runt += 1
        return 0
    length = <uint32_t>got - (HEADER_LEN if header else 0)
    r.cover = length if length > COVER_MIN else (r.cover // 2 if r.cover > 2 * COVER_MIN
                                                 else COVER_MIN)

    if length > VNIC_FRAME_MAX:
        r.n_too_long += 1
        return 0
    tail = tail_of(r.ring, length)
    c.iov = &iov[guest_first]
    c.left = n_iov - guest_first
    c.off = 0
    if length + tail > fits \
            or not (vnic_hdr_is_plain(hdr) or vnic_hdr_needs(hdr) & ~r.ring.offloads == 0):
        spill(r, &c, hdr, length, fits)
        return 0
    if length < VNIC_ETH_HLEN:
        r.n_runt += 1
        return 0
    if not vnic_hdr_is_plain(hdr) and vnic_hdr_check(hdr, length) != 0:
        r.n_bad_header += 1
        return 0
    if r.ring.accept != NULL:
        verdict = judge(r, hdr, c.iov, c.left, length)
        if verdict == 0:
            return 0
        if verdict & VNIC_STRIP_TAG:
            spill(r, &c, hdr, length, fits)
            return 0
    understate(r.ring, hdr)
    if tail != 0:
        vnic_cursor_advance(&c, length)
        vnic_scatter(&c, ZEROES, tail)

    # It stays.  Say how long, buffer by buffer, and write the header.
    left = header_len + length + tail
    k = 0
    while True:
        buffer = &b.frames[at + k]
        wrote = buffer.len if buffer.len < left else left
        buffer.len = wrote
        buffer.flags = r.note
        left -= wrote
        k += 1
        if left == 0:
            break
    buffer.flags = VNIC_LAST | r.note
    hdr[10] = <uint8_t>k
    hdr[11] = <uint8_t>(k >> 8)
    buffer = &b.frames[at]
    memcpy(buffer.hdr, hdr, HEADER_LEN)
    c.iov = b.iov + buffer.first
    c.left = buffer.count
    c.off = 0
    vnic_scatter(&c, hdr, header_len)
    r.used += k
    r.delivered += 1
    r.n_frames += 1
    r.n_bytes += length
    return 0
