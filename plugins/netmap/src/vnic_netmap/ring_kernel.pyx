# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""A port's rings: frames copied into transmit slots, receive slots shown as a burst.

The rings lie in memory that the module shares with us, and with every process whose ports use the
same allocator; the other end of a pipe is one.  So nothing in it is trusted: where the rings and
buffers are is settled once, in locals; our own place in a ring (head) is remembered here and only
told to the module; tail, and each slot's buffer, length and flags, are read once and checked before
use.  Whatever they say, nothing outside of the mapping is read or written, and work is bounded by
the ring's size.

Preconditions of the raw parts: `Rings` holds the mapping, and is not used after its `close`.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from vnic_abi cimport (
    VNIC_BURST_CAPSULE, VNIC_BURST_MAX, VNIC_ETH_HLEN, VNIC_FRAME_MAX, VNIC_HDR_F_NEEDS_CSUM,
    VNIC_IOV_MAX, iovec, vnic_burst, vnic_copy, vnic_cursor, vnic_cursor_advance, vnic_frame,
    vnic_gather, vnic_prefetch, vnic_prefetch_write,
)

from vnic.burst import Burst

cdef extern from *:
    """
    #include <stddef.h>

    /* net/netmap.h; what the fields mean is told in abi.py. */
    struct netmap_slot { uint32_t buf_idx; uint16_t len, flags; uint64_t ptr; };
    struct netmap_ring {
        int64_t buf_ofs;
        uint32_t num_slots, nr_buf_size;
        uint16_t ringid, dir;
        uint32_t head, cur, tail, flags;
        int64_t ts[2];
        uint64_t offset_mask, buf_align;
        uint8_t reserved[56], sem[128];
        struct netmap_slot slot[];
    };
    struct netmap_if {
        char ni_name[16];
        uint32_t ni_version, ni_flags, ni_tx_rings, ni_rx_rings, ni_bufs_head;
        uint32_t ni_host_tx_rings, ni_host_rx_rings, ni_spare1[3];
        int64_t ring_ofs[];
    };
    _Static_assert(sizeof(struct netmap_slot) == 16, "a slot is 16 bytes");
    _Static_assert(offsetof(struct netmap_ring, ts) == 40, "ts is at 40");
    _Static_assert(offsetof(struct netmap_ring, slot) == 256, "slots begin at 256");
    _Static_assert(offsetof(struct netmap_if, ring_ofs) == 56, "offsets of rings begin at 56");

    static inline uint32_t load_tail(const struct netmap_ring *ring)
    {
        return __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
    }

    /* cur first: the module may look at any time, and head beyond cur is an error to it. */
    static inline void store_head(struct netmap_ring *ring, uint32_t head, uint32_t cur)
    {
        __atomic_store_n(&ring->cur, cur, __ATOMIC_RELEASE);
        __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
    }

    static inline struct netmap_slot load_slot(const struct netmap_slot *slot)
    {
        struct netmap_slot copy;
        uint64_t word = __atomic_load_n((const uint64_t *)slot, __ATOMIC_RELAXED);

        memcpy(&copy, &word, sizeof(word));
        return copy;
    }
    """
    struct netmap_slot:
        uint32_t buf_idx
        uint16_t len
        uint16_t flags

    struct netmap_ring:
        int64_t buf_ofs
        uint32_t num_slots
        uint32_t nr_buf_size
        uint32_t head
        uint32_t tail
        netmap_slot *slot

    struct netmap_if:
        uint32_t ni_tx_rings
        uint32_t ni_rx_rings
        uint32_t ni_host_tx_rings
        uint32_t ni_host_rx_rings
        int64_t *ring_ofs

    uint32_t load_tail(const netmap_ring *ring) nogil
    void store_head(netmap_ring *ring, uint32_t head, uint32_t cur) nogil
    netmap_slot load_slot(const netmap_slot *slot) nogil

cdef enum:
    NS_MOREFRAG = 0x20
    RING_LEN = 256       # sizeof(struct netmap_ring)
    IF_LEN = 56          # sizeof(struct netmap_if)
    HEADER_LEN = 12      # of a frame's record; a port's own may be shorter
    BUF_SIZE_MIN = 64    # the module's own least
    RELEASE_GIL = 32     # frames; below, releasing the GIL costs more than it gives
    AHEAD = 4            # slots whose lines are fetched ahead of the copying

cdef enum Drop:
    TOO_LONG
    RUNT
    TX_SLOT
    RX_SLOT
    RX_HEADER
    ENDLESS
    N_DROPS
    KEPT = N_DROPS

COUNTERS = {
    "netmap_drop_too_long": "frames from the guest that this port can't carry in one slot, or in a ring",
    "netmap_drop_runt": "frames from the guest shorter than an Ethernet header",
    "netmap_drop_tx_slot": "frames from the guest for slots whose buffer is outside of the port's memory",
    "netmap_drop_rx_slot": "frames for the guest in slots whose buffer or length can't be",
    "netmap_drop_rx_header": "frames for the guest that end within the port's virtio-net header",
    "netmap_drop_endless": "frames for the guest of more slots or bytes than any frame can have",
}

_NAMES = tuple(COUNTERS)  # in the order of Drop

cdef struct Ring:
    netmap_ring *shared
    char *buffers        # buffer 0
    uint32_t n_buffers   # that lie in the mapping, from there on
    uint32_t buf_size
    uint32_t num_slots
    uint32_t head        # of the slots that are ours, the first
    bint skipping        # the frame there was dropped, and its end is still to come


cdef inline uint32_t after(const Ring *ring, uint32_t at) noexcept nogil:
    return at + 1 if at + 1 < ring.num_slots else 0


cdef inline uint32_t tail_of(const Ring *ring) noexcept nogil:
    """The first slot that isn't ours; where there can't be such a slot, none is."""
    cdef uint32_t tail = load_tail(ring.shared)
    return tail if tail < ring.num_slots else ring.head


cdef inline uint32_t n_owned(const Ring *ring, uint32_t at, uint32_t tail) noexcept nogil:
    return tail - at if tail >= at else tail + ring.num_slots - at


cdef class Rings:
    """The rings of one port that are bound, in its mapping.

    ``burst`` has the frames that `gather` found; they lie in the mapping, on loan until `consume`.
    """

    cdef Py_buffer view
    cdef bint is_open
    cdef Ring *rings         # first those to transmit, then those to receive
    cdef readonly uint32_t n_tx
    cdef readonly uint32_t n_rx
    cdef readonly uint32_t buf_size
    """Bytes of the smallest buffer."""
    cdef readonly object burst
    cdef vnic_burst *b
    cdef Ring *from_ring     # whose frames are in the burst
    cdef uint32_t header_len
    cdef uint32_t first_len  # bytes of a frame's first slot, its header included
    cdef uint32_t slots_max  # of a frame to transmit
    cdef uint64_t drops[N_DROPS]
    cdef readonly bint has_dropped
    """Whether there is something in `dropped`."""

    def __cinit__(self):
        self.is_open = False
        self.rings = NULL

    def __init__(self, mapping, uint64_t if_offset, tx, rx):
        """``tx``, ``rx``: numbers of the rings, host rings after the NIC's own; at least one.

        Raises: ValueError, where the mapping doesn't hold what it should.
        """
        cdef uint32_t i
        PyObject_GetBuffer(mapping, &self.view, PyBUF_WRITABLE)
        self.is_open = True
        self.n_tx, self.n_rx = len(tx), len(rx)
        self.rings = <Ring *>calloc(self.n_tx + self.n_rx, sizeof(Ring))
        self.burst = Burst()
        self.b = <vnic_burst *>PyCapsule_GetPointer(self.burst.capsule, VNIC_BURST_CAPSULE)
        try:
            if self.rings == NULL:
                raise MemoryError
            for i, number in enumerate([*tx, *rx]):
                index = place_of(&self.view, if_offset, number, i >= self.n_tx)
                find_ring(&self.view, if_offset, index, &self.rings[i])
        except BaseException:
            self.close()
            raise
        self.buf_size = min([self.rings[i].buf_size for i in range(self.n_tx + self.n_rx)])
        self.set_framing(0, 0, False)

    def __dealloc__(self):
        self.close()

    def close(self):
        """Let go of the mapping.  Twice is allowed; whoever still holds the burst finds it empty."""
        if self.is_open:
            self.is_open = False
            self.b.n = self.b.n_iov = 0
            free(self.rings)
            self.rings = NULL
            self.n_tx = self.n_rx = 0
            PyBuffer_Release(&self.view)

    def set_framing(self, uint32_t header_len, uint32_t spare, bint fragments):
        """Say how frames lie in slots.

        ``header_len``: bytes of virtio-net header in front of each.  ``spare``: bytes to be left
        free at the end of a frame's first slot.  ``fragments``: whether a frame may go on in
        further slots.
        """
        cdef uint32_t i, least = 0xFFFFFFFF
        for i in range(self.n_tx):
            least = min(least, self.rings[i].num_slots - 1)
        self.header_len = header_len
        self.first_len = (self.buf_size - spare) & ~1u
        self.slots_max = least if fragments else 1

    # ---- from the guest

    def send(self, burst, uint32_t start=0):
        """Copy frames from ``start`` on into slots, as far as there are free ones.

        Returns how many were taken: copied, or dropped and counted.  They leave with the next
        TXSYNC.  Without transmit rings: none.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        cdef uint32_t done
        if start >= b.n:
            return 0
        if b.n - start < RELEASE_GIL:
            return send_frames(self, b, start)
        with nogil:
            done = send_frames(self, b, start)
        return done

    def wait_to_send(self):
        """Have poll wait until there are more free slots than now."""
        cdef uint32_t i
        for i in range(self.n_tx):
            store_head(self.rings[i].shared, self.rings[i].head, tail_of(&self.rings[i]))

    # ---- to the guest

    def gather(self, uint32_t ring, uint32_t limit=VNIC_BURST_MAX):
        """Make ``burst`` the oldest frames of a receive ring; return how many.

        Ends before a frame that isn't all there, or can't be passed on; the latter is dropped and
        counted when it is the oldest.
        """
        cdef Ring *from_ring
        if ring >= self.n_rx:
            return 0
        from_ring = &self.rings[self.n_tx + ring]
        if n_owned(from_ring, from_ring.head, tail_of(from_ring)) < RELEASE_GIL:
            gather_frames(self, from_ring, limit)
        else:
            with nogil:
                gather_frames(self, from_ring, limit)
        return self.b.n

    def consume(self, uint32_t n):
        """Give the slots of the burst's first ``n`` frames back, from the next RXSYNC on."""
        if n == 0 or n > self.b.n:
            return
        move(self.from_ring, self.b.frames[n - 1].token)
        self.b.n = self.b.n_iov = 0

    def discard(self, uint32_t limit):
        """Throw away whole frames of all receive rings, of about ``limit`` slots in all.

        No byte of them is looked at, and no frame's slots but for where it ends.  Returns how many
        frames.
        """
        cdef uint32_t i, n = 0
        for i in range(self.n_rx):
            n += discard_frames(self, &self.rings[self.n_tx + i], &limit)
        return n

    def dropped(self):
        """Return the frames dropped here since the last call, by reason (see `COUNTERS`)."""
        cdef uint32_t i
        n_by_reason = {_NAMES[i]: self.drops[i] for i in range(N_DROPS) if self.drops[i]}
        memset(self.drops, 0, sizeof(self.drops))
        self.has_dropped = False
        return n_by_reason


cdef inline void count(Rings r, Drop reason) noexcept nogil:
    r.drops[<int>reason] += 1
    r.has_dropped = True


# ---- finding the rings ------------------------------------------------------------------------


cdef int64_t place_of(Py_buffer *view, uint64_t if_offset, uint64_t number,
                      bint receives) except -1:
    """The index of a ring's offset in ring_ofs[], which is in the order tx, host tx, rx, host rx."""
    cdef netmap_if *nifp
    cdef uint64_t size = view.len, n_tx, n_rx, n
    if size < IF_LEN or if_offset > size - IF_LEN or if_offset % 8:
        raise ValueError(f"its netmap_if at {if_offset:#x} is not in its {size:#x} bytes of memory")
    nifp = <netmap_if *>(<char *>view.buf + if_offset)
    # Modules older than API 14 have one host ring, and a zero in the field.
    n_tx = <uint64_t>nifp.ni_tx_rings + (nifp.ni_host_tx_rings or 1)
    n_rx = <uint64_t>nifp.ni_rx_rings + (nifp.ni_host_rx_rings or 1)
    if n_tx + n_rx > (size - IF_LEN - if_offset) // sizeof(int64_t):
        raise ValueError(f"its {n_tx} and {n_rx} rings are more than its memory has room for")
    n = n_rx if receives else n_tx
    if number >= n:
        what = "receive" if receives else "transmit"
        raise ValueError(f"it has {n} {what} rings, its host's included, and no number {number}")
    return number + (n_tx if receives else 0)


cdef find_ring(Py_buffer *view, uint64_t if_offset, uint64_t index, Ring *ring):
    """Settle where a ring and its buffers are.  The mapping holds its netmap_if and ring_ofs[]."""
    cdef netmap_if *nifp = <netmap_if *>(<char *>view.buf + if_offset)
    cdef netmap_ring *shared
    cdef int64_t size = view.len, at = nifp.ring_ofs[index], first
    cdef int64_t num_slots, buf_size, n_buffers
    if at == 0:
        raise ValueError(f"its ring {index} is not there")
    if at < -<int64_t>if_offset or at > size - <int64_t>if_offset - RING_LEN or at % 8:
        raise ValueError(f"its ring {index} is not in its memory")
    at += if_offset
    shared = <netmap_ring *>(<char *>view.buf + at)
    num_slots, buf_size, first = shared.num_slots, shared.nr_buf_size, shared.buf_ofs
    if num_slots < 2 or num_slots > (size - at - RING_LEN) // <int64_t>sizeof(netmap_slot):
        raise ValueError(f"the {num_slots} slots of its ring {index} are not in its memory")
    if first < -at or first > size - at:
        raise ValueError(f"the buffers of its ring {index} are not in its memory")
    if buf_size < BUF_SIZE_MIN or buf_size > 0xFFFF:
        raise ValueError(f"the buffers of its ring {index} have {buf_size} bytes, which can't be")
    n_buffers = (size - at - first) // buf_size
    ring.shared = shared
    ring.buffers = <char *>shared + first
    ring.n_buffers = <uint32_t>min(n_buffers, 0xFFFFFFFF)
    ring.buf_size = <uint32_t>buf_size
    ring.num_slots = <uint32_t>num_slots
    ring.head = shared.head
    if ring.head >= num_slots:
        raise ValueError(f"the head of its ring {index} is {ring.head}, of {num_slots} slots")


# ---- from the guest ----------------------------------------------------------------------------


cdef uint32_t send_frames(Rings r, vnic_burst *b, uint32_t start) noexcept nogil:
    """Fill the rings, one after the other: order is kept within a ring, so the next one is used
    only when there is no more room in those before it.
    """
    cdef uint32_t i = start, t, at, left, need, first_len
    cdef Ring *ring
    cdef vnic_frame *frame
    for t in range(r.n_tx):
        ring = &r.rings[t]
        at = ring.head
        left = n_owned(ring, at, tail_of(ring))
        while i < b.n:
            frame = &b.frames[i]
            first_len = first_len_of(r, frame)
            need = slots_of(r, frame, first_len)
            if need > left:
                break
            if need != 0:
                if left > AHEAD:
                    fetch_buffer(ring, (at + AHEAD) % ring.num_slots)
                if put_frame(r, ring, at, b, frame, first_len):
                    at = (at + need) % ring.num_slots
                    left -= need
                else:
                    count(r, TX_SLOT)
            i += 1
        if at != ring.head:
            move(ring, at)
        if i == b.n:
            break
    return i - start


cdef inline void fetch_buffer(const Ring *ring, uint32_t at) noexcept nogil:
    cdef uint32_t buf_idx = load_slot(&ring.shared.slot[at]).buf_idx
    if buf_idx < ring.n_buffers:
        vnic_prefetch_write(ring.buffers + <uint64_t>buf_idx * ring.buf_size)


cdef inline uint32_t first_len_of(Rings r, const vnic_frame *frame) noexcept nogil:
    """Bytes of the frame's first slot, its header included, if it needs more than one."""
    # Fault of the module: where the receiver lacks a header, the module completes the checksum
    # fragment by fragment, and gets it wrong if a fragment but the last has an odd length from
    # csum_start on.  All slots are of an even length; so the first is one less where csum_start is
    # odd.
    if r.header_len != 0 and frame.hdr[0] & VNIC_HDR_F_NEEDS_CSUM and frame.hdr[6] & 1:
        return r.first_len - 1
    return r.first_len


cdef inline uint32_t slots_of(Rings r, const vnic_frame *frame, uint32_t first_len) noexcept nogil:
    """How many slots a frame needs; 0 for one that is dropped, and counted."""
    cdef uint32_t need = 1, even = r.buf_size & ~1u
    if frame.len < VNIC_ETH_HLEN:
        count(r, RUNT)
        return 0
    if frame.len > VNIC_FRAME_MAX:
        count(r, TOO_LONG)
        return 0
    if r.header_len + frame.len > r.first_len:
        need = 1 + (r.header_len + frame.len - first_len + even - 1) // even
        if need > r.slots_max:
            count(r, TOO_LONG)
            return 0
    return need


cdef bint put_frame(Rings r, Ring *ring, uint32_t at, vnic_burst *b, vnic_frame *frame,
                    uint32_t first_len) noexcept nogil:
    """Copy a frame into as many slots as `slots_of` said; False where one of them has no buffer."""
    cdef iovec *iov = b.iov + frame.first
    cdef uint32_t left = frame.len, header_len = r.header_len, run = r.first_len - header_len
    cdef uint32_t buf_idx
    cdef netmap_slot *slot
    cdef char *buffer
    cdef vnic_cursor source
    if left > run:
        run = first_len - header_len
    source.iov = iov
    source.left = frame.count
    source.off = 0
    while True:
        slot = &ring.shared.slot[at]
        buf_idx = load_slot(slot).buf_idx
        if buf_idx >= ring.n_buffers:
            return False
        buffer = ring.buffers + <uint64_t>buf_idx * ring.buf_size
        if header_len != 0:
            # The number of buffers is the receiver's to say.
            memcpy(buffer, frame.hdr, 10)
            memset(buffer + 10, 0, header_len - 10)
            buffer += header_len
        if run > left:
            run = left
        if frame.count == 1:
            vnic_copy(buffer, <char *>iov.iov_base + (frame.len - left), run)
        else:
            vnic_gather(&source, buffer, run)
        slot.len = <uint16_t>(header_len + run)
        left -= run
        if left == 0:
            slot.flags = 0
            return True
        slot.flags = NS_MOREFRAG
        at = after(ring, at)
        header_len = 0
        run = r.buf_size & ~1u


# ---- to the guest ------------------------------------------------------------------------------


cdef inline void move(Ring *ring, uint32_t to) noexcept nogil:
    ring.head = to
    store_head(ring.shared, to, to)


cdef void gather_frames(Rings r, Ring *ring, uint32_t limit) noexcept nogil:
    cdef vnic_burst *b = r.b
    cdef uint32_t tail = tail_of(ring), at, end
    cdef Drop outcome
    b.n = b.n_iov = 0
    r.from_ring = ring
    pass_rest(ring, tail)
    at = ring.head
    while at != tail and b.n < limit and b.n < b.n_max:
        end = frame_end(ring, at, tail)
        if end == ring.num_slots:
            if b.n == 0:
                wait_for_end(r, ring, tail)
            return
        if b.n_iov + n_owned(ring, at, end) > b.n_iov_max and b.n != 0:
            return
        outcome = add_frame(r, ring, b, at, end)
        if outcome != KEPT:
            if b.n != 0:
                return  # until it is the oldest
            count(r, outcome)
            move(ring, end)
        at = end


cdef inline uint32_t frame_end(const Ring *ring, uint32_t at, uint32_t tail) noexcept nogil:
    """The slot behind the frame that begins at ``at``; num_slots if its end isn't there."""
    cdef uint16_t flags
    while at != tail:
        flags = load_slot(&ring.shared.slot[at]).flags
        at = after(ring, at)
        if not flags & NS_MOREFRAG:
            return at
    return ring.num_slots


cdef inline void pass_rest(Ring *ring, uint32_t tail) noexcept nogil:
    """Move on behind a frame whose beginning was dropped before its end was there."""
    cdef uint32_t end
    if ring.skipping:
        end = frame_end(ring, ring.head, tail)
        ring.skipping = end == ring.num_slots
        move(ring, tail if ring.skipping else end)


cdef void wait_for_end(Rings r, Ring *ring, uint32_t tail) noexcept nogil:
    """The oldest frame's end isn't there: have poll wait for it; or, if all slots are the frame's
    and it has no end, drop it.
    """
    if n_owned(ring, ring.head, tail) == ring.num_slots - 1:
        count(r, ENDLESS)
        ring.skipping = True
        move(ring, tail)
    else:
        store_head(ring.shared, ring.head, tail)


cdef Drop add_frame(Rings r, const Ring *ring, vnic_burst *b, uint32_t at,
                    uint32_t end) noexcept nogil:
    """Add the frame in slots [at, end) to the burst, unless there is a reason to drop it."""
    cdef vnic_frame *frame = &b.frames[b.n]
    cdef uint32_t n_iov = b.n_iov, skip = r.header_len
    cdef uint64_t length = 0
    cdef netmap_slot slot
    cdef char *buffer
    if n_owned(ring, at, end) > VNIC_IOV_MAX:
        return ENDLESS
    memset(frame.hdr, 0, HEADER_LEN)
    while at != end:
        slot = load_slot(&ring.shared.slot[at])
        # Fault of the module: a frame of up to 12 bytes less than a buffer, from a port without a
        # header to one with it, gets a length beyond the buffer, and its end may be another's.
        if slot.len > ring.buf_size or slot.buf_idx >= ring.n_buffers:
            return RX_SLOT
        buffer = ring.buffers + <uint64_t>slot.buf_idx * ring.buf_size
        if skip != 0:
            if slot.len < skip:
                return RX_HEADER
            memcpy(frame.hdr, buffer, 10)
            buffer += skip
            slot.len -= <uint16_t>skip
            skip = 0
        vnic_prefetch(buffer)
        if slot.len != 0:
            b.iov[n_iov].iov_base = buffer
            b.iov[n_iov].iov_len = slot.len
            n_iov += 1
            length += slot.len
        at = after(ring, at)
    if length == 0:
        return RX_SLOT
    if length > VNIC_FRAME_MAX:
        return ENDLESS
    frame.first = b.n_iov
    frame.count = n_iov - b.n_iov
    frame.len = <uint32_t>length
    frame.token = end
    frame.flags = 0
    b.n_iov = n_iov
    b.n += 1
    return KEPT


cdef uint32_t discard_frames(Rings r, Ring *ring, uint32_t *limit) noexcept nogil:
    cdef uint32_t tail = tail_of(ring), at, end, n = 0
    pass_rest(ring, tail)
    at = ring.head
    while at != tail and limit[0] != 0:
        end = frame_end(ring, at, tail)
        if end == ring.num_slots:
            break
        limit[0] -= min(limit[0], n_owned(ring, at, end))
        n += 1
        at = end
    if n != 0:
        move(ring, at)
    if at != tail and limit[0] != 0:
        wait_for_end(r, ring, tail)
    return n
