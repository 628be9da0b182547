# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""What a link does for a backend that lacks an offload: a burst becomes one of plain frames.

Each frame that asks for what is lacking is summed, or cut into segments with headers of their own
in scratch; payload stays where it is, and is copied once, by the backend.  A backend that takes a
part of the plain frames may stop in the middle of a frame of the burst: the index of its next
segment is kept, and the same frame goes on there when it is offered again.

Preconditions of the raw parts: segments of the burst were checked by its owner.  The frame that
is offered again may be another one than was promised, since its bytes are a guest's: it is looked
at from scratch, and only the index is believed, after a check.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from vnic.offload_kernel cimport (
    HEADERS_MAX, Offload, offload_checksum, offload_payload, offload_plan, offload_segment,
)
from vnic_abi cimport (
    VNIC_BURST_CAPSULE, VNIC_BURST_MAX, VNIC_IOV_MAX, iovec, vnic_burst, vnic_cursor,
    vnic_cursor_advance, vnic_frame, vnic_hdr, vnic_hdr_check, vnic_hdr_is_plain, vnic_hdr_needs,
)

from vnic.burst_kernel import Burst

COUNTERS = {
    "tx_segmented": "frames from the guest cut into segments, for a backend without that offload",
    "tx_summed": "checksums completed, for a backend without that offload",
    "tx_drop_bad_offload": "frames whose headers don't match the offload that they ask for",
}

cdef enum:
    RELEASE_GIL = 8  # frames to be cut; summing them takes longer than handing the GIL over

cdef enum Fit:
    WHOLE    # all of the frame is in the lane, or was dropped
    PARTLY   # the lane is full


cdef class Cutter:
    """A lane of plain frames, made of a burst's, as far as a backend's offloads make it necessary.

    `fill` and `taken` go in turns, until `taken` says that the burst is done, or the backend is
    full.
    """

    cdef uint64_t lacks
    cdef vnic_burst *out
    cdef readonly object lane
    """The burst for the backend: on loan like the one that it is made of."""
    cdef uint8_t *scratch
    cdef uint32_t[VNIC_BURST_MAX] source    # the burst's frame that a frame of the lane is of
    cdef (uint64_t *)[VNIC_BURST_MAX] fate  # what to count for a frame of the burst, once it is done
    cdef uint32_t start                     # the burst's frame that the lane begins with
    cdef uint32_t done                      # the burst's frames up to here are all in the lane
    cdef uint32_t resume                    # segments of the next frame that were taken before
    cdef uint64_t n_passed, n_segmented, n_summed, n_bad

    def __cinit__(self):
        self.lane = Burst()
        self.out = <vnic_burst *>PyCapsule_GetPointer(self.lane.capsule, VNIC_BURST_CAPSULE)
        self.scratch = <uint8_t *>calloc(VNIC_BURST_MAX, HEADERS_MAX)
        if self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)

    def lack(self, uint64_t needs):
        """Say what the backend lacks, as ``vnic_hdr_needs`` of vnic.h names it."""
        self.lacks = needs

    def reset(self):
        """Forget a frame that was taken in part; return how many there were."""
        cdef bint was = self.resume != 0
        self.resume = 0
        return int(was)

    def wanted(self, burst) -> bool:
        """Whether anything of the burst is to be cut or summed."""
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        cdef uint32_t i
        for i in range(b.n):
            if not vnic_hdr_is_plain(b.frames[i].hdr) \
                    and vnic_hdr_needs(b.frames[i].hdr) & self.lacks:
                return True
        self.resume = 0
        return False

    def fill(self, burst, uint32_t start):
        """Make the lane of the burst's frames from ``start`` on; return how many are in it.

        None, though there are frames left: those at hand are dropped and counted.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        self.out.n = self.out.n_iov = 0
        self.start = self.done = start
        if b.n - start < RELEASE_GIL:
            fill_lane(self, b)
        else:
            with nogil:
                fill_lane(self, b)
        return self.out.n

    def taken(self, uint32_t n):
        """Note that the backend took the lane's first n frames; return how many of the burst's.

        Those are all that are taken whole, from where the lane began.
        """
        cdef uint32_t i, next_ = self.source[n] if n < self.out.n else self.done, segments = 0
        n = min(n, self.out.n)
        while segments < n and self.source[n - segments - 1] == next_:
            segments += 1
        # Of the frame that is next, so many went out now; if the lane began in it, others before.
        self.resume = segments + (self.resume if next_ == self.start else 0)
        for i in range(self.start, next_):
            self.fate[i][0] += 1
        return next_ - self.start

    @property
    def counters(self) -> dict:
        """What was done, by name (see `COUNTERS`)."""
        return {
            "tx_segmented": self.n_segmented,
            "tx_summed": self.n_summed,
            "tx_drop_bad_offload": self.n_bad,
        }


cdef void fill_lane(Cutter c, vnic_burst *b) noexcept nogil:
    cdef vnic_frame *frame
    cdef uint32_t first = c.resume
    cdef Fit fit
    while c.done < b.n and c.out.n < c.out.n_max and c.out.n < VNIC_BURST_MAX:
        frame = &b.frames[c.done]
        if vnic_hdr_is_plain(frame.hdr) or not vnic_hdr_needs(frame.hdr) & c.lacks:
            fit = pass_on(c, b, frame)
        else:
            fit = cut(c, b, frame, first)
        if fit == PARTLY:
            return
        c.done += 1
        first = 0


cdef inline Fit done_with(Cutter c, uint64_t *counter) noexcept nogil:
    c.fate[c.done] = counter
    return WHOLE


cdef vnic_frame *add(Cutter c, uint32_t length) noexcept nogil:
    """Begin a frame of the lane, behind the segments that are there."""
    cdef vnic_frame *out = &c.out.frames[c.out.n]
    memset(out, 0, sizeof(vnic_frame))
    out.first = c.out.n_iov
    out.len = length
    c.source[c.out.n] = c.done
    c.out.n += 1
    return out


cdef inline void add_segment(Cutter c, vnic_frame *out, void *base, size_t n) noexcept nogil:
    c.out.iov[c.out.n_iov].iov_base = base
    c.out.iov[c.out.n_iov].iov_len = n
    c.out.n_iov += 1
    out.count += 1


cdef void add_run(Cutter c, vnic_frame *out, vnic_cursor *at, size_t n) noexcept nogil:
    """Append n bytes from the cursor on, which is then behind them."""
    cdef size_t run
    while n != 0 and at.left != 0:
        run = at.iov.iov_len - at.off
        if run > n:
            run = n
        add_segment(c, out, <char *>at.iov.iov_base + at.off, run)
        n -= run
        vnic_cursor_advance(at, run)


cdef inline bint has_room(Cutter c, uint32_t n) noexcept nogil:
    return c.out.n < VNIC_BURST_MAX and c.out.n_iov + n <= c.out.n_iov_max


cdef inline Fit no_room(Cutter c) noexcept nogil:
    """The lane is full; unless it is empty, and no lane will ever do."""
    return PARTLY if c.out.n != 0 else done_with(c, &c.n_bad)


cdef Fit pass_on(Cutter c, vnic_burst *b, vnic_frame *frame) noexcept nogil:
    """A frame that the backend takes as it is."""
    cdef vnic_frame *out
    if not has_room(c, frame.count):
        return no_room(c)
    out = add(c, frame.len)
    memcpy(out.hdr, frame.hdr, sizeof(frame.hdr))
    memcpy(&c.out.iov[c.out.n_iov], b.iov + frame.first, frame.count * sizeof(iovec))
    out.count = frame.count
    c.out.n_iov += frame.count
    return done_with(c, &c.n_passed)


cdef Fit cut(Cutter c, vnic_burst *b, vnic_frame *frame, uint32_t first) noexcept nogil:
    """A frame that it lacks the offload for, from a segment on."""
    cdef uint8_t hdr[12]
    memcpy(hdr, frame.hdr, sizeof(hdr))
    if vnic_hdr_check(hdr, frame.len) != 0 or frame.count + 2 > VNIC_IOV_MAX:
        return done_with(c, &c.n_bad)
    if (<vnic_hdr *>hdr).gso_type == 0:
        return sum_frame(c, b.iov + frame.first, frame, <vnic_hdr *>hdr)
    return cut_frame(c, b.iov + frame.first, frame, hdr, first)


cdef Fit sum_frame(Cutter c, const iovec *iov, const vnic_frame *frame,
                   const vnic_hdr *hdr) noexcept nogil:
    """Its checksum is a segment of its own, between what is before and behind it."""
    cdef uint8_t *checksum
    cdef vnic_cursor at
    cdef vnic_frame *out
    cdef uint32_t offset = <uint32_t>hdr.csum_start + hdr.csum_offset
    if not has_room(c, frame.count + 2):
        return no_room(c)
    checksum = c.scratch + c.out.n * HEADERS_MAX
    offload_checksum(iov, frame.count, frame.len, hdr.csum_start, <uint16_t *>checksum)
    out = add(c, frame.len)
    at.iov = iov
    at.left = frame.count
    at.off = 0
    add_run(c, out, &at, offset)
    add_segment(c, out, checksum, 2)
    vnic_cursor_advance(&at, 2)
    add_run(c, out, &at, frame.len - offset - 2)
    return done_with(c, &c.n_summed)


cdef Fit cut_frame(Cutter c, const iovec *iov, const vnic_frame *frame, const uint8_t *hdr,
                   uint32_t first) noexcept nogil:
    cdef Offload o
    cdef vnic_cursor at
    cdef vnic_frame *out
    cdef uint32_t i, n
    cdef uint8_t *headers
    if offload_plan(&o, iov, frame.count, frame.len, hdr) != 0:
        return done_with(c, &c.n_bad)
    at = offload_payload(&o, first, iov, frame.count)
    for i in range(first, o.n_segments):
        if not has_room(c, frame.count + 1):
            return no_room(c)
        headers = c.scratch + c.out.n * HEADERS_MAX
        n = offload_segment(&o, i, &at, headers)
        out = add(c, o.headers_len + n)
        add_segment(c, out, headers, o.headers_len)
        add_run(c, out, &at, n)
    return done_with(c, &c.n_segmented)
